"""PALLAS_NUMPY_SCOPE=exact: what runs in NumPy has the bits that XLA gives."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax

from pallas_shim.dispatch import exact, left_to_jax
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.jax_compat import jaxprs
from pallas_shim.jax_compat.hooks import jit_entry
from pallas_shim.refusal import Inexact
from tests.oracle import x64
from tests.shimmed import double, only_function, only_row, setting, shim

__all__ = ["setting", "shim"]

SPECIAL = [0.0, -0.0, 1.0, -1.0, 1.5, -2.5, 1e-39, -1e-39, 3e38, np.inf, -np.inf, np.nan, 5e-5, 7.0]
F = np.float32


def floats(dtype: Any = F, seed: int = 0, shape: tuple[int, ...] = (67,)) -> np.ndarray:
    random = np.random.default_rng(seed)
    x = random.standard_normal(shape).astype(dtype)
    x.flat[: len(SPECIAL)] = random.permutation(SPECIAL)
    return x


def whole(dtype: Any = np.int32, seed: int = 0, shape: tuple[int, ...] = (67,)) -> np.ndarray:
    if np.dtype(dtype) == np.bool_:
        return np.random.default_rng(seed).integers(0, 2, shape).astype(bool)
    info = np.iinfo(dtype)
    x = np.random.default_rng(seed).integers(info.min, info.max, shape, dtype, endpoint=True)
    x.flat[:6] = [0, 1, info.min, info.max, 3, info.max - 1]
    return x


def bits(x: Any) -> np.ndarray:
    """Bits to compare: those of NaNs are all the same."""
    x = np.array(x)
    if x.dtype.kind not in "biu":
        x[np.isnan(x)] = np.nan
    return x.view(f"V{x.dtype.itemsize}") if x.ndim else x.reshape(1).view(f"V{x.dtype.itemsize}")


def run(f: Callable[..., Any], *args: Any, wide: bool = False) -> str:
    """Runs ``f`` both ways and compares the bits. How it ran: "exact", "inexact" (the numbers
    leave it to XLA), or "refused"."""
    with x64(wide or any(np.asarray(a).dtype.itemsize == 8 for a in args)):
        jaxpr = jax.make_jaxpr(f)(*args)
        to_run = exact.guarded(jaxpr)
        if to_run is None:
            return "refused"
        try:
            got = Executable(lower(to_run))(*map(np.asarray, args))
        except Inexact:
            return "inexact"
        want = jax.tree.leaves(jax.jit(f)(*args))
    for a, b in zip(got, want, strict=True):
        assert np.array_equal(bits(a), bits(b)), (jaxpr, np.asarray(a), np.asarray(b))
    return "exact"


X, Y, Z = (floats(seed=seed) for seed in range(3))
KEY = jax.random.key(3)

FLOAT_DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
WHOLE_DTYPES = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)

MOVEMENT: dict[str, Callable[[Any], Any]] = {
    "broadcast_in_dim": lambda x: jnp.broadcast_to(x[:, None], (35, 3)),
    "concatenate": lambda x: jnp.concatenate([x, x[3:]]),
    "copy": lambda x: jnp.copy(x),
    "dynamic_slice": lambda x: lax.dynamic_slice(x, (33,), (4,)),
    "dynamic_update_slice": lambda x: lax.dynamic_update_slice(x, x[:3], (34,)),
    "gather": lambda x: x[jnp.array([3, 50, -1])],
    "optimization_barrier": lambda x: lax.optimization_barrier(x),
    "pad": lambda x: lax.pad(x, x[0], [(2, 3, 1)]),
    "reshape": lambda x: x.reshape(7, 5),
    "rev": lambda x: x[::-1],
    "select_n": lambda x: jnp.where(x == x[1], x, x[2]),
    "slice": lambda x: lax.slice(x, (2,), (9,), (2,)),
    "split": lambda x: jnp.split(x, 5),
    "squeeze": lambda x: x[:1].squeeze(),
    "transpose": lambda x: x.reshape(7, 5).T,
    "sort": lambda x: jnp.sort(x),
    "scatter": lambda x: x.at[jnp.array([1, 4])].set(x[:2], unique_indices=True),
    "top_k": lambda x: lax.top_k(x, 4),
    "eq": lambda x: (x == x[::-1], x != x[2], x < x[0], x <= x[3], x > x[::-1], x >= x[1]),
    "argmax": lambda x: (jnp.argmax(x), jnp.argmin(x)),
    "convert_element_type": lambda x: x.astype(bool),
}


@pytest.mark.parametrize("dtype", (*FLOAT_DTYPES, *WHOLE_DTYPES), ids=lambda d: np.dtype(d).name)
def test_movement(dtype):
    x = floats(dtype, shape=(35,)) if dtype in FLOAT_DTYPES else whole(dtype, shape=(35,))
    for name, f in MOVEMENT.items():
        with x64(np.dtype(dtype).itemsize == 8):
            jaxpr = jax.make_jaxpr(f)(x)
        assert name in jaxprs.primitives(jaxpr) and exact.guarded(jaxpr) is not None, name
    # Together, since XLA takes long for each.
    normal = x
    if dtype in FLOAT_DTYPES:
        normal = np.where(abs(x) < ml_dtypes.finfo(dtype).tiny, x.dtype.type(1), x)
    assert run(lambda x: [f(x) for f in MOVEMENT.values()], normal) == "exact"
    subnormal = x if dtype in FLOAT_DTYPES else x[::-1].copy()
    reading = ("argmax", "convert_element_type", "eq", "select_n", "sort", "top_k")
    moved = [f for name, f in MOVEMENT.items() if name not in reading]
    assert run(lambda x: [f(x) for f in moved], subnormal) == "exact"


OF_WHOLE: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: lax.div(x, y),
    "rem": lambda x, y: lax.rem(x, y),
    "max": lambda x, y: jnp.maximum(x, y),
    "min": lambda x, y: jnp.minimum(x, y),
    "and": lambda x, y: x & y,
    "or": lambda x, y: x | y,
    "xor": lambda x, y: x ^ y,
    "not": lambda x, y: ~x,
    "shift_left": lambda x, y: lax.shift_left(x, y),
    "shift_right_arithmetic": lambda x, y: lax.shift_right_arithmetic(x, y),
    "shift_right_logical": lambda x, y: lax.shift_right_logical(x, y),
    "population_count": lambda x, y: lax.population_count(x),
    "clz": lambda x, y: lax.clz(x),
    "abs": lambda x, y: abs(x),
    "sign": lambda x, y: jnp.sign(x),
    "clamp": lambda x, y: lax.clamp(y[0], x, y[1]),
    "integer_pow": lambda x, y: lax.integer_pow(x, 3),
    "cumsum": lambda x, y: jnp.cumsum(x, dtype=x.dtype),
    "cumprod": lambda x, y: jnp.cumprod(x, dtype=x.dtype),
    "cummax": lambda x, y: (lax.cummax(x), lax.cummin(y)),
    "reduce_sum": lambda x, y: jnp.sum(x, dtype=x.dtype),
    "reduce_prod": lambda x, y: jnp.prod(x, dtype=x.dtype),
    "reduce_max": lambda x, y: (jnp.max(x), jnp.min(y)),
    "reduce_and": lambda x, y: (jnp.all(x > y), jnp.any(x == y)),
    "reduce_xor": lambda x, y: lax.reduce_xor(x, (0,)),
    "scatter-add": lambda x, y: x.at[abs(y) % 9].add(y),
    "scatter-max": lambda x, y: (x.at[abs(y) % 9].max(y), x.at[abs(y) % 9].min(y)),
    "dot_general": lambda x, y: jnp.dot(x, y, preferred_element_type=x.dtype),
    "floor_divide": lambda x, y: (x // 3, x % 3),
    "gather": lambda x, y: jnp.take(x, y % 70),
    "bitcast_convert_type": lambda x, y: lax.bitcast_convert_type(x, jnp.uint8),
}


@pytest.mark.parametrize("dtype", WHOLE_DTYPES, ids=lambda d: np.dtype(d).name)
def test_whole_numbers(dtype):
    x, y = whole(dtype, 1), whole(dtype, 2)
    for name, f in OF_WHOLE.items():
        with x64(np.dtype(dtype).itemsize == 8):
            assert exact.guarded(jax.make_jaxpr(f)(x, y)) is not None, name
    assert run(lambda x, y: [f(x, y) for f in OF_WHOLE.values()], x, y) == "exact"


@pytest.mark.parametrize("source", (*WHOLE_DTYPES, *FLOAT_DTYPES), ids=lambda d: np.dtype(d).name)
def test_conversions(source):
    x = floats(source) if source in FLOAT_DTYPES else whole(source)
    if source in FLOAT_DTYPES[2:]:
        x = np.where(abs(x) < ml_dtypes.finfo(source).tiny, x.dtype.type(1), x)
    targets: tuple[Any, ...] = (*WHOLE_DTYPES, *FLOAT_DTYPES)
    if source in WHOLE_DTYPES:
        targets, by_way_of_wider = targets[:-2], targets[-2:]
        for target in by_way_of_wider:
            assert run(lambda x, target=target: lax.convert_element_type(x, target), x) == "refused"

    def convert(x: Any) -> list[Any]:
        return [lax.convert_element_type(x, target) for target in targets]

    assert run(convert, x, wide=True) == "exact"


ON_FLOATS = {
    "one operation": lambda x, y, z: (x + y, x - z, -x, abs(y)),
    "rounding": lambda x, y, z: (jnp.floor(x), jnp.ceil(x), lax.round(y), jnp.isfinite(z)),
    "to even": lambda x, y, z: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN),
    "extrema": lambda x, y, z: (jnp.maximum(x, y), jnp.minimum(y, z), jnp.max(x), jnp.min(-abs(y))),
    "clamp": lambda x, y, z: lax.clamp(x.dtype.type(-1), x, x.dtype.type(1)),
    "sums": lambda x, y, z: (x + y) - z,
    "a chain of sums and others": lambda x, y, z: ((x + y) + z) - (x - y),
    "select": lambda x, y, z: jnp.where(x < y, x - y, z),
    "a quotient": lambda x, y, z: x / y,
    "products": lambda x, y, z: x * y * z,
    "sign": lambda x, y, z: jnp.sign(x),
    "bits": lambda x, y, z: lax.bitcast_convert_type(x - y, jnp.int32),
    "with a constant": lambda x, y, z: (x + 0.1, y - 3, 2 - z),
    "times a constant": lambda x, y, z: (x * 0.3, y * -2, x * 0),
    "comparison": lambda x, y, z: jnp.all(x - y < z),
    "a scan": lambda x, y, z: lax.scan(lambda c, v: (c - v, c + v), x[3], y)[1],
    "a loop": lambda x, y, z: lax.fori_loop(0, 4, lambda i, c: c - x, y),
    "a branch": lambda x, y, z: lax.cond(x[0] < y[0], lambda: x - y, lambda: x + y),
}


@pytest.mark.parametrize("name", ON_FLOATS)
def test_floats(name):
    for dtype in (np.float32, np.float64):
        args = [floats(dtype, seed) for seed in range(3)]
        if name in ("with a constant", "extrema", "clamp", "select"):  # then guards hold
            args = [np.where(abs(x) < 1e-30, dtype(1), x) for x in args]
        if name != "bits" or dtype == np.float32:
            assert run(ON_FLOATS[name], *args) == "exact", dtype


DOUBTFUL = {
    "a product in a sum": lambda x, y, z: x * y + z,
    "the same, moved": lambda x, y, z: (x * y)[::-1] - z,
    "the same, negated": lambda x, y, z: z - -(x * y),
    "a square in a sum": lambda x, y, z: jnp.square(x) + z,
    "a chain of sums": lambda x, y, z: (x + F(0.1)) + F(1000),
    "a chain of products": lambda x, y, z: (x * F(0.1)) * F(0.3),
    "a quotient by a constant": lambda x, y, z: x / F(3),
    "a quotient by a scalar": lambda x, y, z: x / y[3],
    "two quotients": lambda x, y, z: (x / y) / z,
    "a quotient of a quotient": lambda x, y, z: x / (y / z),
    "zero added": lambda x, y, z: x + F(0),
    "times one": lambda x, y, z: x * F(1),
    "an extremum of subnormal numbers": lambda x, y, z: jnp.maximum(x, y),
    "a selection of subnormal numbers": lambda x, y, z: jnp.where(x < y, y, x),
    "rounded and widened": lambda x, y, z: x.astype(jnp.bfloat16).astype(F) - y,
    "in a scan": lambda x, y, z: lax.scan(lambda c, v: (c * F(0.3) + v, c), x[20], y)[1],
    "by turns in a loop": lambda x, y, z: lax.fori_loop(
        0, 4, lambda i, c: (c[1] + z, c[0] * y), (x, y)
    ),
    "a sum of floats": lambda x, y, z: jnp.sum(x),
    "a function": lambda x, y, z: jnp.exp(x),
    "a product of matrices": lambda x, y, z: x @ y,
    "a root": lambda x, y, z: jnp.sqrt(x),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_what_is_doubtful_is_left_to_xla(name):
    assert run(DOUBTFUL[name], X, Y, Z) != "exact"


@pytest.mark.parametrize("f", [
    lambda x, y: x * F(2) + y,
    lambda x, y: x / F(4) + y,
    lambda x, y: (x + F(0.5)) * F(1) + F(0),
    lambda x, y: lax.scan(lambda c, v: (c * F(0.5) + v, c), x[3], y[:9])[1],
])  # fmt: skip
def test_numbers_for_which_all_ways_agree(f):
    x, y = np.arange(1, 68, dtype=F), np.arange(2, 69, dtype=F)[::-1].copy()
    assert run(f, x, y) == "exact"


RANDOM = {
    "key": lambda key: jax.random.key(7),
    "split": lambda key: jax.random.split(key, 5),
    "fold_in": lambda key: jax.random.fold_in(key, 9),
    "bits": lambda key: [jax.random.bits(key, (33,), d) for d in (np.uint8, np.uint16, np.uint32)],
    "uniform": lambda key: jax.random.uniform(key, (33,)),
    "uniform on a side": lambda key: jax.random.uniform(key, (33,), minval=-1),
    "randint": lambda key: jax.random.randint(key, (33,), -5, 1000),
    "permutation": lambda key: jax.random.permutation(key, 33),
    "choice": lambda key: jax.random.choice(key, 33, (9,), replace=False),
    "bernoulli": lambda key: jax.random.bernoulli(key, 0.3, (33,)),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers(shim, setting, name):
    setting(scope="kernels")
    want = jax.tree.leaves(RANDOM[name](KEY))
    jax.clear_caches()
    setting(scope="exact")
    got = jax.tree.leaves(RANDOM[name](KEY))
    assert shim.functions() and {row["rung"] for row in shim.functions()} == {"numpy"}
    for a, b in zip(got, want, strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.array_equal(bits(a), bits(b))


STEPS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "add": lambda x, y, c: x + y,
    "sub": lambda x, y, c: x - y,
    "mul": lambda x, y, c: x * y,
    "div": lambda x, y, c: x / y,
    "add constant": lambda x, y, c: x + c,
    "constant minus": lambda x, y, c: c - x,
    "mul constant": lambda x, y, c: x * c,
    "div constant": lambda x, y, c: x / c,
    "neg": lambda x, y, c: -x,
    "abs": lambda x, y, c: abs(x),
    "max": lambda x, y, c: jnp.maximum(x, y),
    "max constant": lambda x, y, c: jnp.maximum(x, c),
    "select": lambda x, y, c: jnp.where(x < y, y, x),
    "move": lambda x, y, c: x[::-1],
    "broadcast": lambda x, y, c: jnp.broadcast_to(x[4], x.shape),
    "narrow": lambda x, y, c: x.astype(jnp.bfloat16).astype(F),
    "floor": lambda x, y, c: jnp.floor(x),
    "to integers": lambda x, y, c: x.astype(jnp.int32).astype(F),
    "bits": lambda x, y, c: lax.bitcast_convert_type(
        lax.bitcast_convert_type(x, jnp.uint32) ^ 1, F
    ),
    "scan": lambda x, y, c: lax.scan(lambda k, v: (k + v, k - y[0]), x[0], x)[1],
}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(STEPS)), st.integers(0, 9), st.integers(0, 9),
            st.sampled_from([0.0, 1.0, 2.0, 0.1, -3.0, 1e-39, 0.25]),
        ),
        min_size=1, max_size=6,
    ),
    st.integers(0, 1000),
    st.booleans(),
)  # fmt: skip
@example([("add", 0, 0, 0.0), ("max constant", 3, 0, 1e-39)], 0, False)
@settings(max_examples=40, deadline=None)
def test_programs(steps, seed, small):
    def f(x: Any, y: Any, i: Any) -> Any:
        values = [x, y, i.astype(F)]
        for step, a, b, constant in steps:
            values.append(
                STEPS[step](values[a % len(values)], values[b % len(values)], F(constant))
            )
        return values[3:]

    x, y = floats(seed=seed, shape=(19,)), floats(seed=seed + 1, shape=(19,))
    if small:  # numbers for which guards hold
        x, y = (np.nan_to_num(np.round(v.clip(-9, 9))).astype(F) + F(10) for v in (x, y))
    run(f, x, y, whole(seed=seed, shape=(19,)))


# -- in jit ---------------------------------------------------------------------------------------


def test_other_functions_are_xlas(shim, setting):
    setting(scope="exact")
    assert np.allclose(jax.jit(jnp.tanh)(X[20:]), np.tanh(X[20:]), equal_nan=True)
    f = jax.jit(lambda x: x / F(3))
    with left_to_jax():
        want = f(X)
    jax.clear_caches()
    assert np.array_equal(bits(f(X)), bits(want)) and np.array_equal(bits(f(X)), bits(want))
    assert shim.functions() == []


def test_functions_with_kernels_are_run_as_before(shim, setting):
    setting(scope="exact")
    assert np.array_equal(jax.jit(double)(X[20:]), 2 * X[20:])
    assert only_row()["name"] == "double_kernel"


def until_xla_has_it(f: Callable[..., Any], x: np.ndarray, want: np.ndarray) -> None:
    until, calls = time.monotonic() + 100, 0
    while True:
        assert time.monotonic() < until and np.array_equal(f(x), want)
        if only_function()["calls"] == calls:
            return
        calls = only_function()["calls"]


def test_xla_takes_over_without_a_wait(shim, setting):
    setting(scope="exact")
    x = whole(shape=(1 << 14,))
    until_xla_has_it(jax.jit(lambda x: jnp.sort(x ^ 5)), x, np.sort(x ^ 5))


def test_a_compilation_that_fails_is_the_next_calls(shim, setting, monkeypatch):
    setting(scope="exact")

    def fail(*args: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(jit_entry, "run", fail)
    x = whole(shape=(1 << 14,))
    until_xla_has_it(jax.jit(lambda x: jnp.sort(x ^ 6)), x, np.sort(x ^ 6))


def test_a_value_that_xla_still_computes_is_not_waited_for(shim, setting):
    setting(scope="exact")
    y = jax.jit(lambda x: lax.fori_loop(0, 300, lambda i, x: jnp.tanh(x @ x), x))(
        np.ones((500, 500), F)
    )
    last = jax.jit(lambda y: y[::-1])(y)
    if not y.is_ready():  # so it wasn't when it was asked
        assert shim.functions() == []
    assert np.array_equal(last, y[::-1], equal_nan=True)


def test_gradients_donation_and_static_arguments(shim, setting):
    setting(scope="exact")
    x = jnp.arange(8, dtype=jnp.int32)
    f = jax.jit(lambda x, n: x * n, donate_argnums=0, static_argnums=1)
    assert np.array_equal(f(x, 3), np.arange(8) * 3) and x.is_deleted()
    y = jnp.arange(4.0)
    assert np.array_equal(jax.grad(lambda y: (y[::-1] * 2)[1])(y), [0, 0, 2, 0])
