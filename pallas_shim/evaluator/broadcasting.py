"""Elementwise operations on matrices and columns: NumPy is told not to copy the columns.

An operand with one number for each row, such as the maxima in a softmax, broadcasts along the rows.
If several rows fit into the buffer of NumPy's iterator, NumPy copies the column into it, each
number as often as a row is long. That takes longer than the operation. With a buffer no longer than
a row, it calls its inner loop for each row, on the number itself. Each element is computed as
before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from pallas_shim.evaluator.floating import ROW_BUFFER, with_row_buffers
from pallas_shim.evaluator.op_types import DIRECT, INTO, UFUNC
from pallas_shim.evaluator.program import ArrayType, Instruction

# In smaller arrays, setting the buffer's size costs more than it gains.
_FEWEST = 1 << 13


def function(fn: Callable[..., Any], instruction: Instruction) -> Callable[..., Any]:
    """``fn``, which computes an instruction's operation, or the same with a short buffer, where
    that is faster."""
    return with_row_buffers(fn) if _broadcasts_columns(instruction) else fn


def _broadcasts_columns(instruction: Instruction) -> bool:
    operation, shapes = instruction.operation, [value.type.shape for value in instruction.ins]
    # Of most instructions, this tells it. What else an operation says may not be decoded yet.
    if (1,) not in [s[-1:] for s in shapes] or max(map(math.prod, shapes)) < _FEWEST:
        return False
    # What an operation says of stacks doesn't tell how they are aligned.
    params, ins = operation.params, [value.type for value in instruction.ins]
    ufunc = params.get(DIRECT) or (params.get(UFUNC) if INTO in params else operation.fn)
    if not isinstance(ufunc, np.ufunc) or ufunc.signature is not None or ufunc.nin != 2:
        return False
    first = 1 if DIRECT in params else 0  # after the ref
    x, y = ins[first : first + 2]
    if not (type(x) is ArrayType and type(y) is ArrayType and x.dtype == y.dtype):
        return False
    if not (x.shape and y.shape):
        return False
    shape = np.broadcast_shapes(x.shape, y.shape)
    lengths = {x.shape[-1], y.shape[-1]}
    columns = min((x, y), key=lambda type: type.shape[-1])
    return (
        lengths == {1, shape[-1]} and shape[-1] >= ROW_BUFFER and columns.size > 1
        and ArrayType(shape, x.dtype).size >= _FEWEST
    )  # fmt: skip
