"""Rounds of loops at once: what is, what must not be, and that nothing else changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.experimental import pallas as pl

from pallas_shim.evaluator import batched_ops
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise
from pallas_shim.evaluator.passes.common_subexpressions import share_common_subexpressions
from pallas_shim.evaluator.passes.constant_folding import fold_constants
from pallas_shim.evaluator.passes.dead_code import remove_dead_code
from pallas_shim.evaluator.passes.grid import grid_batching
from pallas_shim.evaluator.passes.grid.grid_batching import batch_grids

from ..programs import names

RANDOM = np.random.default_rng(0)
X = RANDOM.integers(-50, 50, 40).astype(np.float32) / 4  # XLA may add products exactly
AT = RANDOM.integers(0, 8, 40).astype(np.int32)
ANYWHERE = np.array([-2147483648, -9, -8, -1, 0, 7, 8, 2147483647] * 5, np.int32)


def looped(step, rounds, *args, out=(8,), dtype=np.float32, **options):
    """Which instructions are left of a loop of ``step(i, *refs)`` on an output that starts as
    ones; asserts that its result is JAX's, and the same without the pass."""

    def kernel(*refs):
        refs[-1][...] = jnp.ones_like(refs[-1])
        lax.fori_loop(0, rounds, lambda i, c: step(i, *refs) or c, 0)

    f = pl.pallas_call(kernel, jax.ShapeDtypeStruct(out, dtype), interpret=True, **options)
    program = share_common_subexpressions(remove_dead_code(lower(jax.make_jaxpr(f)(*args))))
    program = fold_constants(program)
    after = batch_grids(program)
    want = np.asarray(jax.jit(f)(*args))
    for other in (program, after, optimise(program), optimise(program, skip={"grid_batching"})):
        (got,) = Executable(other)(*args)
        assert got.dtype == want.dtype and got.tobytes() == want.tobytes()
    return names(after)


# -- accumulations ----------------------------------------------------------------------------


@pytest.mark.parametrize("at", [AT, ANYWHERE, AT.astype(np.uint32), AT.astype(np.int8)])
@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.int8, np.uint16])
def test_elements_counted(at, dtype):
    def step(i, at, x, out):
        out[at[i]] += x[i] * 3

    left = looped(step, 40, at, (100 * X).astype(dtype), dtype=dtype)
    assert "scan" not in left and "accumulate" in left


def test_floats_are_added_in_order():
    """Sums that depend on it, NaNs, infinities, and zeros with a sign."""
    x = np.array([1e8, 1, -1e8, 1e-8, np.inf, -0.0, 3e38, 3e38, 0.1, np.nan] * 4, np.float32)

    def step(i, at, x, out):
        out[at[i]] = out[at[i]] - x[i]

    assert "accumulate" in looped(step, 40, AT, x)


@pytest.mark.parametrize(
    "step",
    [
        lambda i, at, x, out: _store(out, at[i] % 2, out[at[i] % 2] + x[i]),
        lambda i, at, x, out: _store(out, (slice(None), at[i]), out[:, at[i]] + x[i]),
        lambda i, at, x, out: _store(out, (at[i] % 2, at[39 - i]), out[at[i] % 2, at[39 - i]] * -2),
        lambda i, at, x, out: _store(out, (jnp.int32(1), at[i]), out[jnp.int32(1), at[i]] + x[i]),
        lambda i, at, x, out: _store(out, (1, 3), out[1, 3] + x[i]),
        lambda i, at, x, out: _store(out, (slice(0, 1), at[i]), out[0:1, at[i]] + x[at[i]]),
        lambda i, at, x, out: _store(out, ..., out[...] + x[i]),
        lambda i, at, x, out: _store(out, (0, pl.ds(1, 3)), out[0, pl.ds(1, 3)] + x[i]),
    ],
)  # fmt: skip
def test_parts_of_any_form(step):
    left = looped(step, 40, AT, X, out=(2, 8))
    assert "scan" not in left and "accumulate" in left


@pytest.mark.parametrize("waves", [True, False])
@pytest.mark.parametrize(
    ("step", "shape"),
    [
        (lambda i, at, x, out: _store(out, at[i], out[at[i]] - x[i]), (8, 5)),
        (lambda i, at, x, out: _store(out, at[i], out[at[i]] - x[0]), (8, 5)),
        (lambda i, at, x, out: _store(out, (at[i], slice(None), at[i] // 2),
                                      out[at[i], :, at[i] // 2] + x[i]), (8, 5, 4)),
    ],
)  # fmt: skip
def test_rows_are_added_in_order(monkeypatch, waves, step, shape):
    """Whether in waves of different places, or one after the other. Some places have many rounds,
    some have none."""
    monkeypatch.setattr(batched_ops, "_ROUNDS_OF_A_WAVE", 0 if waves else 1000)
    x = np.array([1e8, 1, -1e8, 1e-8, np.inf, -0.0, 3e38, 3e38, 0.1, np.nan] * 20, np.float32)
    at = np.array([3, 3, 1, 7, 3, 0, 1, 3, 7, 5] * 4, np.int32)
    assert "accumulate" in looped(step, 40, at, x.reshape(40, 5), out=shape)


def test_waves_are_for_rounds_at_many_places(monkeypatch):
    found = []
    in_waves = batched_ops._in_waves

    def noted(*args):
        found.append(in_waves(*args))
        return found[-1]

    monkeypatch.setattr(batched_ops, "_in_waves", noted)

    def step(i, at, x, out):
        out[at[i]] += x[i]

    x = np.arange(120, dtype=np.float32).reshape(40, 3)
    for at in (np.arange(40, dtype=np.int32), np.zeros(40, np.int32)):
        found.clear()
        looped(step, 40, at, x, out=(40, 3))
        assert set(found) == {bool(at.any())}


@pytest.mark.parametrize(
    "function", [jnp.minimum, jnp.maximum, jnp.bitwise_and, jnp.bitwise_or, jnp.bitwise_xor]
)
def test_functions_of_integers(function):
    def step(i, at, out):
        out[at[i]] = function(at[i] * 5 - 7, out[at[i]])

    assert "accumulate" in looped(step, 40, AT, dtype=np.int32)


def test_a_condition_in_the_value():
    def step(i, at, x, out):
        out[at[i]] += jnp.where(x[i] > 0, x[i] * x[39 - i], 0.5)

    assert "scan" not in looped(step, 40, AT, X)


def test_chunks(monkeypatch):
    monkeypatch.setattr(grid_batching, "_LARGEST_STACK", 7 * 4)

    def step(i, at, x, out):
        out[at[i]] += x[i]

    assert "accumulate" in looped(step, 40, AT, X)
    assert "accumulate" in looped(step, 36, AT, X)  # one is left over


def test_a_scan_in_a_grid():
    """Of cells that add to one block, in order."""

    def step(i, at, x, out):
        out[at[i]] += x[i]

    left = looped(step, 40, AT, X, grid=(3,))
    assert "scan" not in left and "grid" in left


# -- what only looks like one -------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    {
        "the old value is used elsewhere": lambda i, at, x, out: _store(
            out, at[i], out[at[i]] + jnp.round(out[at[i]] / 4)
        ),
        "another place": lambda i, at, x, out: _store(out, at[i], out[at[39 - i]] + x[i]),
        "a place that is looked up in it": lambda i, at, x, out: _store(
            out, out[at[i]].astype(jnp.int32), out[out[at[i]].astype(jnp.int32)] + 1
        ),
        "a value that is looked up in it": lambda i, at, x, out: _store(
            out, at[i], out[at[i]] + out[0]
        ),
        "read afterwards": lambda i, at, x, out: _store(out, at[i], out[at[i]] + 1)
        or _store(out, 0, out[1]),
        "the wrong way round": lambda i, at, x, out: _store(out, at[i], x[i] - out[at[i]]),
        "only sometimes": lambda i, at, x, out: pl.when(x[i] > 0)(
            lambda: _store(out, at[i], out[at[i]] + 1)
        ),
        "a slice that moves": lambda i, at, x, out: _store(
            out, pl.ds(at[i] % 6, 2), out[pl.ds(at[i] % 6, 2)] + x[i]
        ),
        "stored twice": lambda i, at, x, out: _store(out, at[i], x[i]),
    }.values(),
)
def test_left_alone(step):
    assert "scan" in looped(step, 40, AT, X)


def _store(ref, at, value):
    ref[at] = value


def test_an_alias_that_is_read():
    """Both operands of the call are one buffer for the interpreter of checked memory only."""

    def kernel(x, at, out):
        def step(i, carry):
            out[at[i]] += x[at[39 - i]]
            return carry

        lax.fori_loop(0, 40, step, 0)

    f = pl.pallas_call(
        kernel, jax.ShapeDtypeStruct((8,), np.float32), input_output_aliases={0: 0},
        interpret=True,
    )  # fmt: skip
    want = np.asarray(jax.jit(f)(X[:8], AT))
    (got,) = Executable(optimise(lower(jax.make_jaxpr(f)(X[:8], AT))))(X[:8], AT)
    assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_types_that_are_not_accumulated(dtype):
    """They are rounded in another way than by one call of a ufunc."""

    def step(i, at, x, out):
        out[at[i]] += x[i]

    assert "scan" in looped(step, 40, AT, X.astype(dtype), dtype=dtype)


# -- rounds that don't meet ---------------------------------------------------------------------


def test_an_element_a_round():
    def step(i, x, out):
        out[i] = x[39 - i] * 2 + out[i]

    assert "scan" not in looped(step, 40, X, out=(40,))


def test_rows():
    def step(i, x, out):
        out[i] = jnp.cumsum(x[i]) - x[9 - i]

    assert "scan" not in looped(step, 10, X.reshape(10, 4), out=(10, 4))


@pytest.mark.parametrize("places", ["permuted", "shifted", "before"])
def test_rounds_that_meet(places):
    def step(i, at, x, out):
        if places == "permuted":  # only the run knows that they don't
            out[at[i]] = x[i]
        elif places == "shifted":
            out[jnp.minimum(i + 1, 39)] = x[i]
        else:
            out[i] = out[jnp.maximum(i - 1, 0)] + x[i]

    at = RANDOM.permutation(40).astype(np.int32)
    assert "scan" in looped(step, 40, at, X, out=(40,))


def test_counters_of_every_kind():
    """They may start anywhere, go backwards, wrap around, and are what they are afterwards."""

    def kernel(x, out, last):
        def step(carry, _):
            i, down, small = carry
            out[i] = x[down] + small.astype(jnp.float32)
            return (i + 1, down - 2, small + jnp.int8(50)), None

        start = jnp.int32(3), jnp.int32(39), jnp.int8(100)
        i, down, small = lax.scan(step, start, None, length=18)[0]
        last[0], last[1], last[2] = i, down, small.astype(jnp.int32)

    shapes = jax.ShapeDtypeStruct((24,), np.float32), jax.ShapeDtypeStruct((3,), np.int32)

    def f(x):
        out, last = pl.pallas_call(kernel, shapes, interpret=True)(x)
        return out[3:21], last

    program = remove_dead_code(lower(jax.make_jaxpr(f)(X)))
    want = jax.jit(f)(X)
    for other in (batch_grids(program), optimise(program)):
        for a, b in zip(Executable(other)(X), want, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_few_rounds(rounds):
    def step(i, at, x, out):
        out[at[i]] += x[i]

    looped(step, rounds, AT, X)


# -- any loop -----------------------------------------------------------------------------------


_PLACES = (
    lambda i, at, a: i % 8,
    lambda i, at, a: at[i],
    lambda i, at, a: at[15 - i] - 4,
    lambda i, at, a: i // 2,
    lambda i, at, a: 3,
    lambda i, at, a: a[at[i]],
    lambda i, at, a: a[i % 8],
)
_STATEMENTS = ("set", "add", "sub", "add other", "max", "add when")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 7)] * 5), min_size=1, max_size=4), st.integers(0, 16))
def test_any_loop(statements, rounds):
    """Statements on two buffers, each at a place and with a value that may be of either."""

    def kernel(at, a, b):
        a[...] = jnp.arange(8, dtype=jnp.int32)
        b[...] = jnp.arange(8, dtype=jnp.int32) * 3 - 7

        def step(i, carry):
            for target, kind, place, source, other in statements:
                ref = (a, b)[target % 2]
                where = _PLACES[place % len(_PLACES)](i, at, a)
                from_where = _PLACES[other % len(_PLACES)](i, at, b)
                value = (at[i] * 3, i + 1, a[from_where], b[from_where])[source % 4]
                match _STATEMENTS[kind % len(_STATEMENTS)]:
                    case "set":
                        ref[where] = value
                    case "add":
                        ref[where] += value
                    case "sub":
                        ref[where] = ref[where] - value
                    case "add other":
                        ref[where] = ref[from_where] + value
                    case "max":
                        ref[where] = jnp.maximum(value, ref[where])
                    case _:

                        @pl.when(value % 2 == 0)
                        def _():
                            ref[where] += value  # noqa: B023

            return carry

        lax.fori_loop(0, rounds, step, 0)

    shape = jax.ShapeDtypeStruct((8,), np.int32)
    f = pl.pallas_call(kernel, (shape, shape), interpret=True)
    program = remove_dead_code(lower(jax.make_jaxpr(f)(AT[:16])))
    want = [x.tobytes() for x in Executable(program)(AT[:16])]
    for other in (batch_grids(program), optimise(program)):
        assert [x.tobytes() for x in Executable(other)(AT[:16])] == want
