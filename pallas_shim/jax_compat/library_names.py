"""Names of classes and functions of libraries, and classes of JAX's that can be read completely."""

from __future__ import annotations

import abc
import functools
import operator
import sys
import types
from typing import Any, Protocol

import numpy as np

_LIBRARIES = frozenset({"builtins", "jax", "jaxlib", "ml_dtypes", "numpy"})


def place(value: Any) -> tuple[str, str] | None:
    """The library module and the name that give a class or function. None if no name gives it."""
    known = _places.get(id(value))
    if known is not None:
        return known[1], known[2]
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if isinstance(value, np.ufunc):
        module, name = "numpy", value.__name__
    if value is type(None):  # its `__module__` isn't where it is found
        return "types", "NoneType"
    if type(module) is not str or type(name) is not str or module not in sys.modules:
        return None
    if module.partition(".")[0] not in _LIBRARIES:
        return None
    home = sys.modules[module]
    try:
        found = operator.attrgetter(name)(home)
    except AttributeError:
        return None
    if found is not value:
        return None
    if isinstance(value, types.FunctionType) and value.__globals__ is not vars(home):
        return None
    _places[id(value)] = value, module, name
    return module, name


# What has been found. It stays what it is, whatever becomes of its name.
_places: dict[int, tuple[Any, str, str]] = {}
_BASES = frozenset({object, tuple, int, float, complex, str})
_METACLASSES = frozenset({type, abc.ABCMeta, type(Protocol)})


@functools.cache
def is_jaxs_class(kind: type) -> bool:
    """Whether an object of this class keeps its whole state where it can be read.

    The state is in its slots, in its dictionary, and in its value as a number, text or tuple. All
    its classes are JAX's own.
    """
    if kind in _BASES:
        return False
    for base in kind.__mro__:
        if base in _BASES or base.__module__ in ("abc", "typing", "collections.abc"):
            continue
        if base.__module__.partition(".")[0] != "jax":
            return False
        metaclass = type(base)
        if metaclass not in _METACLASSES and metaclass.__module__.partition(".")[0] != "jax":
            return False
        if "__slots__" not in vars(base) and not base.__dictoffset__:
            return False
    return place(kind) is not None
