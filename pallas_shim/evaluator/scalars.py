"""Arithmetic on scalars, by Python's operators on NumPy's scalars.

They give the same as ufuncs in a tenth of the time. A scalar may come as a 0-d array. A result
never is one, and never shares an operand's memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from pallas_shim.evaluator.program import Array, ArrayType, Operation

Function = Callable[..., Any]


def _smaller(x: Array, y: Array) -> Array:
    return (x if x <= y else y)[()]


def _larger(x: Array, y: Array) -> Array:
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
_TABLES = {"f": _OF_ALL, **dict.fromkeys("iub", _OF_ALL | _OF_INTEGERS)}


def function(operation: Operation) -> Function | None:
    """The function that computes an operation: its own ``fn``, or a faster one if all operands are
    scalars."""
    if type(operation.fn) is not np.ufunc:
        return operation.fn
    types = (*operation.ins, *operation.outs)
    if operation.ins and all(isinstance(t, ArrayType) and not t.shape for t in types):
        table = _TABLES.get(operation.ins[0].dtype.kind, {})
        return table.get(operation.fn, operation.fn)
    return operation.fn
