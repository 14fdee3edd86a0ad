"""A short cut for operators and casts of traced arrays.

`x + y` of two traced arrays calls jnp.add, a jitted function. JAX looks up its jaxpr and copies it
into the caller's. For two arrays of the same type, or an array and a Python number, that jaxpr is
one equation. Here, the function of `jax.lax` adds it directly. This saves a quarter to a half of
the time of tracing an unrolled kernel. `x.astype` takes long to find out the meaning of its type;
for types with only one meaning, it is known. Under a mesh, a number may first have to be spread
over devices, so JAX goes its own way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax
from jax._src import core
from jax._src.interpreters.partial_eval import DynamicJaxprTracer
from jax._src.mesh import empty_abstract_mesh as no_mesh

_BOOL = frozenset({np.dtype(bool)})
_SIGNED = frozenset(map(np.dtype, ("i1", "i2", "i4")))
_UNSIGNED = frozenset(map(np.dtype, ("u1", "u2", "u4")))
_INTEGERS = _SIGNED | _UNSIGNED
_FLOATS = frozenset(map(np.dtype, ("f2", "f4", jnp.bfloat16)))
_NUMBERS = _INTEGERS | _FLOATS

# Operators of JAX that are one function of lax, and the types for which they are.
_BINARY: tuple[tuple[str, Callable[..., Any], frozenset[np.dtype]], ...] = (
    ("add", lax.add, _NUMBERS),
    ("sub", lax.sub, _NUMBERS),
    ("mul", lax.mul, _NUMBERS),
    ("truediv", lax.div, _FLOATS),
    ("and", lax.bitwise_and, _INTEGERS | _BOOL),
    ("or", lax.bitwise_or, _INTEGERS | _BOOL),
    ("xor", lax.bitwise_xor, _INTEGERS | _BOOL),
    ("lshift", lax.shift_left, _INTEGERS),
    ("rshift", lax.shift_right_arithmetic, _SIGNED),
    ("rshift", lax.shift_right_logical, _UNSIGNED),
    ("eq", lax.eq, _NUMBERS | _BOOL),
    ("ne", lax.ne, _NUMBERS | _BOOL),
    ("lt", lax.lt, _NUMBERS | _BOOL),
    ("le", lax.le, _NUMBERS | _BOOL),
    ("gt", lax.gt, _NUMBERS | _BOOL),
    ("ge", lax.ge, _NUMBERS | _BOOL),
)
# Operators with a form in which the number comes first.
_REFLECTED = frozenset({"add", "sub", "mul", "truediv", "and", "or", "xor", "lshift", "rshift"})


# The types that a cast may name, as JAX has them in x64 mode or not.
_CASTS: dict[Any, np.dtype] = {
    name: dtype
    for dtype in _NUMBERS | _BOOL
    for name in (dtype, dtype.type, getattr(jnp, "bool_" if dtype in _BOOL else dtype.name))
}


def shorten() -> Callable[[], None]:
    """Makes operators and casts of traced arrays take the short cut; returns the undoing."""
    stock: dict[str, Any] = {}

    def put(name: str, function: Callable[..., Any], dtypes: frozenset[np.dtype]) -> None:
        before = vars(core.ShapedArray)[name]
        stock.setdefault(name, before)
        short = _operator(before.__func__, function, dtypes)
        setattr(core.ShapedArray, name, staticmethod(short))

    for name, function, dtypes in _BINARY:
        put(f"_{name}", function, dtypes)
        if name in _REFLECTED:
            put(f"_r{name}", lambda y, x, of=function: of(x, y), dtypes)
    stock["astype"] = vars(core.ShapedArray)["astype"]
    core.ShapedArray.astype = core.aval_method(_astype(stock["astype"].fun))  # type: ignore

    def undo() -> None:
        for name, before in stock.items():
            setattr(core.ShapedArray, name, before)

    return undo


def _operator(
    stock: Callable[..., Any], function: Callable[..., Any], dtypes: frozenset[np.dtype]
) -> Callable[..., Any]:
    def operator(x: Any, y: Any) -> Any:
        if type(x) is DynamicJaxprTracer:
            aval: Any = x.aval
            if aval.dtype in dtypes and not aval.weak_type and aval.sharding.mesh is no_mesh:
                if type(y) is DynamicJaxprTracer:
                    other: Any = y.aval
                    if other == aval or _is_scalar_beside(aval, other):
                        return function(x, y)
                else:
                    number = _number(y, aval.dtype)
                    if number is not None:
                        return function(x, number)
        return stock(x, y)

    return operator


def _astype(stock: Callable[..., Any]) -> Callable[..., Any]:
    def astype(x: Any, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        if type(x) is DynamicJaxprTracer and not args and not kwargs:
            aval: Any = x.aval
            # JAX handles unhashable values.
            to = _CASTS.get(dtype) if isinstance(dtype, (type, np.dtype)) else None
            if to is not None and aval.dtype in _CASTS and aval.sharding.mesh is no_mesh:
                if to != aval.dtype:
                    return lax.convert_element_type_p.bind(
                        x, new_dtype=to, weak_type=False, sharding=None
                    )
        return stock(x, dtype, *args, **kwargs)

    return astype


def _is_scalar_beside(one: Any, other: Any) -> bool:
    """Whether two arrays are of one dtype, and one of them has rank 0, which lax broadcasts."""
    return (
        type(one) is type(other)
        and one.dtype == other.dtype
        and not other.weak_type
        and not (one.shape and other.shape)
        and other.sharding.mesh is no_mesh
    )


def _number(value: Any, dtype: np.dtype) -> Any | None:
    """A Python number as JAX has it beside an array of ``dtype``. None if that depends on x64 mode,
    takes two roundings, or is an error."""
    if type(value) is int and dtype in _RANGE:
        least, largest = _RANGE[dtype]
        if least <= value <= largest:
            number = dtype.type(value)
            return number if dtype in _INTEGERS or float(number) == value else None
    elif type(value) is float and dtype in _FLOATS:
        if abs(value) <= _LARGEST[dtype] or dtype == np.float32 and not math.isfinite(value):
            number = dtype.type(value)
            return number if dtype == np.float32 or float(number) == value else None
    return None


# JAX reads every int as an int32 first.
_INT32 = np.iinfo(np.int32)
_RANGE = dict.fromkeys(_FLOATS, (int(_INT32.min), int(_INT32.max))) | {
    d: (int(np.iinfo(d).min), min(int(np.iinfo(d).max), int(_INT32.max))) for d in _INTEGERS
}
_LARGEST = {d: float(ml_dtypes.finfo(d).max) for d in _FLOATS}
