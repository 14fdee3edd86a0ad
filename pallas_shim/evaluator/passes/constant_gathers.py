"""Constant gathers: where the indices are known and only permute or repeat what lies along
one axis, whole rows are taken, which is many times faster than single elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from pallas_shim.evaluator.lower import specialise
from pallas_shim.evaluator.passes.peephole import Peephole
from pallas_shim.evaluator.passes.rewrite import make_instruction
from pallas_shim.evaluator.program import ArrayType, Instruction, Operation, Value

# Where each element comes from is found by gathering positions, so larger arrays are not tried.
_LARGEST_TRIED = 1 << 16


class ConstantGathers(Peephole):
    def __init__(self) -> None:
        super().__init__()
        self.takes: dict[tuple[Operation, Value], Operation | None] = {}

    def gather(self, instruction: Instruction) -> Value | None:
        operation, ins, (out,), _, source = instruction
        key = (operation, ins[1])
        if key not in self.takes:
            self.takes[key] = _take(operation, ins[1].const)
        take = self.takes[key]
        if take is None:
            return None
        result = Value(out.type)
        self.body.append(make_instruction((take, ins[:1], (result,), (), source)))
        return result

    methods = {"gather": gather}


def _take(operation: Operation, indices: np.ndarray | None) -> Operation | None:
    """The operation that takes along one axis what a gather gives, None if there is none."""
    (operand, index_type), (out,) = operation.ins, operation.outs
    if indices is None or not isinstance(operand, ArrayType) or not isinstance(out, ArrayType):
        return None
    sizes = (operand.size, out.size)
    if len(out.shape) != operand.ndim or not 0 < min(sizes) <= max(sizes) <= _LARGEST_TRIED:
        return None
    order = np.arange(operand.size, dtype=np.int32).reshape(operand.shape)
    types = ArrayType(operand.shape, order.dtype), ArrayType(out.shape, order.dtype)
    params: dict[str, Any] = {**operation.params, "fill_value": -1}  # no position
    run = specialise("gather", (types[0], index_type), types[1:], params, False).fn
    assert run is not None
    positions = run(order, indices)
    for axis in range(operand.ndim):
        line: tuple[Any, ...] = tuple(slice(None) if d == axis else 0 for d in range(operand.ndim))
        at = np.searchsorted(order[line], positions[line])
        if at.max() < operand.shape[axis] and np.array_equal(order.take(at, axis), positions):
            return specialise("take", (operand,), (out,), {"indices": at, "axis": axis}, False)
    return None
