"""Operators of traced arrays: the same jaxprs as JAX's own, by a shorter way."""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim import jax_compat
from pallas_shim.jax_compat.hooks import operators
from tests.shimmed import shim as shim

NAMES = ("add", "sub", "mul", "truediv", "and_", "or_", "xor", "lshift", "rshift",
         "eq", "ne", "lt", "le", "gt", "ge")  # fmt: skip
DTYPES = ("bool", "int4", "int8", "int32", "uint32", "bfloat16", "float32", "complex64")
NUMBERS = (
    0, -1, 300, 2**24 + 1, 2**31 - 1, 2**31,
    0.5, 0.1, -0.0, math.nan, -math.inf, 3.5e38, True, 1j, np.int32(3),
)  # fmt: skip


@contextlib.contextmanager
def shortened() -> Iterator[None]:
    undo = operators.shorten()
    try:
        yield
    finally:
        undo()


def described(function: Callable[..., Any], *args: Any) -> Any:
    """All of a traced function that anyone could see."""
    closed = jax.make_jaxpr(lambda *args: function(*args))(*args)  # traced each time
    equations = [
        (
            eqn.primitive,
            [
                (str(v.aval), v.aval.weak_type, type(v), repr(getattr(v, "val", None)))
                for v in (*eqn.invars, *eqn.outvars)
            ],
            str(eqn.params),
            str(eqn.source_info.name_stack),
        )
        for eqn in closed.eqns
    ]
    return str(closed), equations, [aval.weak_type for aval in closed.out_avals]


def pairs(x: Any, scalar: Any, others: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    for number in NUMBERS:
        yield from ((x, number), (number, x), (scalar, number))
    for other in (*others, scalar, lax.full_like(x, jnp.asarray(1)), x[0]):
        yield from ((x, other), (other, x), (scalar, other))


ARRAYS = [
    *((jnp.ones((2, 3), dtype), jnp.ones((), dtype)) for dtype in DTYPES),
    *((jnp.full((2, 3), one), jnp.full((), one)) for one in (1, 1.0)),  # of a weak type
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_the_jaxpr_is_that_of_jax(name):
    for i, (x, scalar) in enumerate(ARRAYS):
        errors: list[tuple[int, type]] = []

        def function(*arrays, errors=errors):
            results = []
            for x, y in pairs(arrays[0], arrays[1], arrays[2:]):
                try:
                    results.append(getattr(operator, name)(x, y))
                except (TypeError, ValueError, OverflowError) as error:
                    errors.append((len(results), type(error)))
            return results

        others = (ARRAYS[i], ARRAYS[i - 1], ARRAYS[-1])  # its type, another, and a weak one
        arrays = (x, scalar, *itertools.chain.from_iterable(others))
        expected = described(function, *arrays), errors.copy()
        errors.clear()
        with shortened():
            assert (described(function, *arrays), errors) == expected


CASTS = (
    *(getattr(jnp, name) for name in DTYPES), jnp.bool_, jnp.float64, jnp.int64, np.float32,
    np.int64, np.dtype("int16"), np.dtype("float64"), np.dtype(">i4"), int, float, bool, complex,
    "float32", "i4", "nothing", None, [],
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_casts_are_those_of_jax():
    ways = (
        lambda x, dtype: x.astype(dtype),
        lambda x, dtype: x.astype(dtype=dtype),
        lambda x, dtype: x.astype(dtype, copy=True),
        lambda x, dtype: x.astype(dtype, True),
    )

    def all_casts(*arrays: Any) -> tuple[Any, list[Any]]:
        errors: list[Any] = []

        def function(*arrays):
            results = []
            for x, dtype, way in itertools.product(arrays, CASTS, ways):
                try:
                    results.append(way(x, dtype))
                except (TypeError, ValueError) as error:
                    errors.append((len(results), type(error), str(error)))
            return results

        return described(function, *arrays), errors

    arrays = tuple(itertools.chain.from_iterable(ARRAYS))
    expected = all_casts(*arrays)
    with shortened():
        assert all_casts(*arrays) == expected


def program(x, y):
    @jax.custom_jvp
    def inner(x):
        return x * 2.0 + y

    inner.defjvp(lambda primals, tangents: (inner(*primals), tangents[0] * 2.0))
    each = jax.vmap(lambda x: inner(x) - x[0] * 0.5 + y[0])(x)
    scanned, _ = lax.scan(lambda c, x: (c * x + 1.0, c > x), y[0], x)
    gradient = jax.grad(lambda x: (inner(x) * x / (x + 3.0)).sum())(x)
    return each + gradient + scanned, ((x > y) & (x != 0.5)).astype(jnp.int32)


def sharded(x, y):
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("i")
    return jax.shard_map(
        lambda x, y: x * 2.0 + y * x[0, 0] - 1.0 / x, mesh=mesh, in_specs=spec, out_specs=spec
    )(x, y)


@pytest.mark.parametrize("function", [program, sharded])
def test_transformed_functions(function):
    x = jnp.arange(6.0).reshape(2, 3)
    expected = described(function, x, x)
    with shortened():
        assert described(function, x, x) == expected


def test_explicit_shardings():
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones((2, 3)), jax.sharding.PartitionSpec("i"))
        replicated = jax.device_put(jnp.ones((2, 3)), jax.sharding.PartitionSpec())

        def function(x, y):
            return x * 2.0 + x, x + y, x * y[0, 0]

        expected = described(function, x, replicated)
        with shortened():
            assert described(function, x, replicated) == expected


def test_what_is_no_array_is_refused_as_before():
    def error(other):
        def kernel(x_ref, o_ref, semaphore):
            o_ref[...] = x_ref[0, 0] + (x_ref if other == "ref" else semaphore)

        call = pl.pallas_call(
            kernel,
            out_shape=jax.ShapeDtypeStruct((2, 3), np.float32),
            scratch_shapes=[pltpu.SemaphoreType.REGULAR],
        )
        with pytest.raises(Exception) as info:
            jax.make_jaxpr(call)(jnp.ones((2, 3)))
        return info.type

    expected = [error("ref"), error("semaphore")]
    with shortened():
        assert [error("ref"), error("semaphore")] == expected


def test_it_is_shorter_and_can_be_undone(monkeypatch):
    asked = []
    stock = {}
    for name in ("_add", "_rmul", "_lt"):
        stock[name] = vars(jax.core.ShapedArray)[name]

        def noted(x, y, function=stock[name].__func__, name=name):
            asked.append(name)
            return function(x, y)

        monkeypatch.setattr(jax.core.ShapedArray, name, staticmethod(noted))

    def function(x):
        return 2.0 * x + x < x[0, 0] + 1

    with shortened():
        short = described(function, jnp.ones((2, 3)))
        assert not asked
    assert described(function, jnp.ones((2, 3))) == short
    assert sorted(asked) == ["_add", "_add", "_lt", "_rmul"]


def test_an_equation_has_the_users_line(shim):
    (eqn,) = jax.make_jaxpr(lambda x: x + x)(jnp.ones(3)).eqns
    assert "test_operators.py" in str(jax_compat.user_source(eqn.source_info))
