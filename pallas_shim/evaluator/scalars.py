"""How operations on scalars run: a ufunc takes ten times as long for one number as Python's
operators take on NumPy's scalars, and does the same.

A scalar may come as a 0-d array. What is given back never is one, nor shares its memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.memory import Dynamic, Index, Slice, clamped
from pallas_shim.evaluator.program import ArrayType, Operation, RefType, Type

Function = Callable[..., Any]


def _smaller(x, y):
    return (x if x <= y else y)[()]


def _larger(x, y):
    return (x if x >= y else y)[()]


_OF_ALL: dict[Any, Function] = {
    np.add: operator.add,
    np.subtract: operator.sub,
    np.multiply: operator.mul,
    np.negative: operator.neg,
    np.abs: operator.abs,
    np.equal: operator.eq,
    np.not_equal: operator.ne,
    np.less: operator.lt,
    np.less_equal: operator.le,
    np.greater: operator.gt,
    np.greater_equal: operator.ge,
}
# Floats have NaN and two zeros.
_OF_INTEGERS: dict[Any, Function] = {
    np.bitwise_and: operator.and_,
    np.bitwise_or: operator.or_,
    np.bitwise_xor: operator.xor,
    np.invert: operator.invert,
    np.minimum: _smaller,
    np.maximum: _larger,
}
_TABLES = {"f": _OF_ALL, "i": _OF_ALL | _OF_INTEGERS, "u": _OF_ALL | _OF_INTEGERS,
           "b": _OF_ALL | _OF_INTEGERS}  # fmt: skip


def function(operation: Operation) -> Function | None:
    """What computes an operation: its own ``fn``, or a faster one if all is scalars."""
    return _faster(operation) or operation.fn


def _faster(operation: Operation) -> Function | None:
    ins, outs = operation.ins, operation.outs
    if operation.name == "get" and _is_scalar(outs[0]):
        return _element_read(operation)
    if operation.name == "store" and _is_scalar(ins[1]):
        return _element_written(operation)
    if not ins or not all(map(_is_scalar, (*ins, *outs))):
        return None
    dtype = ins[0].dtype
    if operation.name == "select_n" and dtype == np.bool_ and len(ins) == 3:
        return lambda which, no, yes: (yes if which else no)[()]
    if operation.name == "convert_element_type":
        return _conversion(dtype, outs[0].dtype)
    return _TABLES.get(dtype.kind, {}).get(operation.fn)


def _is_scalar(type: Type) -> bool:
    return isinstance(type, ArrayType) and not type.shape


def _conversion(source: np.dtype, target: np.dtype) -> Function | None:
    if source == np.bool_ and target.kind in "iuf":
        no, yes = target.type(0), target.type(1)
        return lambda x: yes if x else no
    exact = target.kind in "iu" or target.kind == "f" and source.itemsize <= 4
    return target.type if source.kind in "iu" and exact else None


# -- memory -----------------------------------------------------------------------------------


def _element_read(operation: Operation) -> Function | None:
    find = _finder(operation.ins[0], operation.params.get("path"))
    if find is None:
        return None
    return lambda ref, *leaves: ref[find(leaves)]


def _element_written(operation: Operation) -> Function | None:
    find = _finder(operation.ins[0], operation.params.get("path"))
    if find is None:
        return None

    def write(ref, value, *leaves):
        ref[find(leaves)] = value
        return ()

    return write


def _finder(ref: Type, path: memory.Path | None) -> Callable[[Sequence[Any]], Any] | None:
    """The function from a path's leaves to the NumPy index of the element that it leads to; None
    if it isn't just an index, or not known: a program from disk has no parameters."""
    assert isinstance(ref, RefType)
    if path is None:
        return None
    if not path and not ref.shape:
        return lambda leaves: ()
    if len(path) != 1 or not isinstance(path[0], Index):
        return None
    dims = path[0].dims
    if any(isinstance(dim, Slice) for dim in dims):
        return None
    if len(dims) == 1 and isinstance(dims[0], Dynamic):
        (size,), leaf = ref.shape, dims[0].leaf
        return lambda leaves: clamped(leaves[leaf], size, 1)
    return lambda leaves: tuple(
        [
            clamped(leaves[dim.leaf], size, 1) if isinstance(dim, Dynamic) else dim
            for dim, size in zip(dims, ref.shape, strict=True)
        ]
    )
