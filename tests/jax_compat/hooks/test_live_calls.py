"""Dead code elimination with calls left alone: the same jaxprs as JAX's own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import pallas as pl

from pallas_shim.jax_compat.hooks import live_calls
from tests.jax_compat.hooks.test_operators import described
from tests.shimmed import shim as shim


@jax.jit
def live(x, y):
    return x * y + 1, y


@jax.jit
def idle(x, y):
    jnp.sin(y)
    return x + 1


@jax.jit
def nested(x, y):
    a, b = live(x, y)
    return idle(a, b), b


@jax.jit
def printing(x):
    jax.debug.print("{}", x)
    return x


def all_used(x, y):
    a, b = live(x, y)
    return jnp.where(a > b, a, b)


def some_used(x, y):
    a, _ = live(x, y)
    return jnp.where(a > 0, a, 1.0)


def none_used(x, y):
    live(x, y)
    jnp.where(x > 0, x, y)
    return x


def an_argument_unused(x, y):
    return idle(x, y)


def dead_inside(x, y):
    a, b = nested(x, y)
    return a + b


def with_effects(x, y):
    printing(y)
    return x


def in_a_loop(x, y):
    def body(_, carry):
        a, b = live(*carry)
        idle(a, b)
        return a, b

    return lax.fori_loop(0, 3, body, (x, y))[0]


def in_a_branch(x, y):
    return lax.cond(x[0, 0] > 0, lambda: live(x, y)[0], lambda: idle(x, y))


@pytest.mark.parametrize(
    "f",
    [all_used, some_used, none_used, an_argument_unused, dead_inside, with_effects, in_a_loop,
     in_a_branch],
)  # fmt: skip
def test_jaxprs_are_those_of_jax(f):
    def kernel(x_ref, y_ref, o_ref):
        o_ref[...] = f(x_ref[...], y_ref[...])

    x = jnp.ones((8, 128))

    def traced():
        jax.clear_caches()
        call = pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))
        return described(call, x, x)

    before = traced()
    undo = live_calls.leave_alone()
    try:
        assert traced() == before
    finally:
        undo()
    assert traced() == before


def test_a_call_in_which_all_is_used_is_the_same_equation():
    from jax._src.interpreters import partial_eval

    undo = live_calls.leave_alone()
    try:
        jaxpr = jax.make_jaxpr(all_used)(1.0, 2.0).jaxpr
        after, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
        calls = [eqn for eqn in jaxpr.eqns if "jaxpr" in eqn.params]
        assert calls and all(any(eqn is other for other in after.eqns) for eqn in calls)
        jaxpr = jax.make_jaxpr(dead_inside)(1.0, 2.0).jaxpr
        after, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
        assert len(str(after)) < len(str(jaxpr))
    finally:
        undo()
