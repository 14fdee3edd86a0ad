"""Movements: merges known rearrangements of an array along one axis into one.

Gathers with constant indices, rolls, reversals, slices, and joins of one array's parts are
movements. So is a select between movements of one array by a known mask: the partner in a bitonic
network is a select between two rolls. Taking whole rows is many times as fast as gathering
elements, and one movement is faster than two and a select.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator.passes.peephole import Peephole
from pallas_shim.evaluator.program import (
    ArrayType,
    Instruction,
    Operation,
    Value,
)
from pallas_shim.evaluator.specialise import specialise

# Gathering positions shows where elements come from, so larger arrays are not tried.
_LARGEST_TRIED = 1 << 16


class Movement(NamedTuple):
    """A value that has, at each place along ``axis``, what ``source`` has at ``indices[place]``."""

    source: Value
    axis: int
    indices: np.ndarray


class Movements(Peephole):
    def __init__(self) -> None:
        super().__init__()
        self.known: dict[Value, Movement] = {}
        self.gathers: dict[tuple[Operation, Value], tuple[int, np.ndarray] | None] = {}

    # -- what is known ------------------------------------------------------------------------

    def note(self, instruction: Instruction, movement: Movement) -> Movement:
        """Remembers that an instruction's result is a movement, of what isn't one itself."""
        source, axis, indices = movement
        before = self.known.get(source)
        if before is not None and before.axis == axis:
            movement = Movement(before.source, axis, before.indices[indices])
        self.known[instruction.outs[0]] = movement
        return movement

    def take(self, instruction: Instruction, movement: Movement) -> Value:
        """The value that a movement leads to, in the place of an instruction's result."""
        source, axis, indices = self.note(instruction, movement)
        type = instruction.outs[0].type
        if np.array_equal(indices, np.arange(source.type.shape[axis])):
            return source
        ins, params = (source.type,), {"indices": indices, "axis": axis}
        operation = self.builder.once(
            ("take", source.type, type, axis, indices.tobytes()),
            lambda: specialise("take", ins, (type,), params, False),
        )
        (result,) = self.builder.emit(operation, (source,))
        self.known[result] = Movement(source, axis, indices)
        return result

    def common(self, values: tuple[Value, ...], axis: int | None) -> list[Movement] | None:
        """Values as movements of one array along one axis, which may be given."""
        known = [self.known.get(value) for value in values]
        first = next((m for m in known if m is not None), None)
        if first is None or (axis is not None and first.axis != axis):
            return None
        source, axis, _ = first
        whole = Movement(source, axis, np.arange(source.type.shape[axis]))
        movements = [
            whole if value is source else movement
            for value, movement in zip(values, known, strict=True)
        ]
        if any(m is None or m.source is not source or m.axis != axis for m in movements):
            return None
        return [m for m in movements if m is not None]

    # -- what moves ---------------------------------------------------------------------------

    def gather(self, instruction: Instruction) -> Value | None:
        operation, ins, _, _, _ = instruction
        key = (operation, ins[1])
        if key not in self.gathers:
            self.gathers[key] = _rows(operation, ins[1].const)
        rows = self.gathers[key]
        return None if rows is None else self.take(instruction, Movement(ins[0], *rows))

    def roll(self, instruction: Instruction) -> Value | None:
        (x, shift), params = instruction.ins, instruction.operation.params
        if shift.const is None or params.get("stride") is not None or not _is_movable(x):
            return None
        axis = params["axis"]
        size = x.type.shape[axis]
        indices = (np.arange(size) - int(shift.const)) % max(size, 1)
        return self.take(instruction, Movement(x, axis, indices))

    def reverse(self, instruction: Instruction) -> None:
        (x,), dimensions = instruction.ins, instruction.operation.params["dimensions"]
        if len(dimensions) == 1 and _is_movable(x):
            (axis,) = dimensions
            self.note(instruction, Movement(x, axis, np.arange(x.type.shape[axis])[::-1]))

    def slice(self, instruction: Instruction) -> None:
        (x,), params = instruction.ins, instruction.operation.params
        if not _is_movable(x):
            return
        shape = x.type.shape
        kept = instruction.outs[0].type.shape
        axes = [axis for axis, size in enumerate(shape) if kept[axis] != size]
        if len(axes) == 1 and kept[axes[0]]:
            (axis,) = axes
            start, stride = params["start_indices"][axis], (params["strides"] or (1,) * len(shape))
            indices = start + stride[axis] * np.arange(kept[axis])
            self.note(instruction, Movement(x, axis, indices))

    def concatenate(self, instruction: Instruction) -> Value | None:
        axis = instruction.operation.params["dimension"]
        parts = self.common(instruction.ins, axis)
        if parts is None:
            return None
        indices = np.concatenate([part.indices for part in parts])
        return self.take(instruction, Movement(parts[0].source, axis, indices))

    def select(self, instruction: Instruction) -> Value | None:
        predicate, *cases = instruction.ins
        mask = predicate.const
        if mask is None or mask.dtype != np.bool_ or len(cases) != 2 or not mask.ndim:
            return None
        movements = self.common(tuple(cases), None)
        if movements is None:
            return None
        (source, axis, no), (_, _, yes) = movements
        line = mask[tuple(slice(None) if d == axis else slice(1) for d in range(mask.ndim))]
        if not (mask == line).all():
            return None
        indices = np.where(line.ravel(), yes, no)
        return self.take(instruction, Movement(source, axis, indices))

    methods = {
        "gather": gather,
        "roll": roll,
        "rev": reverse,
        "slice": slice,
        "concatenate": concatenate,
        "select_n": select,
    }


def _is_movable(value: Value) -> bool:
    type = value.type
    if not isinstance(type, ArrayType) or not type.ndim:
        return False
    return 0 < min(type.shape) <= max(type.shape) <= _LARGEST_TRIED


def _rows(operation: Operation, indices: np.ndarray | None) -> tuple[int, np.ndarray] | None:
    """The axis of a gather, and the indices along it of its whole result. None if it has no such
    axis."""
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
            return axis, at
    return None
