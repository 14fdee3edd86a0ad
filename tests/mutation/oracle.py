"""Whether a mutant does something else on a machine, by JAX's own TPU interpreter.

This knows nothing of the checker. A mutant is run several times, each time by another machine that
would be right too: scratch memory holds NaN or zeros; copies happen when they start, or not before
their wait; cells along parallel axes run in other orders, or on two cores. Then it is

- a **fault** if a block lies wholly outside its array, by its index map alone; if a run doesn't
  end, leaves a semaphore that isn't zero, leaves an array or visits an output block again (the
  interpreter raises), or has a race between programs (the interpreter's own detector); or if two
  runs differ: the result isn't determined by the program;
- a **value** if all runs agree with one another, but not with the kernel that was right: it
  computes something else, and any machine would compute just that;
- the **same** if all runs agree with the right kernel;
- **unknown** if the interpreter can't run it.

Since a mutant may hang, each is judged in a process that can be replaced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import multiprocessing
import os
import pathlib
import pickle
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.extend import core
from jax.extend.core.primitives import get_p

from tests.mutation import jaxprs, pool
from tests.mutation.jaxprs import emit, with_params

# A thread of the interpreter that waits looks ten times a second whether it may go on.
MOST_LOOKS = 20
# A process of which no thread wanted to run for that long waits for something that never comes.
IDLE_SECONDS = 2.5
SECONDS = 240.0


class Stuck(NamedTuple):
    """All threads of the interpreter that wait have done so for long, and none was signalled."""


class Running(NamedTuple):
    """A worker runs a mutant on this machine."""

    machine: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    verdict: str
    because: str


def machines(jaxpr: Any, devices: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The machines on which a function is run: name, options of the interpreter."""
    yield "NaN in new memory", {"uninitialized_memory": "nan", "detect_races": devices}
    yield "zeros in new memory", {"uninitialized_memory": "zero"}
    names = {eqn.primitive.name for eqn in _all(jaxpr)}
    if "dma_start" in names:
        yield "copies when they start", {"dma_execution_mode": "eager"}
    if any(_has_parallel(eqn) for eqn in _all(jaxpr)):
        yield "another order of parallel cells", {"random_seed": 1}
        yield "a third order of parallel cells", {"random_seed": 2}
        yield "two cores", {"num_cores_or_threads": 2}


def _all(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxprs.opened(jaxpr).eqns:
        yield eqn
        for _, _, part in jaxprs.inner(eqn):
            yield from _all(part)


def _has_parallel(eqn: Any) -> bool:
    params = eqn.params.get("compiler_params") if eqn.primitive.name == "pallas_call" else None
    return "parallel" in str(getattr(_for_tpu(eqn, params), "dimension_semantics", "")).lower()


def _for_tpu(eqn: Any, params: Any) -> Any:
    """The compiler's parameters as a TPU has them. A GPU's blocks run at the same time."""
    if params is None or isinstance(params, pltpu.CompilerParams):
        return params
    grid = eqn.params["grid_mapping"].grid
    return pltpu.CompilerParams(dimension_semantics=("parallel",) * len(grid))


def interpreted(jaxpr: Any, **options: Any) -> Any:
    """The function with all of its kernels run by JAX's TPU interpreter."""
    params = pltpu.InterpretParams(**options)
    outside = 0 if params.uninitialized_memory == "zero" else np.nan

    def change(eqn: Any) -> Any:
        name = eqn.primitive.name
        if name == "pallas_call":
            compiler = _for_tpu(eqn, eqn.params["compiler_params"])
            return with_params(eqn, interpret=params, compiler_params=compiler)
        if name in jaxprs.CALLS:
            return with_params(eqn, interpret=params)
        if name in ("masked_load", "get"):
            return _gathered(eqn, outside)
        return _of_one_shape(eqn) if name == "masked_swap" else eqn

    return jaxprs.every(jaxpr, change)


def evaluate(jaxpr: Any, *args: Any) -> list[Any]:
    """Runs a jaxpr equation by equation. Calls are traced again: the interpreter has effects that
    the jaxprs in them don't know."""
    body, consts = jaxpr.jaxpr, jaxpr.consts
    values = dict(zip((*body.constvars, *body.invars), (*consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in body.eqns:
        operands = [read(atom) for atom in eqn.invars]
        name, params = eqn.primitive.name, eqn.params
        if name in ("jit", "pjit", "custom_vjp_call", "custom_jvp_call"):
            results = evaluate(params.get("jaxpr", params.get("call_jaxpr")), *operands)
        elif name == "run_state":
            body = core.ClosedJaxpr(params["jaxpr"], ())
            inside = functools.partial(evaluate, body)
            results = pl.run_state(_no_result(lambda refs, f=inside: f(*refs)))(tuple(operands))
        elif name == "core_map":
            old = params["jaxpr"]
            new = old.replace(constvars=[], invars=[*old.constvars, *old.invars])
            inside = functools.partial(core.jaxpr_as_fun(core.ClosedJaxpr(new, ())), *operands)
            pl.core_map(params["mesh"], interpret=params["interpret"])(_no_result(inside))
            results = []
        elif name == "shard_map":
            inside = functools.partial(evaluate, core.ClosedJaxpr(params["jaxpr"], ()))
            results = jax.shard_map(
                inside, mesh=params["mesh"], in_specs=tuple(params["in_specs"]),
                out_specs=list(params["out_specs"]), check_vma=False,
            )(*operands)  # fmt: skip
        else:
            results = core.jaxpr_as_fun(_alone(eqn))(*operands)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in body.outvars]


def _no_result(function: Any) -> Any:
    def call(*args: Any) -> None:
        function(*args)

    return call


def _alone(eqn: Any) -> Any:
    """The equation as a function of its operands."""
    inputs = [core.Var(atom.aval) for atom in eqn.invars]
    body = core.Jaxpr((), inputs, eqn.outvars, [eqn.replace(invars=inputs)], eqn.effects)
    return core.ClosedJaxpr(body, ())


def _gathered(eqn: Any, outside: float) -> Any:
    """A load with a mask or arrays of indices, which the interpreter doesn't have, as a load of the
    whole and a gather from it. Elements outside that aren't masked out are undefined."""
    if eqn.primitive.name == "get":
        ref, transforms, mask, other = eqn.invars[0], None, None, None
        transforms = jax.tree.unflatten(eqn.params["tree"], eqn.invars[1:])
    else:
        ref, transforms, mask, other = jax.tree.unflatten(eqn.params["args_tree"], eqn.invars)
    indexed = [t for t in transforms if hasattr(t, "indices")]
    arrays = any(getattr(getattr(i, "aval", None), "shape", ()) for t in indexed for i in t.indices)
    if mask is None and not arrays or len(transforms) != 1 or not indexed:
        return eqn
    (indexer,) = indexed
    leaves, tree = jax.tree.flatten((indexer, mask, other))
    (out,) = eqn.outvars
    whole = core.Var(jax.core.ShapedArray(ref.aval.shape, out.aval.dtype))
    load = eqn.replace(
        primitive=get_p, invars=[ref], outvars=[whole], params={"tree": jax.tree.structure(())}
    )

    def gather(x: Any, *leaves: Any) -> Any:
        indexer, mask, other = jax.tree.unflatten(tree, leaves)
        arrays, slices = len(indexer.int_indexer_shape), 0
        rank = arrays + sum(hasattr(i, "start") for i in indexer.indices)
        found, inside = [], True
        for index, size in zip(indexer.indices, x.shape, strict=True):
            if hasattr(index, "start"):
                at = jnp.int32(index.start) + index.stride * jnp.arange(index.size)
                shape = [1] * rank
                shape[arrays + slices], slices = index.size, slices + 1
            else:
                at = jnp.asarray(index, jnp.int32)
                shape = [*at.shape, *[1] * (rank - at.ndim)]
            at = at.reshape(shape)
            inside = inside & (at >= 0) & (at < size)
            found.append(jnp.clip(at, 0, size - 1))
        value = jnp.broadcast_to(x[tuple(found)], out.aval.shape)
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        undefined = outside if is_float or outside == 0 else -1
        value = jnp.where(inside, value, jnp.asarray(undefined, x.dtype))
        if mask is None or other is None:
            return value
        return jnp.where(mask, value, jnp.asarray(other, x.dtype))

    eqns, result = emit(eqn, gather, whole, *leaves)
    return [load, *_named(eqns, result, out)]


def _of_one_shape(eqn: Any) -> Any:
    """A masked store whose mask has the shape of its value."""
    ref, transforms, value, mask = jax.tree.unflatten(eqn.params["args_tree"], eqn.invars)
    if mask is None or mask.aval.shape == value.aval.shape:
        return eqn
    shape = value.aval.shape
    eqns, mask = emit(eqn, lambda m: jnp.broadcast_to(m, shape), mask)
    return [*eqns, eqn.replace(invars=jax.tree.leaves((ref, transforms, value, mask)))]


def _named(eqns: list[Any], result: Any, name: Any) -> list[Any]:
    """The equations, with another variable for their result."""
    return [
        eqn.replace(outvars=[name if v is result else v for v in eqn.outvars]) for eqn in eqns
    ]


def run(jaxpr: Any, args: Any, **options: Any) -> tuple[list[np.ndarray], str]:
    """The results on one machine, and what the interpreter printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            function = jax.jit(functools.partial(evaluate, interpreted(jaxpr, **options)))
            results = [np.asarray(x) for x in jax.block_until_ready(function(*args))]
        except Exception:
            pltpu.reset_tpu_interpret_mode_state()
            raise
    return results, said.getvalue()


# What the interpreter raises for accesses outside, and for blocks that come back: by name, or an
# assertion in these functions of its own. Any other error is one that it makes itself.
_FAULTS = ("IndexError", "Out-of-bounds", "Revisited block", "in is_range_out_of_bounds_for_shape",
           "in swap_buffer_content")  # fmt: skip
# What it prints about semaphores that aren't zero at the end, and about races.
_SIGNS = ("non-zero count", "RACE")


def judge(
    right: Right, wrong: Any, args: Any, devices: bool, tell: Callable[[Any], None]
) -> Verdict:
    """What a mutant does.

    Args:
      right: the kernel as it was.
      wrong: the closed jaxpr of the mutant.
      args: the function's operands, flat.
      devices: whether its programs talk to one another.
      tell: is told on which machine it runs next.
    """
    outside = block_outside(wrong)
    if outside:
        return Verdict("fault", outside)
    first: list[np.ndarray] | None = None
    want: list[np.ndarray] | None = None
    for name, options in machines(wrong, devices):
        expected = right.on(name, options)
        if expected is None or want is not None and not equal(expected, want):
            continue  # not a machine on which this kernel is right
        want = expected
        tell(Running(name))
        try:
            got, said = run(wrong, args, **options)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            line = next((x for x in reversed(text.splitlines()) if "Error" in x), text)[:200]
            return Verdict("fault" if any(c in text for c in _FAULTS) else "unknown", line)
        for sign in _SIGNS:
            if sign in said:
                return Verdict("fault", next(x for x in said.splitlines() if sign in x)[:200])
        if first is not None and not equal(got, first):
            return Verdict("fault", f"another result with {name}")
        first = got
    if first is None or want is None:
        return Verdict("unknown", "no machine runs the right kernel")
    return Verdict("same", "") if equal(first, want) else Verdict("value", "another result")


def block_outside(jaxpr: Any) -> str:
    """A block that lies wholly outside its array, by the index maps alone; "" if there is none, or
    if they depend on more than the cell."""
    for kernel in jaxprs.kernels(jaxpr):
        grid = kernel.eqn.params.get("grid_mapping")
        if grid is None or grid.num_dynamic_grid_bounds or grid.num_index_operands or not grid.grid:
            continue
        cells = np.indices(grid.grid).reshape(len(grid.grid), -1).astype(np.int32)
        for number, mapping in enumerate(grid.block_mappings):
            numbers = jax.vmap(core.jaxpr_as_fun(mapping.index_map_jaxpr))(*cells)
            sizes = [jaxprs.block_size(b) for b in mapping.block_shape]
            for index, size, dim in zip(numbers, sizes, mapping.array_aval.shape, strict=True):
                if size is None:
                    continue
                starts = np.broadcast_to(np.asarray(index), cells.shape[1:]) * size
                wrong = (starts >= dim) | (starts + size <= 0)
                if wrong.any():
                    cell = tuple(map(int, cells[:, np.argmax(wrong)]))
                    return f"cell {cell} has a block of operand {number} outside its array"
    return ""


class Right:
    """What the right kernel computes on each machine, found out when it is asked for.

    ``file`` keeps it for the next worker, since a mutant may take this one with it.
    """

    def __init__(
        self, jaxpr: Any, args: Any, file: pathlib.Path, tell: Callable[[str], None]
    ) -> None:
        self._jaxpr, self._args, self._file, self._tell = jaxpr, args, file, tell
        self._results: dict[str, list[np.ndarray] | None] = {}
        if file.exists():
            self._results = pickle.loads(file.read_bytes())

    def on(self, machine: str, options: dict[str, Any]) -> list[np.ndarray] | None:
        """The results, or None if this machine can't run it, or finds a fault in it."""
        if machine not in self._results:
            self._results[machine] = self._run(machine, options)
            self._file.write_bytes(pickle.dumps(self._results))
        return self._results[machine]

    def _run(self, machine: str, options: dict[str, Any]) -> list[np.ndarray] | None:
        try:
            results, said = run(self._jaxpr, self._args, **options)
        except Exception as error:
            text = f"{type(error).__name__}: {str(error)[-300:]}"
        else:
            if not any(sign in said for sign in _SIGNS):
                return results
            text = said[:200]
        self._tell(f"{machine}: {text}")
        return None


def equal(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(
        np.array_equal(a, b, equal_nan=a.dtype.kind in "fc") if a.dtype.kind != "V" else
        np.array_equal(a.view(f"u{a.itemsize}"), b.view(f"u{b.itemsize}"))
        for a, b in zip(one, other, strict=True)
    )  # fmt: skip


def work(asked: Any, directory: pathlib.Path) -> None:
    """Judges what comes through a connection until it ends: pairs of a kernel's name and a mutant's
    number. The directory keeps what a worker leaves to the next."""

    @functools.cache
    def known(name: str) -> tuple[pool.Pooled, Right]:
        kernel = pool.Pooled(name)
        return kernel, Right(kernel.jaxpr, kernel.args, directory / name, asked.send)

    _watch_waits(asked.send)
    with contextlib.suppress(EOFError):
        while True:
            name, number = asked.recv()
            kernel, right = known(name)
            wrong = list(kernel.mutants.values())[number].jaxpr
            asked.send(judge(right, wrong, kernel.args, kernel.devices, asked.send))


def _watch_waits(tell: Callable[[Any], None]) -> None:
    """Has waits counted that end without a signal. However slow the machine is, threads that work
    get as much of it as those that look again and again."""
    real, looks = threading.Condition.wait, dict[int, int]()

    def wait(self: threading.Condition, timeout: float | None = None) -> bool:
        woken = real(self, timeout)
        if woken:
            looks.clear()
        elif timeout is not None:
            me = threading.get_ident()
            looks[me] = looks.get(me, 0) + 1
            if min(list(looks.values())) == MOST_LOOKS:
                tell(Stuck())
        return woken

    threading.Condition.wait = wait  # type: ignore[method-assign]


class Worker:
    """A process that judges. It is replaced when it hangs.

    All are forked from one that has imported JAX, and has not used it.
    """

    def __init__(self) -> None:
        os.environ.update(JAX_PLATFORMS="cpu", PALLAS_NUMPY="0")
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._directory = tempfile.TemporaryDirectory()
        self._process: Any = None

    def judge(self, kernel: str, mutant: int) -> tuple[Verdict, list[str]]:
        """The verdict, and what is to be said about the right kernel."""
        if self._process is None:
            self._start()
        self._pipe.send((kernel, mutant))
        notes: list[str] = []
        machine, idle, began = "", time.monotonic(), time.monotonic()
        while True:
            if self._pipe.poll(0.1):
                try:
                    said = self._pipe.recv()
                except EOFError:
                    self._end()
                    return Verdict("unknown", "the interpreter crashed"), notes
                if isinstance(said, Verdict):
                    if "Error" in said.because:  # the interpreter may keep it for the next run
                        self._end()
                    return said, notes
                if isinstance(said, Stuck):
                    self._end()
                    return self._hangs(machine), notes
                if isinstance(said, Running):
                    machine = said.machine
                else:
                    notes.append(said)
                idle = time.monotonic()
                continue
            if _wants_to_run(self._process.pid):
                idle = time.monotonic()
            if time.monotonic() - idle > IDLE_SECONDS:
                self._end()
                return self._hangs(machine), notes
            if time.monotonic() - began > SECONDS:
                self._end()
                return Verdict("unknown", f"it takes more than {SECONDS:.0f} s"), notes

    def _hangs(self, machine: str) -> Verdict:
        if not machine:
            return Verdict("unknown", "the interpreter hangs on the right kernel")
        return Verdict("fault", f"it doesn't end ({machine})")

    def _start(self) -> None:
        self._pipe, there = self._context.Pipe()
        directory = pathlib.Path(self._directory.name)
        self._process = self._context.Process(target=work, args=(there, directory), daemon=True)
        self._process.start()
        there.close()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def close(self) -> None:
        self._end()
        self._directory.cleanup()


def _wants_to_run(pid: int) -> bool:
    """Whether a thread of the process runs, or would if it had a processor."""
    for thread in pathlib.Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            if thread.read_text().rpartition(")")[2].split()[0] in "RD":
                return True
    return False
