"""Operators of traced arrays: the same jaxprs as JAX's own, by a shorter way."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pallas_shim import jax_compat
from pallas_shim.jax_compat import operators
from tests.shimmed import shim as shim

NAMES = ("add", "sub", "mul", "truediv", "and_", "or_", "xor", "lshift", "rshift",
         "eq", "ne", "lt", "le", "gt", "ge")  # fmt: skip
DTYPES = ("bool", "int8", "int32", "uint32", "float8_e4m3fn", "bfloat16", "float32", "complex64")
NUMBERS = (
    0, -1, 300, 2**24 + 1, 2**31 - 1, 2**31,
    0.5, 0.1, -0.0, math.nan, -math.inf, 65505.0, 3.5e38, True, np.int32(3),
)  # fmt: skip


def described(function: Callable[..., Any], *args: Any) -> Any:
    """All of a traced function that anyone could see, or the error that it raises."""
    try:
        closed = jax.make_jaxpr(lambda *args: function(*args))(*args)  # traced each time
    except Exception as error:
        return type(error), str(error)
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


def cases(apply: Callable[..., Any]) -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
    for dtype in DTYPES:
        x = jnp.ones((2, 3), dtype)
        for number in NUMBERS:
            yield lambda x, n=number: apply(x, n), (x,)
            yield lambda x, n=number: apply(n, x), (x,)
        yield lambda x: apply(x, lax.full_like(x, jnp.asarray(1))), (x,)
        yield lambda x, y: apply(x, y), (x, x[0])
        yield lambda x: apply(x, 1), (x[0, 0],)
        yield lambda x, y: apply(y, x), (x, x[0, 0])
        for other in DTYPES:
            yield lambda x, y: apply(x, y), (x, jnp.ones((2, 3), other))
            yield lambda x, y: apply(x, y), (x, jnp.ones((), other))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_the_jaxpr_is_that_of_jax(name):
    every = list(cases(getattr(operator, name)))
    expected = [described(function, *args) for function, args in every]
    undo = operators.shorten()
    try:
        found = [described(function, *args) for function, args in every]
    finally:
        undo()
    assert found == expected


def program(x, y):
    @jax.custom_jvp
    def inner(x):
        return x * 2.0 + y

    inner.defjvp(lambda primals, tangents: (inner(*primals), tangents[0] * 2.0))
    each = jax.vmap(lambda x: inner(x) - x[0] * 0.5 + y[0])(x)
    scanned, _ = lax.scan(lambda c, x: (c * x + 1.0, c > x), y[0], x)
    gradient = jax.grad(lambda x: (inner(x) * x / (x + 3.0)).sum())(x)
    return each + gradient + scanned, (x > y) & (x != 0.5)


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
    undo = operators.shorten()
    try:
        assert described(function, x, x) == expected
    finally:
        undo()
    assert not isinstance(expected[0], type), expected


def test_explicit_shardings():
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones((2, 3)), jax.sharding.PartitionSpec("i"))
        replicated = jax.device_put(jnp.ones((2, 3)), jax.sharding.PartitionSpec())

        def function(x, y):
            return x * 2.0 + x, x + y, x * y[0, 0]

        expected = described(function, x, replicated)
        undo = operators.shorten()
        try:
            assert described(function, x, replicated) == expected
        finally:
            undo()


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

    undo = operators.shorten()
    try:
        short = described(function, jnp.ones((2, 3)))
        assert not asked
    finally:
        undo()
    assert described(function, jnp.ones((2, 3))) == short
    assert sorted(asked) == ["_add", "_add", "_lt", "_rmul"]


def test_an_equation_has_the_users_line(shim):
    (eqn,) = jax.make_jaxpr(lambda x: x + x)(jnp.ones(3)).eqns
    assert "test_operators.py" in str(jax_compat.user_source(eqn.source_info))
