"""What is known by the version of the library that it is from, so that nobody need read it."""

from __future__ import annotations

import enum
import functools
import operator
import sys
import types
from typing import Any

import numpy as np

from pallas_shim.cache.bytecode import contents
from pallas_shim.jax_compat import inputs

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


def identity(value: Any) -> str | None:
    """What tells a library's own function, class or object apart from the library's others.

    None if somebody else made it, or part of it, so that the library's version doesn't say all
    of it: whoever puts something in the place of a library's function gives it the same name.
    """
    parts = _identity(value, ())
    return None if parts is None else repr(parts)


def _identity(value: Any, under_way: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if type(value) in _PLAIN:
        return "plain", value
    if any(value is each for each in under_way):
        return "again", len(under_way)
    under_way = (*under_way, value)
    jitted = inputs.jitted(value)
    if jitted is not None:
        function, info = jitted
        options, inside = inputs.jit_options(info), _identity(function, under_way)
        return None if options is None or inside is None else ("jit", options, inside)
    if isinstance(value, types.FunctionType):
        if not owns_function(value):
            return None
        code = value.__code__
        parts: list[Any] = [value.__module__, code.co_qualname, code.co_firstlineno]
        if "<locals>" in code.co_qualname:  # it may hold what others gave it
            for cell in value.__closure__ or ():
                inside = _identity(contents(cell), under_way)
                if inside is None:
                    return None
                parts.append(inside)
        return tuple(parts)
    if isinstance(value, (type, types.BuiltinFunctionType)):
        module = getattr(value, "__module__", None) or "builtins"
        return (module, value.__qualname__) if is_library(module) else None
    kind = type(value)
    if top(kind.__module__) not in VERSIONED:
        return None
    if isinstance(value, enum.Enum):
        return kind.__module__, kind.__qualname__, value.name
    if hasattr(value, "__wrapped__") and _identity(value.__wrapped__, under_way) is None:
        return None
    place = home(value)
    return place if place is not None and is_library(place[0]) else None


_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})
