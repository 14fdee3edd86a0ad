"""The names of arguments by the short cut: those that JAX gives."""

from __future__ import annotations

import functools
import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import api_util
from jax._src.pallas import core as pallas_core
from jax.experimental import pallas as pl

from pallas_shim.jax_compat.hooks import argument_names

STOCK, STOCK_INFO = api_util._non_static_arg_names, api_util.debug_info
X = jnp.zeros(3)
SHAPE = jax.core.ShapedArray((3,), np.float32)

FUNCTIONS = {
    "none": lambda: 0,
    "one": lambda x: 0,
    "two": lambda x, y: 0,
    "by place only": lambda x, /, y: 0,
    "a default": lambda x, y=1: 0,
    "defaults": lambda x=1, y=2: 0,
    "by name only": lambda x, *, y: 0,
    "by name only, a default": lambda x, *, y=1: 0,
    "any": lambda *args: 0,
    "any more": lambda x, *more: 0,
    "any names": lambda x, **named: 0,
    "partial": functools.partial(lambda x, y: 0, 1),
    "partial by name": functools.partial(lambda x, y: 0, y=1),
    "bound": np.zeros(3).sum,
}
ARGUMENTS = [
    (), (X,), (X, X), (X, X, X), (np.zeros(3), SHAPE), (1,), (1.0, X), (None,), (None, X),
    ((X, X),), ([X], {"a": X}), (X, {}), (True, False), (False,),
]  # fmt: skip


@pytest.fixture
def shortened():
    undo = argument_names.shorten()
    yield api_util._non_static_arg_names
    undo()
    assert api_util._non_static_arg_names is STOCK and api_util.debug_info is STOCK_INFO


@pytest.mark.parametrize("name", FUNCTIONS)
def test_names_are_those_of_jax(name, shortened):
    signature = inspect.signature(FUNCTIONS[name])
    for args in ARGUMENTS:
        for kwargs in ({}, {"y": X}, {"b": X, "a": X}):
            for static in ((), (0,)):
                if static and not args:
                    continue
                given = (signature, args, kwargs, static, ())
                assert shortened(*given) == STOCK(*given), (args, kwargs, static)
    assert shortened(None, (X, X), {}, (), ()) == STOCK(None, (X, X), {}, (), ())


def wrapped(x, y):
    return 0


WITHOUT_SIGNATURE = {
    **FUNCTIONS,
    "an index map": pallas_core._IndexMapFunc(lambda i, j: (i, j)),
    "an index map that is wrapped": pallas_core._IndexMapFunc(functools.wraps(wrapped)(lambda: 0)),
    "wrapped": functools.wraps(wrapped)(lambda *args: 0),
    "wrapped twice": functools.wraps(functools.wraps(wrapped)(lambda: 0))(lambda z: 0),
    "partial of an index map": functools.partial(pallas_core._IndexMapFunc(wrapped), 1),
    "a comprehension's": next(
        types.FunctionType(code, {})
        for code in compile("(x for x in y)", "", "eval").co_consts
        if isinstance(code, types.CodeType)
    ),
}


@pytest.mark.parametrize("name", WITHOUT_SIGNATURE)
def test_names_without_a_signature_are_those_of_jax(name, shortened):
    function = WITHOUT_SIGNATURE[name]
    for args in ARGUMENTS:
        for kwargs in ({}, {"y": X}):
            given = ("index_map", function, args, kwargs)
            assert api_util.debug_info(*given) == STOCK_INFO(*given), (args, kwargs)
            for options in ({"static_argnums": (0,)}, {"sourceinfo": "here"}):
                if args:
                    found = api_util.debug_info(*given, **options)
                    assert found == STOCK_INFO(*given, **options)


def test_a_function_with_a_signature_of_its_own_keeps_it(shortened):
    def function(x):
        return 0

    function.__signature__ = inspect.signature(lambda other: 0)
    assert api_util.debug_info("jit", function, (X,), {}).arg_names == ("other",)


def test_an_index_map_needs_no_signature(shortened, monkeypatch):
    monkeypatch.setattr(api_util, "fun_signature", lambda function: pytest.fail("it was asked for"))
    index_map = pl.BlockSpec((1, 1), pl.BlockSpec((1, 1), lambda i, j: (i, j)).index_map).index_map
    assert api_util.debug_info("index_map", index_map, (False, False), {}).arg_names == ("i", "j")
    assert api_util.debug_info("index_map", lambda ndim: 0, (), {}).arg_names == ()


def test_the_short_cut_is_taken(shortened, monkeypatch):
    """It has no use if JAX calls this function in another way."""
    asked = []

    def first(signature, count):
        asked.append(count)
        return stock_first(signature, count)

    stock_first = argument_names._first
    monkeypatch.setattr(argument_names, "_first", first)
    jaxpr = jax.make_jaxpr(lambda some, other: some + other)(X, X).jaxpr
    assert 2 in asked and jaxpr.debug_info.arg_names == ("some", "other")
