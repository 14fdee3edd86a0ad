"""Equations added by the shorter way: the same jaxprs as by JAX's own."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl

from pallas_shim.jax_compat import jaxprs
from pallas_shim.jax_compat.hooks import staging
from tests.jax_compat.hooks.test_operators import described
from tests.shimmed import shim as shim


@contextlib.contextmanager
def shortened() -> Iterator[list[Any]]:
    """Gives the primitives that are added by the shorter way, one for each equation."""
    added: list[Any] = []
    ways = staging._ways()

    def note(way: Any) -> Any:
        def noted(trace: Any, primitive: Any, tracers: Any, params: Any) -> Any:
            found = way(trace, primitive, tracers, params)
            if found is not None:
                added.append(primitive)
            return found

        return noted

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(staging, "_ways", lambda: {p: note(way) for p, way in ways.items()})
        undo = staging.shorten()
    try:
        yield added
    finally:
        undo()


@jax.jit
def called(x, y):
    return x + y, y


@partial(jax.jit, inline=True)
def inlined(x):
    return x * 2


@jax.jit
def printing(x):
    jax.debug.print("{}", x)
    return x


TABLE = np.arange(12.0, dtype=np.float32).reshape(3, 4)


@jax.jit
def capturing(x):
    return x + TABLE


def rank_zero(x):
    return x[0, 0]


FUNCTIONS = {
    "numbers": lambda x: lax.add(x, np.float32(2)) * np.float32(3),
    "numbers alone": lambda x: lax.add(np.float32(1), np.float32(2)),
    "python numbers": lambda x: (lax.add(x, 2.0), lax.mul(x, 3.0)),
    "an array of NumPy": lambda x: lax.add(x, TABLE),
    "an array of JAX": lambda x: lax.add(x, jnp.asarray(TABLE)),
    "a weak type": lambda x: lax.add(lax.full((), 1.0), rank_zero(x)),
    "functions": lambda x: [lax.exp(x), lax.sin(x), lax.sign(x), lax.is_finite(x)],
    "comparisons": lambda x: [lax.gt(x, x), lax.select(lax.lt(x, x), x, x)],
    "casts": lambda x: [
        lax.convert_element_type(x, t) for t in (jnp.int32, jnp.float32, jnp.bfloat16, bool)
    ],
    "a cast of a constant": lambda x: (
        x + lax.convert_element_type(jnp.asarray(3, jnp.int32), jnp.float32)
    ),
    "a cast to a weak type": lambda x: lax.convert_element_type_p.bind(
        x, new_dtype=np.dtype("float32"), weak_type=True, sharding=None
    ),
    "calls": lambda x: [called(x, x), called(x, 1.0), inlined(x), printing(x), capturing(x)],
    "calls of jnp": lambda x: [
        jnp.where(x > 0, x, 0), jnp.maximum(x, 1.0), jnp.take(x, 1, axis=0), jnp.clip(x, 0, 1),
    ],
    "shapes": lambda x: [
        x.reshape(4, 3), x.T, x[:2], x[None], lax.broadcast_in_dim(x, (3, 4), (0, 1)),
        lax.reshape(x, (3, 4)), lax.dynamic_slice(x, (1, 1), (2, 2)), jnp.concatenate([x, x]),
    ],
    "sums": lambda x: [x.sum(0), x.max(1), jnp.cumsum(x), lax.dot(x, x.T), lax.argmax(x, 1, int)],
    "several results": lambda x: [lax.sort((x, x)), lax.top_k(x, 2), lax.psum(x, ())],
    "keys": lambda x: jax.random.normal(jax.random.key(3), (3, 4)) + x,
    "loops": lambda x: lax.fori_loop(
        0, 3, lambda i, y: y + lax.cond(i > 1, called, lambda *both: both, x, y)[0], x
    ),
    "vmap": lambda x: jax.vmap(lambda row: called(row, row * row[0]))(x),
    "gradient": lambda x: jax.grad(lambda x: jnp.sum(called(x, lax.exp(x))[0]))(x),
    "names": lambda x: jax.named_call(lambda x: lax.add(x, x), name="inner")(x),
    "jit in jit": lambda x: jax.jit(jax.jit(lambda x: lax.add(x, x)))(x),
    "nothing": lambda x: lax.add(x[:0], x[:0]),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_jaxpr_is_that_of_jax(name):
    x = jnp.asarray(TABLE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = described(FUNCTIONS[name], x)
        with shortened():
            assert described(FUNCTIONS[name], x) == expected


def test_what_is_added_by_the_shorter_way():
    def function(x):
        y = jax.jit(lambda x: lax.exp(x))(lax.mul(x, np.float32(2)))
        return lax.convert_element_type(lax.reshape(y, (12,)), jnp.int32)

    with shortened() as added:
        jax.make_jaxpr(function)(TABLE)
    names = [primitive.name for primitive in added]
    assert names == ["mul", "exp", "jit", "reshape", "convert_element_type"]


ERRORS = {
    "shapes": lambda x: lax.add(x, x[:2]),
    "dtypes": lambda x: lax.add(x, lax.convert_element_type(x, jnp.int32)),
    "sizes": lambda x: x.reshape(5),
    "parameters": lambda x: lax.exp_p.bind(x, accuracy=[], nothing=1),
    "compiler options": lambda x: jax.jit(lax.exp, compiler_options={"a": "b"})(x),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_those_of_jax(name):
    def message() -> str:
        with pytest.raises((TypeError, ValueError)) as caught:
            jax.make_jaxpr(lambda x: ERRORS[name](x))(TABLE)
        return str(caught.value).partition(" specified on")[0]

    expected = message()
    with shortened():
        assert message() == expected


def test_an_array_of_another_trace():
    """One that escaped is what it is to JAX, one of an outer function is captured."""
    kept: list[Any] = []

    def outer(x):
        inner = jax.jit(lambda y: lax.add(lax.mul(x, y), y))
        kept.append(x)
        return inner(x), lax.scan(lambda c, y: (lax.add(c, x[0]), lax.mul(y, c)), x[0], x)

    expected = described(outer, TABLE)
    jaxpr = str(jax.make_jaxpr(lambda x: lax.add(x, kept[0]))(TABLE))
    with shortened():
        assert described(outer, TABLE) == expected
        assert str(jax.make_jaxpr(lambda x: lax.add(x, kept[0]))(TABLE)) == jaxpr
        with pytest.raises(jax.errors.UnexpectedTracerError):
            lax.add(kept[0], kept[0])


def test_a_kernel_has_the_same_jaxpr():
    def kernel(x_ref, o_ref):
        x = x_ref[...]
        i = pl.program_id(0)
        x = jnp.where(x > 0, x, -x) * 2.0 + i.astype(jnp.float32)
        o_ref[pl.ds(0, 3)] = lax.fori_loop(0, 3, lambda j, y: y + lax.exp(x) * j, x)

    call = pl.pallas_call(
        kernel, out_shape=jax.ShapeDtypeStruct((3, 4), jnp.float32), grid=2, interpret=True
    )
    expected = str(jax.make_jaxpr(lambda x: call(x))(TABLE))
    with shortened():
        assert str(jax.make_jaxpr(lambda x: call(x))(TABLE)) == expected


def test_the_source_is_the_user_s(shim):
    closed = jax.make_jaxpr(lambda x: lax.exp(x))(TABLE)
    source = jaxprs.user_source(jaxprs.source_of(closed.eqns[0]))
    assert source is not None and source.startswith(__file__)
