"""What is known by the version of the library that it is from, so that nobody need read it."""

from __future__ import annotations

import functools
import operator
import sys
import types
from typing import Any

import numpy as np

# Distributions that are known by their versions; their code isn't followed.
VERSIONED = frozenset({"jax", "jaxlib", "ml_dtypes", "numpy", "opt_einsum", "scipy"})
# Modules of the standard library whose functions depend on nothing but their arguments, and
# some whose effects (a warning, a line in a log) don't change what is computed.
_PURE = frozenset(
    """__future__ _collections_abc _functools _operator abc bisect builtins cmath collections
    collections.abc contextlib copy dataclasses enum fractions functools heapq itertools
    keyword logging math numbers operator re reprlib string textwrap types typing
    warnings""".split()
)
_IMPURE = ("numpy.random",)
# Where callables are that don't say what module they are from.
_UFUNCS = ("numpy", "scipy.special")


def is_library(module: str) -> bool:
    """Whether a module's functions depend on their arguments and the module's version only."""
    return (top(module) in VERSIONED and not is_impure(module)) or module in _PURE


def is_impure(module: str) -> bool:
    """Whether a module is of a library, but the results of its functions differ."""
    return module.startswith(_IMPURE)


def is_standard(module: str) -> bool:
    return top(module) in sys.stdlib_module_names


def top(module: str) -> str:
    return module.partition(".")[0]


@functools.cache
def version(library: str) -> str | None:
    """A library's version; None if it lies where it may change."""
    module = sys.modules[library]
    path = module.__file__ or ""
    if "site-packages" not in path and "dist-packages" not in path:
        return None
    return str(module.__version__)


def home(value: Any) -> tuple[str, str] | None:
    """The module that was imported, and the name, by which a function or class is found again.

    None if another lies there, or nothing.
    """
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    module = getattr(value, "__module__", None)
    without_module = module is None or isinstance(value, np.ufunc)
    for place in _UFUNCS if without_module else (module,):
        if isinstance(name, str) and isinstance(place, str) and place in sys.modules:
            try:
                found = operator.attrgetter(name)(sys.modules[place])
            except AttributeError:
                continue
            if found is value:
                return place, name
    return None


def owns_function(function: types.FunctionType) -> bool:
    """Whether a library's module defines a function."""
    name = function.__globals__.get("__name__", "")
    return is_library(name) and vars(sys.modules[name]) is function.__globals__


def is_own(value: Any) -> bool:
    """Whether what a library's module has is the library's own, not made by others."""
    while hasattr(value, "__wrapped__"):
        value = value.__wrapped__
    if isinstance(value, types.FunctionType):
        local = "<locals>" in value.__code__.co_qualname  # it may hold what others gave it
        return owns_function(value) and not local
    if isinstance(value, (type, types.BuiltinFunctionType)):
        return is_library(getattr(value, "__module__", None) or "builtins")
    return top(type(value).__module__) in VERSIONED
