"""Decides how one call runs, and remembers why.

A jitted function that holds a kernel runs on one of three rungs: `numpy`, the whole function in
the evaluator; `callback`, XLA runs it and calls back for its kernels; `jax`, its kernels stay
with JAX's interpreter. The function's plan is made at its first call and kept with its jaxpr.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import jax
import numpy as np

from pallas_shim import cost_model, donation, dump, settings
from pallas_shim.cache.programs import CachedProgram
from pallas_shim.evaluator import call_stack, codegen, passes
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.machine import shards
from pallas_shim.evaluator.program import Program
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.evaluator.verify import InvalidProgram, Verifier
from pallas_shim.gc_pause import gc_paused
from pallas_shim.jax_compat import arrays, call_info, kernel_info, sharded
from pallas_shim.jax_compat.hooks import jit_calls, kernel_lowering
from pallas_shim.report import REPORT, Use

R = TypeVar("R")

if TYPE_CHECKING:
    from pallas_shim.cache.keeping import CachedCall


class FallbackWarning(UserWarning):
    """A kernel runs in JAX's own interpreter; the message says which and why."""


class StrictError(RuntimeError):
    """Under PALLAS_NUMPY_STRICT=1: a kernel would have run in JAX's own interpreter."""


class Observer(Protocol):
    """Is told of each program and of each of its runs: `bisect` compares them."""

    def planned(
        self, executable: Executable, name: str, jaxpr: Any, axes: Mapping[Any, int]
    ) -> None: ...

    def ran(
        self,
        executable: Executable,
        values: Sequence[np.ndarray],
        results: Sequence[np.ndarray] | Exception,
        inside_xla: bool,
    ) -> None:
        """``inside_xla``: XLA's thread waits, and JAX must not be called."""


observer: Observer | None = None

_left_to_jax: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "pallas_shim_left_to_jax", default=False
)


@contextlib.contextmanager
def left_to_jax() -> Iterator[None]:
    """Inside, functions that are compiled now run as if the shim weren't there: on a CPU, their
    kernels in JAX's interpreter."""
    token = _left_to_jax.set(True)
    try:
        yield
    finally:
        _left_to_jax.reset(token)


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
    in_dtypes: tuple[np.dtype | np.ndarray, ...] = ()
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


def _start_over() -> None:
    """In a forked process nobody is left to release what another thread held."""
    global _planning
    _planning = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_over)


def call_jit(stock: Callable[..., Any], args: Sequence[Any], params: dict[str, Any]) -> Any:
    """Runs one call of a jitted function, in the place of JAX's own ``stock``.

    Returns what ``stock`` does: the results, and what jit's C++ cache is to keep for the next
    call, which is nothing if the call ran here.
    """
    plan = None if _left_to_jax.get() else _plan(params["jaxpr"], params, args)
    if plan is None or call_info.execution_is_off():
        return stock(*args, **params)
    if plan.executable is None:
        return _call_stock(stock, args, params, plan, plan.reason)
    try:
        out = _run(plan, args)
    except arrays.Elsewhere as elsewhere:
        return _call_stock(stock, args, params, plan, str(elsewhere))
    assert plan.use is not None
    call_info.check_nans(plan.use.function, out)
    donation.delete(args, plan.deleted)
    return out, None, None, []


class Answers:
    """Answers calls of jitted functions that have run here before, or in another process that
    kept the program: see `jit_calls`."""

    def plan(self, params: dict[str, Any]) -> Plan | None:
        plan = None if _left_to_jax.get() else _known_plan(params["jaxpr"], params)
        return None if plan is None or plan.executable is None else plan

    def run(self, args: Sequence[Any], plan: Plan) -> Sequence[Any] | None:
        if plan.trial is not None and plan.trial.is_over():
            return None
        try:
            out = _run(plan, args)
        except arrays.Elsewhere:
            return None
        donation.delete(args, plan.deleted)
        return out

    def load(self, call: jit_calls.Call) -> jit_calls.Known | CachedCall | None:
        setting = settings.current().cache
        if setting in (None, "trace") or _left_to_jax.get():
            return None
        from pallas_shim.cache.keeping import CachedCall
        from pallas_shim.jax_compat.inputs import is_jaxs_own

        if is_jaxs_own(call.function):
            return None
        start = time.perf_counter()
        cached = CachedCall(call, setting)
        known = gc_paused(_known, call, cached)
        if known is None:
            return cached
        known.plan.use.prepared(time.perf_counter() - start)
        return known

    def tracing(self, cached: CachedCall) -> contextlib.AbstractContextManager[Any]:
        return cached.tracing()

    def ran(
        self, cached: CachedCall, params: dict[str, Any], out_tree: Any, consts: list[Any]
    ) -> None:
        plan = _known_plan(params["jaxpr"], params)
        if plan is None or plan.executable is None or plan.trial:
            return
        assert plan.use is not None
        if plan.mesh is not None:
            plan.use.cache = f"not kept: {_NOT_KEPT_ON_MESH}"
            return
        jit_call = call_info.describe_call(params)
        results = call_info.out_avals(params["jaxpr"])
        program = plan.executable.program
        unused = arrays.unused(plan.in_dtypes)
        cached.traced(
            plan.use, program, jit_call, plan.deleted, unused, results, out_tree, consts
        )


def _known(call: jit_calls.Call, cached: CachedCall) -> jit_calls.Known | None:
    kept = cached.read(_traced_program)
    return None if kept is None else jit_calls.Known(_kept_plan(call, *kept[:2]), *kept[2:])


def _traced_program(params: dict[str, Any]) -> tuple[Program, tuple[int, ...], tuple[int, ...]]:
    """The program of a call that JAX has traced, made anew; the arguments that it deletes, and
    those that it doesn't use."""
    jaxpr, call = params["jaxpr"], call_info.describe_call(params)
    used = call_info.used_arguments(jaxpr, keep_unused=call.keep_unused)
    unused = arrays.unused(arrays.argument_dtypes(call_info.in_avals(jaxpr), used))
    return _program(jaxpr, call.name, {}, None), donation.deleted(jaxpr, call, used), unused


def _kept_plan(call: jit_calls.Call, program: Program, facts: Any) -> Plan:
    """The plan of a call whose program an earlier process kept."""
    kernels = tuple(kernel_info.KernelInfo(*kernel) for kernel in facts.kernels)
    use = REPORT.use(facts.function, kernels, "numpy", _IN_NUMPY)
    use.cache = "read"
    avals = [arrays.result_aval(*result) for result in facts.results]
    folder = _folder(facts.function)
    if folder is not None:
        folder.program(program, "cache")
    arguments = [*map(jax.typeof, facts.consts), *call.avals]
    used = [position not in facts.unused for position in range(len(arguments))]
    return Plan(
        (),
        use.reason,
        _executable(program, folder),
        use,
        _event(facts.function),
        arrays.argument_dtypes(arguments, used),
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
    if plan.deleted:
        donation.check(values, plan.deleted)
    if plan.ordered:
        jax.effects_barrier()
    with jax.profiler.TraceAnnotation(plan.event):
        start = time.perf_counter()
        try:
            results = executable(*values)
        except BaseException as error:
            use.ran(time.perf_counter() - start, error)
            if observer is not None and isinstance(error, Exception):
                observer.ran(executable, values, error, inside_xla=False)
            _blame(error, use)
            raise
        took = time.perf_counter() - start
        use.ran(took)
        if plan.trial is not None:
            plan.trial.left -= took
        if observer is not None:
            observer.ran(executable, values, results, inside_xla=False)
        if plan.mesh is not None:
            return sharded.write(results, plan.mesh.results, plan.mesh.on)
        return arrays.write(results, plan.out_types, place)


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
    key = call_info.call_key(params)
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
    try:
        return _nested(jaxpr, params["name"], _new_plan, jaxpr, params, args)
    except Unsupported as unsupported:
        return Plan(call_info.call_key(params), str(unsupported))


def _new_plan(jaxpr: Any, params: dict[str, Any], args: Sequence[Any]) -> Plan | None:
    if not kernel_info.kernel_equations(jaxpr) and not settings.current().everything:
        return None
    with _planning:
        known = _known_plan(jaxpr, params)
        if known is not None:
            return known
        key = call_info.call_key(params)
        try:
            plan = gc_paused(_make_plan, jaxpr, key, call_info.describe_call(params), args)
        except arrays.Elsewhere as elsewhere:
            return Plan(key, str(elsewhere))  # other arguments may be elsewhere
        _plans[jaxpr] = (*_plans.get(jaxpr, ()), plan)
        return plan


def _nested(jaxpr: Any, name: str, call: Callable[..., R], *args: Any) -> R:
    """What a call gives that goes through a jaxpr; made again with room for its nesting, if that
    is more than Python's recursion limit lets through.

    Raises:
      Unsupported: there is no room for so much.
    """
    try:
        return call(*args)
    except RecursionError:
        levels = kernel_info.nesting(jaxpr)
    if levels <= call_stack.DEEPEST:
        with contextlib.suppress(RecursionError):
            return call_stack.with_depth(levels, call, *args)
    raise Unsupported(
        name,
        f"its loops, branches and calls are {levels} deep inside one another, for which there is "
        "no room on the stack",
    )


def _make_plan(
    jaxpr: Any, key: tuple[Any, ...], call: call_info.JitCall, args: Sequence[Any]
) -> Plan:
    equations = kernel_info.kernel_equations(jaxpr)
    kernels = tuple(map(kernel_info.describe_kernel, equations))
    tracing = _last_tracing(call.name)
    try:
        on = sharded.on_mesh(jaxpr, call.told_in, call.told_out, call.mesh)
        reason = _obstacle(jaxpr, call, equations, on)
        if reason is not None:
            return Plan(key, reason)
        used = call_info.used_arguments(jaxpr, keep_unused=call.keep_unused)
        plan = Plan(
            key,
            _IN_NUMPY,
            event=_event(call.name),
            in_dtypes=arrays.argument_dtypes(call_info.in_avals(jaxpr), used),
            out_types=arrays.result_types(call_info.out_avals(jaxpr)),
            mesh=None if on is None else MeshPlan(on, {}, ()),
        )
        _read(args, plan)  # waits for what XLA still computes
        start = time.perf_counter()
        if on is None:
            mesh = None
            cached, executable = _prepared(jaxpr, call.name, {}, keep=bool(kernels))
        else:
            cached = None
            executable, mesh = _prepared_on_mesh(jaxpr, call.name, on, plan.out_types)
        if observer is not None:
            observer.planned(executable, call.name, jaxpr, {})
    except Unsupported as unsupported:
        return Plan(key, str(unsupported))
    use = REPORT.use(call.name, kernels, "numpy", _IN_NUMPY)
    if cached is not None:
        cached.tell(use)
    elif on is not None:
        use.traced_cache = f"not kept: {_NOT_KEPT_ON_MESH}"
    use.prepared(time.perf_counter() - start, tracing)
    return dataclasses.replace(
        plan,
        executable=executable,
        use=use,
        mesh=mesh,
        deleted=donation.deleted(jaxpr, call, used),
        ordered=call_info.is_ordered(jaxpr),
        trial=None if kernels else Trial(cost_model.outside_kernels(jaxpr).compiling),
    )


_IN_NUMPY = "the evaluator has a rule for all of it"


def _event(function: str) -> str:
    """What the profiler calls a function's calls, as under jit."""
    return "jit_" + "".join([c if c.isalnum() or c == "_" else "_" for c in function])


def _obstacle(
    jaxpr: Any, call: call_info.JitCall, equations: Sequence[Any], on: sharded.OnMesh | None
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
        asked = kernel_info.unhonoured(eqn)
        if asked is not None:
            raise Unsupported(eqn.primitive.name, asked)
    for aval in (*call_info.in_avals(jaxpr), *call_info.out_avals(jaxpr)):
        if not arrays.is_plain(aval):
            return f"it takes or returns a {aval}"
    if not equations and call_info.calls_back(jaxpr):
        return "it calls back, and XLA says when and how errors come out"
    if any(kernel_info.talks(eqn) for eqn in equations):
        return None  # a callback knows of one device only
    outside = cost_model.outside_kernels(jaxpr)
    if outside.numpy > outside.compiling:
        seconds = f"{outside.numpy:.2g} s"
        return f"XLA does the work outside its kernels faster (about {seconds} in NumPy)"
    return None


def _prepared(
    jaxpr: Any, name: str, axes: Mapping[Any, int], *, keep: bool
) -> tuple[CachedProgram | None, Executable]:
    """What runs a jaxpr, and what keeps its program for later processes, if that is wanted;
    ``axes`` are those of the devices that it is for.

    Raises:
      Unsupported: some part of it has no program.
      InvalidProgram: the user has programs checked, and this one is wrong.
      OSError: the user has programs written, and that failed.
    """
    asked = settings.current()
    folder = _folder(name)
    make = functools.partial(_program, jaxpr, name, axes, folder)
    # Who looks at a program wants to see it made.
    seen_made = folder is not None or asked.verify or observer is not None
    cached = CachedProgram(jaxpr, name, axes, make) if keep and not seen_made else None
    program = make() if cached is None else cached.get()
    return cached, _executable(program, folder)


# What the programs of a mesh meet for, and what they await, are functions of their own.
_NOT_KEPT_ON_MESH = "its devices run as programs that wait for one another"


def _prepared_on_mesh(
    jaxpr: Any, name: str, on: sharded.OnMesh, types: Sequence[arrays.ResultType]
) -> tuple[Executable, MeshPlan]:
    """What runs a jaxpr of several devices, and what its calls need to know beside.

    Raises: as `_prepared`.
    """
    folder = _folder(name)
    program = _program(jaxpr, name, {}, folder, on_mesh=True)
    results = sharded.results(on, call_info.out_avals(jaxpr), types)
    if observer is not None:  # it compares whole arrays
        return _executable(program, folder), MeshPlan(on, {}, results)
    parts = [
        position
        for position, names in shards.results(program).items()
        if sharded.is_cut_so(results[position], names, on)
    ]
    cut = shards.parameters(program) if on.whole else {}
    return _executable(program, folder, parts), MeshPlan(on, cut, results)


def _folder(name: str) -> dump.Folder | None:
    """Where the user has a program written, if they have."""
    directory = settings.current().dump
    return None if directory is None else dump.Folder(directory, name)


def _program(
    jaxpr: Any,
    name: str,
    axes: Mapping[Any, int],
    folder: dump.Folder | None,
    on_mesh: bool = False,
) -> Program:
    """The optimised program of a jaxpr, whose way there is written to a folder, if there is one.

    Raises: as `_prepared`.
    """
    asked = settings.current()
    watchers: list[passes.Watcher] = [Verifier()] if asked.verify else []
    if folder is not None:
        folder.jaxpr(jaxpr)
        watchers.append(folder)
    try:
        program = lower(jaxpr, name=name, axes=axes, on_mesh=on_mesh)
        return passes.optimise(program, asked.disabled_passes, watchers)
    except (Unsupported, InvalidProgram, OSError, RecursionError):
        raise
    except Exception as error:
        # A wrong rule must not cost the user the call, but it must be seen.
        kind = type(error).__name__
        raise Unsupported(
            name, f"lowering failed, which is a bug in pallas_shim: {kind}: {error}"
        ) from error


def _executable(
    program: Program, folder: dump.Folder | None, parts: Sequence[int] = ()
) -> Executable:
    emits = codegen.choice(settings.current().disabled_passes)
    return Executable(program, emits, None if folder is None else folder.code, parts=parts)


# -- what JAX runs ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Compilation:
    """Why JAX runs the function that it may be compiling, and which kernels it interprets."""

    reason: str
    jax_uses: list[Use]


_compilation: contextvars.ContextVar[_Compilation | None] = contextvars.ContextVar(
    "pallas_shim_compilation", default=None
)


def _compiling(compilation: _Compilation, call: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """What a call gives, during which that is what JAX compiles. No context manager, and restored
    twice, for the reasons that `as_xla` gives."""
    outer = _compilation.get()
    try:
        try:
            _compilation.set(compilation)
            return call(*args, **kwargs)
        finally:
            _compilation.set(outer)
    finally:
        _compilation.set(outer)


def _call_stock(
    stock: Callable[..., Any], args: Sequence[Any], params: dict[str, Any], plan: Plan, reason: str
) -> Any:
    start = time.perf_counter()
    returned = _compiling(_Compilation(reason, plan.jax_uses), stock, *args, **params)
    if settings.current().report is None or not plan.jax_uses:
        return returned
    # To count the calls, keep jit's C++ cache from serving the next one.
    out, _, profiler, consts = returned
    jax.block_until_ready(out)
    for use in plan.jax_uses:
        use.ran(time.perf_counter() - start)
    return out, None, profiler, consts


def choose_kernel(
    kernel: kernel_lowering.KernelLowering,
) -> tuple[kernel_lowering.Callback, bool] | None:
    """How a kernel in a program that XLA compiles runs: what to call back for it, and whether
    that has effects; None for JAX's interpreter."""
    if _left_to_jax.get():
        return None
    described = kernel_info.describe_kernel(kernel.equation)
    compilation = _compilation.get()
    start = time.perf_counter()
    try:
        if kernel.obstacle is not None:
            raise Unsupported("pallas_call", kernel.obstacle)
        asked = kernel_info.unhonoured(kernel.equation)
        if asked is not None:
            if compilation is not None and kernel_info.talks(kernel.equation):
                asked = f"{asked}; its function isn't run in NumPy: {compilation.reason}"
            raise Unsupported("pallas_call", asked)
        prepare = functools.partial(_prepared, keep=True)
        cached, executable = _nested(
            kernel.jaxpr, described.name, prepare, kernel.jaxpr, described.name, kernel.axes
        )
    except Unsupported as unsupported:
        use = _leave_to_jax(kernel.function, described, unsupported)
        if compilation is not None:
            compilation.jax_uses.append(use)
        return None
    reason = "XLA compiles the function" if compilation is None else compilation.reason
    use = REPORT.use(kernel.function, (described,), "callback", reason)
    if cached is not None:
        cached.tell(use)
    use.prepared(time.perf_counter() - start)
    if observer is not None:
        observer.planned(executable, described.name, kernel.jaxpr, kernel.axes)

    def run(*values: np.ndarray) -> tuple[np.ndarray, ...]:
        begun = time.perf_counter()
        try:
            results = executable(*values)
        except Exception as error:
            use.ran(time.perf_counter() - begun, error)
            if observer is not None:
                observer.ran(executable, values, error, inside_xla=True)
            _blame(error, use)
            # XLA passes on the text of an error, without its notes.
            notes = "; ".join(error.__notes__)
            raise RuntimeError(f"{type(error).__name__}: {error} ({notes})") from error
        use.ran(time.perf_counter() - begun)
        if observer is not None:
            observer.ran(executable, values, results, inside_xla=True)
        return tuple(map(np.asarray, results))

    seen = any(i.operation.effects.io for i in executable.program.top.walk())
    return run, seen


_warned: set[tuple[kernel_info.KernelInfo, str]] = set()


def _leave_to_jax(function: str, kernel: kernel_info.KernelInfo, unsupported: Unsupported) -> Use:
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


def _blame(error: BaseException, use: Use) -> None:
    error.add_note(f"in {_names(use.kernels)}, run in NumPy by pallas_shim")


def _names(kernels: Sequence[kernel_info.KernelInfo]) -> str:
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
