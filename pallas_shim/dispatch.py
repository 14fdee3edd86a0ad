"""Decides how one call runs, and remembers why.

A jitted function that holds a kernel runs on one of three rungs: `numpy`, the whole function in
the evaluator; `callback`, XLA runs it and calls back for its kernels; `jax`, its kernels stay
with JAX's interpreter. The function's plan is made at its first call and kept with its jaxpr.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pallas_shim import estimate, settings
from pallas_shim.evaluator import emission, passes
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.machine import shards
from pallas_shim.evaluator.program import Program
from pallas_shim.evaluator.rules.registry import Unsupported
from pallas_shim.jax_compat import arrays, hooks, jit_calls, sharded
from pallas_shim.report import REPORT, Use
from pallas_shim.undisturbed import undisturbed


class FallbackWarning(UserWarning):
    """A kernel runs in JAX's own interpreter; the message says which and why."""


class StrictError(RuntimeError):
    """Under PALLAS_NUMPY_STRICT=1: a kernel would have run in JAX's own interpreter."""


# -- jitted functions -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """How calls of one jaxpr with one set of jit's parameters run.

    ``executable`` is None if JAX runs the function: ``reason`` says why, and ``jax_uses``
    gathers those of its kernels that JAX interprets. ``trial``: of a function without a kernel.
    """

    key: tuple[Any, ...]
    reason: str
    executable: Executable | None = None
    use: Use | None = None
    event: str = ""
    in_dtypes: tuple[np.dtype, ...] = ()
    out_types: Sequence[arrays.ResultType] = ()
    deleted: tuple[int, ...] = ()
    ordered: bool = False
    trial: Trial | None = None
    mesh: MeshPlan | None = None
    jax_uses: list[Use] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class MeshPlan:
    """What a function on a mesh of devices needs beside: ``cut`` has the positions of arguments
    that may come in the devices' parts, and how these are cut."""

    on: sharded.OnMesh
    cut: Mapping[int, sharded.Names]
    results: tuple[sharded.Result, ...]


class Trial:
    """How long a function without a kernel may run here: as long as XLA takes to compile it."""

    def __init__(self, seconds: float):
        self.left = seconds

    def is_over(self) -> bool:
        return self.left < 0


_plans: weakref.WeakKeyDictionary[Any, tuple[Plan, ...]] = weakref.WeakKeyDictionary()
_planning = threading.RLock()


def call_jit(stock: Callable[..., Any], args: Sequence[Any], params: dict[str, Any]) -> Any:
    """Runs one call of a jitted function, in the place of JAX's own ``stock``.

    Returns what ``stock`` does: the results, and what jit's C++ cache is to keep for the next
    call, which is nothing if the call ran here.
    """
    plan = _plan(params["jaxpr"], params, args)
    if plan is None or hooks.execution_is_off():
        return stock(*args, **params)
    if plan.executable is None:
        return _call_stock(stock, args, params, plan, plan.reason)
    try:
        out = _run(plan, args)
    except arrays.Elsewhere as elsewhere:
        return _call_stock(stock, args, params, plan, str(elsewhere))
    assert plan.use is not None
    hooks.check_nans(plan.use.function, out)
    _delete(args, plan.deleted)
    return out, None, None, []


class Answers:
    """Answers calls of jitted functions that have run here before, or in another process that
    kept the program: see `jit_calls`."""

    def plan(self, params: dict[str, Any]) -> Plan | None:
        plan = _known_plan(params["jaxpr"], params)
        return None if plan is None or plan.executable is None else plan

    def run(self, args: Sequence[Any], plan: Plan) -> Sequence[Any] | None:
        if plan.trial is not None and plan.trial.is_over():
            return None
        try:
            out = _run(plan, args)
        except arrays.Elsewhere:
            return None
        _delete(args, plan.deleted)
        return out

    def load(self, call: jit_calls.Call) -> jit_calls.Known | None:
        _keeping.keep = None
        directory = settings.current().cache
        if directory is None:
            return None
        from pallas_shim.cache.keeping import Keep
        from pallas_shim.jax_compat.inputs import is_jaxs_own

        if is_jaxs_own(call.function):
            return None
        start = time.perf_counter()
        keep = _keeping.keep = Keep(call, directory)
        known = undisturbed(_known, call, keep)
        if known is not None:
            known.plan.use.prepared(time.perf_counter() - start)
        return known

    def ran(
        self, call: jit_calls.Call, params: dict[str, Any], out_tree: Any, consts: list[Any]
    ) -> None:
        keep, _keeping.keep = _keeping.keep, None
        plan = _known_plan(params["jaxpr"], params)
        if plan is None or plan.mesh is not None:
            return
        if keep is not None and plan.use is not None and not plan.trial:
            jit_call = hooks.describe_call(params)
            results = hooks.out_avals(params["jaxpr"])
            plan.use.cache = keep.write(
                plan.use, jit_call, plan.deleted, results, out_tree, consts
            )


# What is to become of the program that this thread plans next.
_keeping = threading.local()


def _known(call: jit_calls.Call, keep: Any) -> jit_calls.Known | None:
    kept = keep.read()
    return None if kept is None else jit_calls.Known(_kept_plan(call, *kept[:2]), *kept[2:])


def _kept_plan(call: jit_calls.Call, program: Program, facts: Any) -> Plan:
    """The plan of a call whose program an earlier process kept."""
    kernels = tuple(hooks.Kernel(*kernel) for kernel in facts.kernels)
    use = REPORT.use(facts.function, kernels, "numpy", _IN_NUMPY)
    use.cache = "read"
    avals = [arrays.result_aval(*result) for result in facts.results]
    return Plan(
        (),
        use.reason,
        _executable(program),
        use,
        _event(facts.function),
        arrays.argument_dtypes([*map(jax.typeof, facts.consts), *call.avals]),
        arrays.result_types(avals),
        facts.deleted,
    )


def _run(plan: Plan, args: Sequence[Any]) -> list[Any]:
    """The results of a plan with an executable.

    Raises:
      arrays.Elsewhere: these arguments don't belong in the evaluator.
    """
    use, executable = plan.use, plan.executable
    assert use is not None and executable is not None
    values, place = _read(args, plan)
    if plan.ordered:
        jax.effects_barrier()
    with jax.profiler.TraceAnnotation(plan.event):
        start = time.perf_counter()
        try:
            results = executable(*values)
        except Exception as error:
            use.ran(time.perf_counter() - start)
            _blame(error, use)
            raise
        took = time.perf_counter() - start
        use.ran(took)
        if plan.trial is not None:
            plan.trial.left -= took
        if plan.mesh is not None:
            return sharded.write(results, plan.mesh.results, plan.mesh.on)
        return arrays.write(results, plan.out_types, place)


def _delete(args: Sequence[Any], positions: Sequence[int]) -> None:
    for position in positions:
        if isinstance(args[position], jax.Array):
            args[position].delete()


def _read(args: Sequence[Any], plan: Plan) -> tuple[list[Any], Any]:
    """The arguments, and the place of the results where that is one device."""
    force = settings.current().force
    if plan.mesh is not None:
        cut = plan.mesh.cut
        values = sharded.read(args, plan.in_dtypes, plan.mesh.on, cut, any_platform=force)
        return values, None
    return arrays.read(args, plan.in_dtypes, any_platform=force)


def _known_plan(jaxpr: Any, params: dict[str, Any]) -> Plan | None:
    known = _plans.get(jaxpr)
    if known is None:
        return None
    key = hooks.call_key(params)
    for plan in known:
        if plan.key == key:
            if plan.trial is not None and plan.trial.is_over():
                return Plan(key, "it has run for longer than XLA takes to compile it")
            return plan
    return None


def _plan(jaxpr: Any, params: dict[str, Any], args: Sequence[Any]) -> Plan | None:
    """The plan of a call; None if the function holds no kernel, and only kernels are run here."""
    known = _known_plan(jaxpr, params)
    if known is not None:
        return known
    if not hooks.kernel_equations(jaxpr) and not settings.current().everything:
        return None
    with _planning:
        known = _known_plan(jaxpr, params)
        if known is not None:
            return known
        key = hooks.call_key(params)
        try:
            plan = undisturbed(_make_plan, jaxpr, key, hooks.describe_call(params), args)
        except arrays.Elsewhere as elsewhere:
            return Plan(key, str(elsewhere))  # other arguments may be elsewhere
        _plans[jaxpr] = (*_plans.get(jaxpr, ()), plan)
        return plan


def _make_plan(
    jaxpr: Any, key: tuple[Any, ...], call: hooks.JitCall, args: Sequence[Any]
) -> Plan:
    equations = hooks.kernel_equations(jaxpr)
    kernels = tuple(map(hooks.describe_kernel, equations))
    tracing = _last_tracing(call.name)
    try:
        on = sharded.on_mesh(jaxpr, call.told_in, call.told_out, call.mesh)
        reason = _obstacle(jaxpr, call, equations, on)
        if reason is not None:
            return Plan(key, reason)
        plan = Plan(
            key,
            _IN_NUMPY,
            event=_event(call.name),
            in_dtypes=arrays.argument_dtypes(hooks.in_avals(jaxpr)),
            out_types=arrays.result_types(hooks.out_avals(jaxpr)),
            mesh=None if on is None else MeshPlan(on, {}, ()),
        )
        _read(args, plan)  # waits for what XLA still computes
        start = time.perf_counter()
        program = _program(jaxpr, call.name, on_mesh=on is not None)
        keep = getattr(_keeping, "keep", None)
        if keep is not None and on is None:
            keep.encode(program)
        if on is None:
            executable, mesh = _executable(program), None
        else:
            executable, mesh = _on_mesh(program, on, hooks.out_avals(jaxpr), plan.out_types)
    except Unsupported as unsupported:
        return Plan(key, str(unsupported))
    use = REPORT.use(call.name, kernels, "numpy", _IN_NUMPY)
    use.prepared(time.perf_counter() - start, tracing)
    return dataclasses.replace(
        plan,
        executable=executable,
        use=use,
        mesh=mesh,
        deleted=_deleted(jaxpr, call),
        ordered=hooks.is_ordered(jaxpr),
        trial=None if kernels else Trial(estimate.outside_kernels(jaxpr).compiling),
    )


def _on_mesh(
    program: Program, on: sharded.OnMesh, avals: Sequence[Any], types: Sequence[arrays.ResultType]
) -> tuple[Executable, MeshPlan]:
    """The executable of a program of several devices, and what its calls need to know."""
    results = sharded.results(on, avals, types)
    parts = [
        position
        for position, names in shards.results(program).items()
        if sharded.is_cut_so(results[position], names, on)
    ]
    emits = emission.choice(settings.current().disabled_passes)
    executable = Executable(program, emits, parts=parts)
    return executable, MeshPlan(on, shards.parameters(program) if on.whole else {}, results)


_IN_NUMPY = "the evaluator has a rule for all of it"


def _event(function: str) -> str:
    """What the profiler calls a function's calls, as under jit."""
    return "jit_" + "".join([c if c.isalnum() or c == "_" else "_" for c in function])


def _obstacle(
    jaxpr: Any, call: hooks.JitCall, equations: Sequence[Any], on: sharded.OnMesh | None
) -> str | None:
    """Why XLA has to run this function, or None.

    Raises:
      Unsupported: a kernel in it has to stay with JAX's interpreter.
    """
    if call.obstacle is not None:
        return call.obstacle
    if on is None and call.sharded is not None:
        return call.sharded
    for eqn in equations:
        asked = hooks.unhonoured(eqn)
        if asked is not None:
            raise Unsupported(eqn.primitive.name, asked)
    for aval in (*hooks.in_avals(jaxpr), *hooks.out_avals(jaxpr)):
        if not arrays.is_plain(aval):
            return f"it takes or returns a {aval}"
    if any(hooks.talks(eqn) for eqn in equations):
        return None  # a callback knows of one device only
    outside = estimate.outside_kernels(jaxpr)
    if outside.numpy > outside.compiling:
        seconds = f"{outside.numpy:.2g} s"
        return f"XLA does the work outside its kernels faster (about {seconds} in NumPy)"
    return None


def _program(
    jaxpr: Any, name: str, axes: Mapping[Any, int] | None = None, on_mesh: bool = False
) -> Program:
    """The optimised program of a jaxpr; ``axes`` are those of the devices that it is for.

    Raises:
      Unsupported: some part of it has none.
    """
    try:
        program = lower(jaxpr, name=name, axes=axes or {}, on_mesh=on_mesh)
        return passes.optimise(program, skip=settings.current().disabled_passes)
    except Unsupported:
        raise
    except Exception as error:
        # A wrong rule must not cost the user the call, but it must be seen.
        kind = type(error).__name__
        raise Unsupported(
            name, f"lowering failed, which is a bug in pallas_shim: {kind}: {error}"
        ) from error


def _executable(program: Program) -> Executable:
    return Executable(program, emission.choice(settings.current().disabled_passes))


def _deleted(jaxpr: Any, call: hooks.JitCall) -> tuple[int, ...]:
    """The donated arguments that jit deletes: those it has a result of the same size for.

    The others it keeps, and warns about.
    """
    avals = hooks.in_avals(jaxpr)
    kept = range(len(avals)) if call.keep_unused else hooks.used_arguments(jaxpr)
    given = [i for i in sorted(kept) if call.donated[i]]
    results = list(hooks.out_avals(jaxpr))
    deleted: list[int] = []
    for same in (lambda a: (a.shape, a.dtype), lambda a: a.size * a.dtype.itemsize):
        for position in [i for i in given if i not in deleted]:
            match = next((r for r in results if same(r) == same(avals[position])), None)
            if match is not None:
                results.remove(match)
                deleted.append(position)
    unusable = [str(avals[i].str_short()) for i in given if i not in deleted]
    if unusable:
        warnings.warn(
            f"Some donated buffers were not usable: {', '.join(unusable)}.", stacklevel=2
        )
    return tuple(sorted(deleted))


# -- what JAX runs ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Compilation:
    """Why JAX runs the function that it may be compiling, and which kernels it interprets."""

    reason: str
    jax_uses: list[Use]


_compilation: contextvars.ContextVar[_Compilation | None] = contextvars.ContextVar(
    "pallas_shim_compilation", default=None
)


@contextlib.contextmanager
def _compiling(compilation: _Compilation) -> Iterator[None]:
    token = _compilation.set(compilation)
    try:
        yield
    finally:
        _compilation.reset(token)


def _call_stock(
    stock: Callable[..., Any], args: Sequence[Any], params: dict[str, Any], plan: Plan, reason: str
) -> Any:
    start = time.perf_counter()
    with _compiling(_Compilation(reason, plan.jax_uses)):
        returned = stock(*args, **params)
    if settings.current().report is None or not plan.jax_uses:
        return returned
    # To count the calls, keep jit's C++ cache from serving the next one.
    out, _, profiler, consts = returned
    jax.block_until_ready(out)
    for use in plan.jax_uses:
        use.ran(time.perf_counter() - start)
    return out, None, profiler, consts


def choose_kernel(kernel: hooks.KernelLowering) -> tuple[hooks.Callback, bool] | None:
    """How a kernel in a program that XLA compiles runs: what to call back for it, and whether
    that has effects; None for JAX's interpreter."""
    described = hooks.describe_kernel(kernel.equation)
    compilation = _compilation.get()
    start = time.perf_counter()
    try:
        if kernel.obstacle is not None:
            raise Unsupported("pallas_call", kernel.obstacle)
        asked = hooks.unhonoured(kernel.equation)
        if asked is not None:
            if compilation is not None and hooks.talks(kernel.equation):
                asked = f"{asked}; its function isn't run in NumPy: {compilation.reason}"
            raise Unsupported("pallas_call", asked)
        program = _program(kernel.jaxpr, described.name, kernel.axes)
    except Unsupported as unsupported:
        use = _leave_to_jax(kernel.function, described, unsupported)
        if compilation is not None:
            compilation.jax_uses.append(use)
        return None
    reason = "XLA compiles the function" if compilation is None else compilation.reason
    use = REPORT.use(kernel.function, (described,), "callback", reason)
    executable = _executable(program)
    use.prepared(time.perf_counter() - start)

    def run(*values: np.ndarray) -> tuple[np.ndarray, ...]:
        begun = time.perf_counter()
        try:
            results = executable(*values)
        except Exception as error:
            _blame(error, use)
            # XLA passes on the text of an error, without its notes.
            notes = "; ".join(error.__notes__)
            raise RuntimeError(f"{type(error).__name__}: {error} ({notes})") from error
        use.ran(time.perf_counter() - begun)
        return tuple(map(np.asarray, results))

    seen = any(i.operation.effects.io for i in program.top.walk())
    return run, seen


_warned: set[tuple[hooks.Kernel, str]] = set()


def _leave_to_jax(function: str, kernel: hooks.Kernel, unsupported: Unsupported) -> Use:
    """Records that JAX interprets a kernel, and tells the user once.

    Raises:
      StrictError: the user wants to know.
    """
    message = (
        f"{_names((kernel,))} runs in JAX's own interpreter, which is slow: {unsupported}"
    )
    if settings.current().strict:
        raise StrictError(
            f"{message}. PALLAS_NUMPY_STRICT=1 makes this an error; unset it to let it run"
        ) from unsupported
    use = REPORT.use(function, (kernel,), "jax", str(unsupported))
    use.happened = True
    if (kernel, str(unsupported)) not in _warned:
        _warned.add((kernel, str(unsupported)))
        file, _, line = (kernel.source or "").partition(" ")[0].rpartition(":")
        if file and line.isdigit():
            warnings.warn_explicit(message, FallbackWarning, file, int(line))
        else:
            warnings.warn(message, FallbackWarning, stacklevel=2)
    return use


def _blame(error: Exception, use: Use) -> None:
    error.add_note(f"in {_names(use.kernels)}, run in NumPy by pallas_shim")


def _names(kernels: Sequence[hooks.Kernel]) -> str:
    return ", ".join(
        f"the Pallas kernel {k.name}" + (f" ({k.source})" if k.source else "") for k in kernels
    )


# -- tracing ----------------------------------------------------------------------------------

_traced = threading.local()


def note_tracing(function: str, seconds: float) -> None:
    """Remembers how long JAX traced a function, for the plan that this thread makes next."""
    _traced.last = (function, seconds)


def _last_tracing(function: str) -> float | None:
    last = getattr(_traced, "last", None)
    _traced.last = None
    return last[1] if last is not None and last[0] == function else None
