"""Errors and interrupts inside a kernel say where: the kernel, the user's line, the grid's cell."""

from __future__ import annotations

import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.evaluator import codegen
from tests.shimmed import setting, shim

__all__ = ["setting", "shim"]

X = np.arange(24, dtype=np.float32).reshape(4, 6)


class Stop(Exception):
    pass


def fails_at(number, error):
    """A jitted function whose kernel fails where its block holds a number."""

    def host(x):
        if (x == number).any():
            raise error
        return x

    def kernel(x_ref, o_ref, sum_ref):
        x = jax.pure_callback(host, jax.ShapeDtypeStruct((2, 2), jnp.float32), x_ref[...])
        sum_ref[...] += x  # carried from cell to cell, so these don't run at once
        o_ref[...] = x + sum_ref[...]

    spec = pl.BlockSpec((2, 2), lambda i, j: (i, j))
    return jax.jit(
        pl.pallas_call(
            kernel,
            out_shape=jax.ShapeDtypeStruct(X.shape, X.dtype),
            grid=(2, 3),
            in_specs=[spec],
            out_specs=spec,
            scratch_shapes=[pltpu.VMEM((2, 2), jnp.float32)],
            interpret=True,
        )
    )


def notes(error) -> str:
    return "\n".join(error.value.__notes__)


@pytest.mark.parametrize("number, cell", [(0, (0, 0)), (3, (0, 1)), (17, (1, 2))])
@pytest.mark.parametrize("error, what", [(Stop, "raised by"), (KeyboardInterrupt, "interrupted")])
@pytest.mark.parametrize("emitted", [False, True])
def test_an_error_names_the_cell(shim, setting, monkeypatch, number, cell, error, what, emitted):
    setting(cache=None)
    monkeypatch.setattr(codegen, "choice", lambda _: lambda _: emitted)
    with pytest.raises(error) as caught:
        fails_at(number, error)(X)
    said = notes(caught)
    assert f"in grid cell {cell} of the kernel kernel" in said
    assert what in said and f"{__file__}:" in said and "the Pallas kernel kernel" in said
    assert said.count("in grid cell") == 1


def loop_for_ever(x_ref, o_ref, last_ref):
    at = pl.program_id(0) * 10 + pl.program_id(1)
    start = jnp.where(at == 12, x_ref[...], last_ref[...] - 1.0)
    o_ref[...] = jax.lax.while_loop(lambda c: c[0, 0] >= 0, lambda c: c * 2 - c, start)
    last_ref[...] = o_ref[...] * 0


@pytest.mark.parametrize("passes", [frozenset(), frozenset({"codegen"})])
def test_ctrl_c_in_a_long_loop(shim, setting, passes):
    setting(disabled_passes=passes, cache=None)
    spec = pl.BlockSpec((1, 2), lambda i, j: (i, j))
    call = pl.pallas_call(
        loop_for_ever,
        out_shape=jax.ShapeDtypeStruct((2, 6), jnp.float32),
        grid=(2, 3),
        in_specs=[spec],
        out_specs=spec,
        scratch_shapes=[pltpu.VMEM((1, 2), jnp.float32)],
        interpret=True,
    )
    # A shell's background process ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            jax.jit(call)(np.ones((2, 6), np.float32))
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    said = notes(caught)
    assert "interrupted in" in said and f"{__file__}:" in said
    assert "in grid cell (1, 2) of the kernel loop_for_ever" in said
    assert "the Pallas kernel loop_for_ever" in said


def test_cells_that_run_together():
    """A cell isn't named where it isn't known; what runs together is."""
    from pallas_shim.evaluator.frames import note_cell
    from pallas_shim.evaluator.program import CELLS, PURE, Instruction, Operation

    def said(cells, indices):
        params = {"name": "k"} if cells is None else {"name": "k", CELLS: cells}
        operation = Operation("grid", params, (), (), None, PURE, multiple=True)
        error = Stop()
        note_cell(error, Instruction(operation, (), (), (), None), indices)
        return getattr(error, "__notes__", [])

    assert said(((0, 0, 1), (1, 0, 1)), (3, 0)) == ["in grid cell (3, 0) of the kernel k"]
    assert said(((1, 0, 1),), (3,)) == ["in the grid cells 3 along axis 1 of the kernel k"]
    assert said(((0, 0, 1), (2, 4, 8)), (1, 2)) == [
        "in the grid cells 1 along axis 0, 20 to 27 along axis 2 of the kernel k"
    ]
    assert said(None, (3,)) == []


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_debug_nans_names_the_line_of_the_kernel(shim, jitted, kind):
    """Where JAX itself calls the kernel again for ever."""

    def kernel(x_ref, o_ref, scratch_ref):
        unused = jnp.where(x_ref[...] >= 0, x_ref[...], scratch_ref[...])  # a NaN that is masked
        o_ref[...] = unused + 1
        o_ref[...] = jnp.log(o_ref[...] - jnp.where(pl.program_id(0) == 1, 2.0, 0.0))

    spec = pl.BlockSpec((2, 6), lambda i: (i, 0))
    call = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(X.shape, X.dtype),
        grid=(2,),
        in_specs=[spec],
        out_specs=spec,
        scratch_shapes=[pltpu.VMEM((2, 6), jnp.float32)],
        interpret=True,
    )
    flag = jax.debug_nans if kind == "nan" else jax.debug_infs
    at = kernel.__code__.co_firstlineno + 3
    with flag(True), pytest.raises(FloatingPointError) as caught:
        x = np.full(X.shape, 0.5 if kind == "nan" else 1.0, np.float32)
        jax.block_until_ready((jax.jit(call) if jitted else call)(x))
    assert f"invalid value ({kind}) encountered in log at {__file__}:{at}" in str(caught.value)
    said = notes(caught)
    assert "in grid cell (1,) of the kernel kernel" in said and "the Pallas kernel kernel" in said
    with flag(True):  # and it isn't in the way where there is none
        assert np.isfinite(call(X + 10)).all()


def test_debug_nans_of_an_argument(shim):
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] * 2

    call = pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(X.shape, X.dtype), interpret=True)
    at = kernel.__code__.co_firstlineno + 1
    with jax.debug_nans(True), pytest.raises(FloatingPointError) as caught:
        call(np.full(X.shape, np.nan, np.float32))
    assert f"encountered in get at {__file__}:{at}" in str(caught.value)


def test_debug_nans_outside_of_a_kernel_is_jaxs(shim):
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] * 2

    def f(x):
        call = pl.pallas_call(
            kernel, out_shape=jax.ShapeDtypeStruct(X.shape, X.dtype), interpret=True
        )
        return jnp.log(call(x) - 100)

    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="log"):
        jax.jit(f)(X)
