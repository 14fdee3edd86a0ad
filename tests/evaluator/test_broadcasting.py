"""Operations on matrices and columns: for which the buffers are short, and that no bit changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.experimental import pallas as pl

from pallas_shim.evaluator import broadcasting, codegen
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.floating import ROW_BUFFER, as_xla, with_row_buffers
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((64, ROW_BUFFER)).astype(np.float32)


def short_buffers(f, *args, monkeypatch, emits=codegen.pays):
    """How many instructions have short buffers; asserts that its results are the same without."""
    asked = []
    was = broadcasting.with_row_buffers

    def noted(fn):
        asked.append(fn)
        return was(fn)

    program = optimise(lower(jax.make_jaxpr(f)(*args)))
    monkeypatch.setattr(broadcasting, "with_row_buffers", noted)
    got = Executable(program, emits)(*args)
    monkeypatch.setattr(broadcasting, "with_row_buffers", lambda fn: fn)
    want = Executable(program, emits)(*args)
    assert [x.tobytes() for x in got] == [x.tobytes() for x in want]
    return len(asked)


def softmax(x):
    weights = jnp.exp(x - jnp.max(x, axis=1, keepdims=True))
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def test_a_softmax(monkeypatch):
    assert short_buffers(softmax, ROWS, monkeypatch=monkeypatch) == 2


@pytest.mark.parametrize("emits", (lambda loop: True, lambda loop: False))
def test_in_loops_and_in_place(emits, monkeypatch):
    def kernel(x, out):
        @pl.loop(0, 3)
        def _(i):
            x_i = x[i] - jnp.max(x[i], axis=1, keepdims=True)
            out[...] = (x_i * out[:, :1]) + x_i

    f = pl.pallas_call(kernel, jax.ShapeDtypeStruct(ROWS.shape, ROWS.dtype), interpret=True)
    x = np.stack([ROWS, -ROWS, ROWS * 2])
    assert short_buffers(f, x, monkeypatch=monkeypatch, emits=emits) >= 1


@pytest.mark.parametrize(
    "x, y",
    [
        (ROWS, ROWS),
        (ROWS, ROWS[:1]),
        (ROWS, ROWS[:1, :1]),
        (ROWS[:, :-1], ROWS[:, :1]),
        (ROWS[:8], ROWS[:8, :1]),
    ],
    ids=("no broadcast", "a row", "a number", "short rows", "few numbers"),
)
def test_others_have_long_ones(x, y, monkeypatch):
    assert short_buffers(jnp.add, x, y, monkeypatch=monkeypatch) == 0
    wider = RNG.standard_normal(ROWS.shape).astype(np.float32)
    assert short_buffers(jnp.add, wider, ROWS[:, :1], monkeypatch=monkeypatch) == 1


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from((lax.add, lax.sub, lax.mul, lax.div, lax.eq, lax.lt, lax.rem)),
    st.sampled_from(("float32", "int32", "int16", "uint8")),
    st.booleans(),
    st.integers(ROW_BUFFER, 3 * ROW_BUFFER),
    st.integers(1, 5),
)
def test_any_operation(operation, dtype, swapped, length, rank):
    lead = (2,) * (rank - 1) + (64,)
    x = RNG.integers(1, 100, (*lead, length)).astype(dtype)
    y = RNG.integers(1, 9, (*lead, 1)).astype(dtype)
    x, y = (y, x) if swapped else (x, y)

    def f(x, y):
        return operation(*jnp.broadcast_arrays(x, y))

    with pytest.MonkeyPatch.context() as monkeypatch:
        short_buffers(f, x, y, monkeypatch=monkeypatch)


def test_the_size_of_buffers_comes_back():
    def run():
        outer = np.getbufsize()
        assert with_row_buffers(np.getbufsize)() == ROW_BUFFER
        with pytest.raises(ZeroDivisionError):
            with_row_buffers(lambda: 1 // 0)()
        assert np.getbufsize() == outer != ROW_BUFFER

    as_xla(run)
