"""Recurrences between loops whose rounds run at once: what is, what must not be, and that nothing
else changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.experimental import pallas as pl

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise
from pallas_shim.evaluator.passes.common_subexpressions import share_common_subexpressions
from pallas_shim.evaluator.passes.constant_folding import fold_constants
from pallas_shim.evaluator.passes.dead_code import remove_dead_code
from pallas_shim.evaluator.passes.grid import loop_distribution
from pallas_shim.evaluator.passes.grid.grid_batching import batch_grids
from pallas_shim.evaluator.passes.grid.loop_distribution import distribute_loops

ROUNDS = 24
X, Y = np.random.default_rng(0).standard_normal((2, ROUNDS, 4, 8)).astype(np.float32)


def recurring(step, *args, rounds=ROUNDS, dtype=np.float32, out=(ROUNDS, 4, 8)):
    """The names of what is left in a scan of ``state = step(t, state, *refs)``, whose last state is
    the second result; asserts that its results are the same without the pass."""

    def kernel(*refs):
        refs[-2][...] = jnp.ones_like(refs[-2])
        start = jnp.full(refs[-1].shape, 2, refs[-1].dtype)
        refs[-1][...] = lax.fori_loop(0, rounds, lambda t, s: step(t, s, *refs[:-1]), start)

    shapes = (jax.ShapeDtypeStruct(out, dtype), jax.ShapeDtypeStruct(X.shape[1:], dtype))
    f = pl.pallas_call(kernel, shapes, interpret=True)
    program = share_common_subexpressions(remove_dead_code(lower(jax.make_jaxpr(f)(*args))))
    program = batch_grids(fold_constants(program))
    after = distribute_loops(program)
    want = [x.tobytes() for x in Executable(program)(*args)]
    for other in (after, optimise(program), optimise(program, skip={"loop_distribution"})):
        assert [x.tobytes() for x in Executable(other)(*args)] == want
    return sorted(
        inner.name
        for scan in after.top.walk()
        if scan.name == "scan"
        for inner in scan.regions[0].body
        if inner.name not in ("get", "store")
        and not inner.operation.view
        and inner.outs[0].type.shape
    )


def ssm(t, state, x, y, out):
    state = jnp.exp(-jnp.abs(x[t])) * state + x[t] * y[t] * 2
    out[t] = jnp.tanh(state * y[t]) + jnp.sum(state, axis=1, keepdims=True)
    return state


def test_what_is_no_part_of_the_recurrence_runs_at_once():
    assert recurring(ssm, X, Y) == ["add", "mul"]


@pytest.mark.parametrize("dtype", (jnp.bfloat16, np.int32))
def test_other_types(dtype):
    def step(t, state, x, y, out):
        changed = (x[t] - y[t]) * x[t] + 3
        out[t] = (state + x[t]) * y[t] - state
        return state * changed

    x, y = (np.asarray(a * 4).astype(dtype) for a in (X, Y))
    assert recurring(step, x, y, dtype=dtype) == ["mul"]


def test_a_state_is_used_before_it_changes():
    def step(t, state, x, y, out):
        out[ROUNDS - 1 - t] = jnp.sin(state * y[t]) + 1
        return state + jnp.exp(x[t] * 0.5) * y[t]

    assert recurring(step, X, Y) == ["add"]


def test_rows_at_places_that_the_round_computes():
    def step(t, state, x, y, out):
        out[t] = jnp.exp(x[(t * 5) % ROUNDS] * state) * 2 + state
        return jnp.maximum(state, jnp.cos(y[(t + 7) % ROUNDS] * 2 + 1))

    assert recurring(step, X, Y) == ["max"]


def test_a_last_state_alone():
    def step(t, state, x, y, out):
        return state * jnp.exp(-jnp.abs(x[t] * y[t]) - 1)

    assert recurring(step, X, Y) == ["mul"]


@pytest.mark.parametrize(
    "rounds, largest, buffers",
    [(7, 1 << 15, 1 << 22), (ROUNDS, 4 * 8 * 4 - 1, 1 << 22), (ROUNDS, 1 << 15, 3 * X.nbytes - 1)],
    ids=("few rounds", "large arrays", "large buffers"),
)
def test_loops_in_which_it_would_not_pay(rounds, largest, buffers, monkeypatch):
    monkeypatch.setattr(loop_distribution, "_LARGEST_ARRAY", largest)
    monkeypatch.setattr(loop_distribution, "_LARGEST_BUFFERS", buffers)
    assert "exp" in recurring(ssm, X, Y, rounds=rounds)


def test_a_recurrence_is_all():
    def step(t, state, x, y, out):
        out[t] = state = state * x[t] + y[t]
        return state

    assert recurring(step, X, Y) == ["add", "mul"]


def reads_what_it_stored(t, state, x, y, out):
    state = state + jnp.exp(-jnp.abs(out[lax.max(t - 1, 0)] * x[t]))
    out[t] = jnp.tanh(state * y[t]) + 1
    return state


def stores_twice(t, state, x, y, out):
    out[t] = jnp.exp(x[t] * 2) + 1
    out[ROUNDS - 1 - t] = jnp.tanh(state * y[t]) + 1
    return state + jnp.exp(x[t] * 0.5 - 1)


def stores_at_one_place(t, state, x, y, out):
    out[t % 5] = jnp.exp(state * 0.125) + x[t] * 2
    return state + jnp.exp(x[t] * 0.5 - 1)


@pytest.mark.parametrize("step", [reads_what_it_stored, stores_twice, stores_at_one_place])
def test_stores_in_order(step):
    assert "exp" in recurring(step, X, Y)


def test_a_loop_in_each_cell_of_a_grid():
    """Which can't run together, since each cell goes on with the state of the one before."""

    def kernel(x, y, out, state):
        @pl.when(pl.program_id(0) == 0)
        def _():
            state[...] = jnp.ones_like(state)

        step = lambda t, s: ssm(t, s, x, y, out)  # noqa: E731
        state[...] = lax.fori_loop(0, ROUNDS // 2, step, state[...])

    spec = pl.BlockSpec((ROUNDS // 2, 4, 8), lambda i: (i, 0, 0))
    whole = pl.BlockSpec((4, 8), lambda i: (0, 0))
    shapes = (jax.ShapeDtypeStruct(X.shape, X.dtype), jax.ShapeDtypeStruct((4, 8), X.dtype))
    f = pl.pallas_call(kernel, shapes, grid=(2,), in_specs=[spec, spec], out_specs=(spec, whole),
                       interpret=True)  # fmt: skip
    program = lower(jax.make_jaxpr(f)(X, Y))
    after = optimise(program)
    scans = [i for i in after.top.walk() if i.name == "scan"]
    assert scans and not any(i.name == "exp" for scan in scans for i in scan.regions[0].body)
    want = [x.tobytes() for x in Executable(program)(X, Y)]
    assert [x.tobytes() for x in Executable(after)(X, Y)] == want


_UNARY = (jnp.negative, jnp.abs, jnp.tanh, jnp.floor, lambda v: jnp.sum(v, 0, keepdims=True) + v)
_BINARY = (jnp.add, jnp.subtract, jnp.multiply, jnp.maximum)
_CHOICE = st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))


@settings(max_examples=25, deadline=None)
@given(st.lists(_CHOICE, min_size=4, max_size=9), st.integers(0, 99), st.booleans())
def test_random_recurrences(choices, carried, late):
    """Each value is computed from some before it. The last one is stored, and another carried."""

    def step(t, state, x, y, out):
        values = [x[t], y[ROUNDS - 1 - t], state, x[(t * 7) % ROUNDS]]
        for kind, one, other in choices:
            if kind % 3 == 0:
                values.append(_UNARY[kind % len(_UNARY)](values[one % len(values)]))
            else:
                pair = values[one % len(values)], values[other % len(values)]
                values.append(_BINARY[kind % len(_BINARY)](*pair))
        if late:
            out[t] = values[-1]
        return jnp.clip(values[4 + carried % (len(values) - 4)], -100, 100)

    recurring(step, X, Y)
