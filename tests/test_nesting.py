"""Loops, branches and calls inside one another, as deep as JAX can trace them."""

from __future__ import annotations

import inspect
import itertools
import sys

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl

from pallas_shim import dispatch
from pallas_shim.evaluator import call_stack, compiler
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.jax_compat import kernel_info
from tests.interrupts import Interrupt, at_every_bytecode
from tests.shimmed import only_function, only_row, setting, shim

__all__ = ["setting", "shim"]

X = np.zeros((4, 8), np.float32)


def around(kind, inner, number):
    """A function of an array with one level more."""
    if kind == "fori":
        return lambda x: lax.fori_loop(0, 1 + (number < 3), lambda i, x: inner(x), x)
    if kind == "scan":
        length = 1 + (number < 3)
        return lambda x: lax.scan(lambda c, _: (inner(c), None), x, None, length=length)[0]
    if kind == "while":
        return lambda x: lax.while_loop(
            lambda c: c[0] < 1, lambda c: (c[0] + 1, inner(c[1])), (jnp.int32(0), x)
        )[1]
    if kind == "cond":
        return lambda x: lax.cond(x[0, 0] > -1, inner, lambda x: x, x)
    return jax.jit(lambda x: inner(x))


KINDS = ("fori", "scan", "while", "cond", "jit")


def nest(kind, levels):
    """Adds 1, or 8 where two rounds are made. Traced from the inside, where JAX has room for it."""

    def function(x):
        return x + 1

    for number in reversed(range(levels)):
        closed = jax.make_jaxpr(around(kind, function, number))(X)

        def function(x, closed=closed):
            return jax.extend.core.jaxpr_as_fun(closed)(x)[0]

    return function


def want(kind):
    return X + (8 if kind in ("fori", "scan") else 1)


@pytest.mark.parametrize("kind, levels", [*itertools.product(KINDS, (60, 300)), ("scan", 150)])
def test_in_a_kernel(kind, levels, shim):
    function = nest(kind, levels)

    def kernel(x_ref, o_ref):
        o_ref[...] = function(x_ref[...])

    out = jax.ShapeDtypeStruct(X.shape, X.dtype)
    call = jax.jit(lambda x: pl.pallas_call(kernel, out_shape=out, interpret=True)(x))
    limit = sys.getrecursionlimit()
    try:
        jax.make_jaxpr(call)(X)
    except RecursionError:
        assert levels > 60
        pytest.skip("JAX has no room to trace it")
    np.testing.assert_array_equal(np.asarray(call(X)), want(kind))
    assert only_row()["rung"] == "numpy"
    assert sys.getrecursionlimit() == limit


@pytest.mark.parametrize("kind", ("fori", "scan"))
def test_without_a_kernel(kind, shim, setting):
    """Where all functions run here."""
    setting(scope="all")
    function = jax.jit(nest(kind, 300))
    try:
        jax.make_jaxpr(function)(X)
    except RecursionError:
        pytest.skip("JAX has no room to trace it")
    np.testing.assert_array_equal(np.asarray(function(X)), want(kind))
    assert only_function()["rung"] == "numpy"


def test_too_deep(shim, setting, monkeypatch):
    """JAX is to run it, and the user is told why."""
    monkeypatch.setattr(call_stack, "DEEPEST", 70)
    function = nest("cond", 72)

    def kernel(x_ref, o_ref):
        o_ref[...] = function(x_ref[...])

    def lower(*args, **kwargs):
        raise RecursionError

    monkeypatch.setattr(compiler, "lower", lower)
    setting(strict=True)
    out = jax.ShapeDtypeStruct(X.shape, X.dtype)
    with pytest.raises(dispatch.StrictError, match=r"kernel.* are nested \d\d deep"):
        jax.jit(lambda x: pl.pallas_call(kernel, out_shape=out, interpret=True)(x))(X)


@pytest.mark.parametrize("levels", (0, 3, 40))
def test_how_deep(levels):
    inner = 1 if levels == 0 else 2  # a loop has its condition and its body
    jaxpr = jax.make_jaxpr(nest("while", levels))(X)
    assert kernel_info.nesting(jaxpr) in range(levels, inner * levels + 2)


def test_what_is_shared_is_walked_once():
    """Each level calls the next twice: 2^40 ways through it."""

    def function(x):
        return x + 1

    for _ in range(40):
        closed = jax.make_jaxpr(jax.jit(lambda x, f=function: f(f(x))))(X)

        def function(x, closed=closed):
            return jax.extend.core.jaxpr_as_fun(closed)(x)[0]

    assert kernel_info.nesting(jax.make_jaxpr(function)(X)) >= 40


def test_the_recursion_limit_comes_back():
    limit = sys.getrecursionlimit()
    ends = 0

    def inner():
        assert sys.getrecursionlimit() > limit

    def nested():
        call_stack.with_depth(100, call_stack.with_depth, 100, inner)

    codes = {call_stack.with_depth.__code__, inner.__code__}
    for raised in at_every_bytecode(nested, codes, possible=True):
        ends += 1
        assert isinstance(raised, Interrupt)
        assert sys.getrecursionlimit() == limit, ends
    assert ends >= 4


def test_a_run_has_room_where_its_caller_has_little():
    executable = Executable(lower(jax.make_jaxpr(nest("scan", 150))(X)))
    used = len(inspect.stack(0))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(used + 60)
    try:
        (got,) = executable(X)
    finally:
        sys.setrecursionlimit(limit)
    np.testing.assert_array_equal(got, want("scan"))
