"""Threads share large loops and grids of independent cells: the bits don't depend on how many."""

from __future__ import annotations

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.floating import as_xla
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise

pytest.importorskip("llvmlite")

from pallas_shim.dispatch.native import same  # noqa: E402
from pallas_shim.evaluator.codegen import native  # noqa: E402
from pallas_shim.evaluator.codegen.native import threads  # noqa: E402


@pytest.fixture(autouse=True)
def small_shares(monkeypatch):
    """Each element pays for a thread."""
    monkeypatch.setattr(threads, "_SHARE", 1e-12)


def numbers(*shape, seed=0):
    """Some are subnormal, zeros, infinite, or no numbers."""
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    x.flat[::7] = 1e-40
    x.flat[3::41], x.flat[5::43], x.flat[6::47] = np.inf, np.nan, -0.0
    return x


def by_rows(kernel, rows, columns, block=2, **options):
    spec = pl.BlockSpec((block, columns), lambda i: (i, 0))
    return pl.pallas_call(
        kernel, jax.ShapeDtypeStruct((rows, columns), jnp.float32), grid=(rows // block,),
        in_specs=[spec], out_specs=spec, interpret=True, **options,
    )  # fmt: skip


def softmax(x_ref, out_ref):
    weights = jnp.exp(x_ref[...] - jnp.max(x_ref[...], axis=1, keepdims=True))
    out_ref[...] = weights / jnp.sum(weights, axis=1, keepdims=True)


def tanh(x_ref, out_ref):
    out_ref[...] = jnp.tanh(x_ref[...] * 2) + 1e-39


def looped(x_ref, out_ref):
    out_ref[...] = lax.fori_loop(0, 5, lambda i, x: x * 1.5 - i, x_ref[...])


def counted(x_ref, out_ref):
    """A grid of cells that branch on their own isn't batched."""

    @pl.when(x_ref[0, 0] > 0)
    def _():
        out_ref[...] = jnp.cumsum(x_ref[...], axis=1)

    @pl.when(~(x_ref[0, 0] > 0))
    def _():
        out_ref[...] = lax.fori_loop(0, 3, lambda i, x: x + x_ref[...], x_ref[...])


def running(x_ref, out_ref):
    """A cell reads what the one before has left."""

    @pl.when(pl.program_id(0) == 0)
    def _():
        out_ref[...] = jnp.zeros_like(out_ref)

    out_ref[...] = out_ref[...] * 0.5 + x_ref[...]


FUNCTIONS = {
    "elements": lambda x: (x * 2 + 1) / (x - 3),
    "rows": lambda x: x / jnp.sum(jnp.exp(x), axis=1, keepdims=True),
    "softmax": by_rows(softmax, 120, 65),
    "tanh": by_rows(tanh, 120, 65),
    "looped": by_rows(looped, 120, 65),
    "counted": by_rows(counted, 120, 65),
    "running": pl.pallas_call(
        running, jax.ShapeDtypeStruct((2, 65), jnp.float32), grid=(60,), interpret=True,
        in_specs=[pl.BlockSpec((2, 65), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((2, 65), lambda i: (0, 0)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("skip", [(), ("grid_batching",)])
def test_bits_do_not_depend_on_threads(name, skip):
    x = numbers(120, 65)
    program = optimise(lower(jax.make_jaxpr(FUNCTIONS[name])(x)), skip)
    want = Executable(program, lambda loop: False)(x)
    assert "call i32 @share" in native.source(program)[1]
    for count in (1, 2, 5):
        code = native.compiled(program, threads=count)
        for _ in range(20):
            assert same(want, as_xla(code.run, [x]))


def test_what_a_shared_loop_takes_from_outside():
    """Numbers of each type, of several operations, and of a literal."""
    x, n = numbers(120, 65), np.float32(0.3)

    def f(x, n):
        whole = (n * 10).astype(jnp.int32)
        wide = whole.astype(jnp.int16) + jnp.int16(1)
        kept = [n + 0.1, n.astype(jnp.bfloat16), whole, wide, n > 0.2, jnp.where(n > 1, n, 2 * n)]
        return [x + scalar.astype(jnp.float32) for scalar in kept]

    program = lower(jax.make_jaxpr(f)(x, n))
    want = Executable(program, lambda loop: False)(x, n)
    assert same(want, as_xla(native.compiled(program, threads=2).run, [x, np.asarray(n)]))


def shared_grids(program):
    """How many shared loops are there beyond those that are none of a grid."""
    lowering, _ = native.source(program)
    return sum(text.count("alloca") and "%own = alloca" in text for text in lowering.to.functions)


@pytest.mark.parametrize(
    "name, shared", [("softmax", True), ("looped", True), ("running", False), ("counted", False)]
)
def test_which_grids_are_shared(name, shared):
    """Only those whose cells are apart, and that don't call Python."""
    program = optimise(lower(jax.make_jaxpr(FUNCTIONS[name])(numbers(120, 65))), ("grid_batching",))
    assert bool(shared_grids(program)) == shared


def test_chunks_of_cells_are_shared():
    x = np.zeros((1024, 1024), np.float32)
    program = optimise(lower(jax.make_jaxpr(by_rows(softmax, 1024, 1024, block=64))(x)))
    assert any(i.name == "blocks" for i in program.top.walk())
    assert shared_grids(program)


def test_short_loops_are_not_shared(monkeypatch):
    monkeypatch.undo()
    program = lower(jax.make_jaxpr(FUNCTIONS["elements"])(numbers(120, 65)))
    assert "@share" not in native.source(program)[1]


def longer():
    """A program with a shared loop of some milliseconds."""
    x = np.ones((64, 4096), np.float32)
    f = by_rows(lambda x, out: looped_often(x, out), 64, 4096)
    return native.compiled(optimise(lower(jax.make_jaxpr(f)(x)), ("grid_batching",)), threads=2), x


def looped_often(x_ref, out_ref):
    out_ref[...] = lax.fori_loop(0, 200, lambda i, x: x * 1.5 - i, x_ref[...])


def running_threads():
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="threads are counted in /proc")
def test_a_fork_and_the_affinity_mask():
    code, x = longer()
    before = running_threads()
    want = code.run([x])
    child = os.fork()
    if child == 0:
        try:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            os._exit(0 if same(want, code.run([x])) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert same(want, code.run([x]))
    assert running_threads() <= before + 1  # one may just be ending


class Interrupt(Exception):
    pass


def test_a_signal_ends_a_shared_loop():
    code, x = longer()

    def ring(*_):
        raise Interrupt

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Interrupt):
            for _ in range(10_000):
                code.run([x])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
