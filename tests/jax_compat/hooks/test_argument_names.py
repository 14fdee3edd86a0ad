"""The names of arguments by the short cut: those that JAX gives."""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import api_util

from pallas_shim.jax_compat.hooks import argument_names

STOCK = api_util._non_static_arg_names
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
    ((X, X),), ([X], {"a": X}), (X, {}),
]  # fmt: skip


@pytest.fixture
def shortened():
    undo = argument_names.shorten()
    yield api_util._non_static_arg_names
    undo()
    assert api_util._non_static_arg_names is STOCK


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
