"""A short cut for the names of a traced function's arguments.

JAX names each argument of each function that it traces, index maps too, for its messages. For that
it binds the arguments to the function's signature, and takes each of them apart. If they are arrays
in the places of the first parameters, they have the names of these. This saves a twentieth of the
first call of most kernels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from jax._src import api_util, core
from jax._src.array import ArrayImpl
from jax._src.interpreters.partial_eval import DynamicJaxprTracer
from jax._src.state.types import AbstractRef

# Types of arguments that are one array each.
_ARRAYS = frozenset({ArrayImpl, DynamicJaxprTracer, AbstractRef, core.ShapedArray, np.ndarray})
_BY_PLACE = frozenset({inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD})


def shorten() -> Callable[[], None]:
    """Makes JAX name arguments by the short cut; returns the undoing."""
    stock: Any = api_util._non_static_arg_names

    def names(
        fn_signature: Any, args: Any, kwargs: Any, static_argnums: Any, static_argnames: Any
    ) -> tuple[str, ...]:
        if not (kwargs or static_argnums or static_argnames or fn_signature is None):
            if _ARRAYS.issuperset(map(type, args)):
                found = _first(fn_signature, len(args))
                if found is not None:
                    return found
        return stock(fn_signature, args, kwargs, static_argnums, static_argnames)

    def undo() -> None:
        api_util._non_static_arg_names = stock

    api_util._non_static_arg_names = names
    return undo


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
