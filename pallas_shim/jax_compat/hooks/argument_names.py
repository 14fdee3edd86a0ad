"""A short cut for the names of a traced function's arguments.

JAX names each argument of each function that it traces, index maps too, for its messages. For that
it asks for the function's signature, binds the arguments to it, and takes each of them apart. If
they are arrays or booleans in the places of the first parameters, they have the names of these, and
a plain function's code has the names. This saves a tenth of the first call of most kernels.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax._src import api_util, core
from jax._src.array import ArrayImpl
from jax._src.interpreters.partial_eval import DynamicJaxprTracer
from jax._src.pallas import core as pallas_core
from jax._src.state.types import AbstractRef

# Types of arguments that are one array each, or what stands for one in an index map.
_ARRAYS = frozenset({
    ArrayImpl, DynamicJaxprTracer, AbstractRef, core.ShapedArray, np.ndarray, bool,
})  # fmt: skip
_BY_PLACE = frozenset({inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD})


class _Names(NamedTuple):
    """Takes the place of a signature for a function whose arguments have been named."""

    names: tuple[str, ...]


def shorten() -> Callable[[], None]:
    """Makes JAX name arguments by the short cut; returns the undoing."""
    stock: Any = api_util._non_static_arg_names
    stock_info: Any = api_util.debug_info

    def names(
        fn_signature: Any, args: Any, kwargs: Any, static_argnums: Any, static_argnames: Any
    ) -> tuple[str, ...]:
        if type(fn_signature) is _Names:
            return fn_signature.names
        if not (kwargs or static_argnums or static_argnames or fn_signature is None):
            if _ARRAYS.issuperset(map(type, args)):
                found = _first(fn_signature, len(args))
                if found is not None:
                    return found
        return stock(fn_signature, args, kwargs, static_argnums, static_argnames)

    def info(traced_for: str, fun: Any, args: Any, kwargs: Any, **options: Any) -> Any:
        if not (kwargs or options) and _ARRAYS.issuperset(map(type, args)):
            # Without arguments there are no names, whatever the function: JAX asks for those of the
            # function that makes the index maps of whole arrays.
            found = _of_code(fun, len(args)) if args else ()
            if found is not None:
                return stock_info(traced_for, fun, args, kwargs, signature=_Names(found))
        return stock_info(traced_for, fun, args, kwargs, **options)

    def undo() -> None:
        api_util._non_static_arg_names = stock
        api_util.debug_info = stock_info

    api_util._non_static_arg_names = names
    api_util.debug_info = info
    return undo


def _of_code(function: Any, count: int) -> tuple[str, ...] | None:
    """Does what `_first` does, for a plain function or an index map, without a signature."""
    while type(function) is pallas_core._IndexMapFunc:
        function = vars(function)["__wrapped__"]
    if type(function) is not types.FunctionType or function.__dict__:
        return None  # its attributes may say that it has another signature
    code = function.__code__
    if code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS) or code.co_kwonlyargcount:
        return None
    most = code.co_argcount
    if not most - len(function.__defaults__ or ()) <= count <= most:
        return None
    names = code.co_varnames[:count]
    return names if all(map(str.isidentifier, names)) else None


def _first(signature: inspect.Signature, count: int) -> tuple[str, ...] | None:
    """The names of a function's first parameters, if it can be called with so many arguments."""
    names: list[str] = []
    for name, parameter in signature.parameters.items():
        if len(names) < count:
            if parameter.kind not in _BY_PLACE:
                return None
            names.append(name)
        elif parameter.default is inspect.Parameter.empty:
            return None
    return tuple(names) if len(names) == count else None
