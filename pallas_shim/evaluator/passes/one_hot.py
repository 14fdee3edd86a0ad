"""One-hot masks: computes with the places that they name, instead of with all elements.

Vector units have no gather. So kernels compare a row of indices with the one that they look for,
and select by the mask. The mask is true at one place of each row at most:

- a sum of what it keeps is one element;
- what it replaces is one element;
- the least index that any mask keeps is that of its first true element.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pallas_shim.evaluator.passes.identities import uniform
from pallas_shim.evaluator.passes.peephole import Peephole
from pallas_shim.evaluator.program import ArrayType, Instruction, Value, array_type

# In smaller arrays, or shorter rows, NumPy's calls cost more than computing with all elements.
_FEWEST, _SHORTEST = 2048, 16
# Larger constants aren't compared with indices.
_LARGEST = 1 << 20


class TruePlace(NamedTuple):
    """Where along an axis a mask is true, for each row along it."""

    value: Value
    axis: int


class OneHot(Peephole):
    def __init__(self) -> None:
        super().__init__()
        self.places: dict[Value, TruePlace] = {}  # of masks
        self.selects: dict[Value, Instruction] = {}
        self.counted: dict[Value, int | None] = {}

    def compare(self, instruction: Instruction) -> None:
        x, y = instruction.ins
        (out,) = instruction.outs
        type = array_type(out.type)
        if type.size < _FEWEST:
            return
        for indices, value in ((x, y), (y, x)):
            axis = self.axis_of_indices(indices, type)
            if axis is not None and _is_one_along(value, axis, type):
                self.places[out] = TruePlace(value, axis)

    def axis_of_indices(self, value: Value, type: ArrayType) -> int | None:
        """The axis of a larger array along which a constant counts from 0, if it doesn't differ
        along others."""
        if value not in self.counted:
            self.counted[value] = _counted_axis(value.const)
        axis = self.counted[value]
        if axis is None or value.const is None:
            return None
        axis += len(type.shape) - value.const.ndim
        return axis if type.shape[axis] >= _SHORTEST else None

    def select(self, instruction: Instruction) -> Value | None:
        which, *cases = instruction.ins
        (out,) = instruction.outs
        if which.type.shape != out.type.shape or which.type.dtype != np.bool_ or len(cases) != 2:
            return None
        if array_type(out.type).size < _FEWEST:
            return None
        self.selects[out] = instruction
        place, (array, chosen) = self.places.get(which), cases
        replacement = uniform(chosen)
        if place is None or replacement is None or array.type != out.type:
            return None
        element = self.builder.const(replacement)
        return self.builder.apply_one(
            "one_hot_set", (array, place.value, element), out.type, axis=place.axis
        )

    def least(self, instruction: Instruction) -> Value | None:
        """The first true element of each row, as the least of its indices."""
        select, axis = self.selects.get(instruction.ins[0]), _last_axis(instruction)
        if select is None or axis is None:
            return None
        which, otherwise, indices = select.ins
        type, (out,) = array_type(select.outs[0].type), instruction.outs
        none = uniform(otherwise)
        if none is None or type.dtype.kind not in "iu":
            return None
        if self.axis_of_indices(indices, type) != axis or none < type.shape[axis] - 1:
            return None
        params = {"axes": (axis,), "none": int(none)}
        return self.builder.apply_one("first_true", (which,), out.type, **params)

    def sum(self, instruction: Instruction) -> Value | None:
        """The only element of each row that isn't zero."""
        select, axes = self.selects.get(instruction.ins[0]), instruction.operation.params["axes"]
        if select is None:
            return None
        which, otherwise, array = select.ins
        place, (out,) = self.places.get(which), instruction.outs
        if place is None or tuple(axes) != (place.axis,) or array.type != select.outs[0].type:
            return None
        dtype, zero = out.type.dtype, uniform(otherwise)
        if dtype != array.type.dtype or dtype.kind not in "iuf" or dtype.itemsize < 4:
            return None
        if zero is None or zero != 0 or np.signbit(zero):
            return None
        operands = array, place.value
        return self.builder.apply_one("one_hot_get", operands, out.type, axes=tuple(axes))

    methods = {"eq": compare, "select_n": select, "reduce_min": least, "reduce_sum": sum}


def _is_one_along(value: Value, axis: int, type: ArrayType) -> bool:
    """Whether an operand of an operation on larger arrays is the same all along an axis."""
    axis -= len(type.shape) - len(value.type.shape)
    return axis < 0 or value.type.shape[axis] == 1


def _last_axis(instruction: Instruction) -> int | None:
    """The axis of a reduction, if it is the last one and the only one."""
    axes, last = instruction.operation.params["axes"], len(instruction.ins[0].type.shape) - 1
    return last if tuple(axes) == (last,) else None


def _counted_axis(array: np.ndarray | None) -> int | None:
    if array is None or array.dtype.kind not in "iu" or not 1 < array.size <= _LARGEST:
        return None
    long = [axis for axis in range(array.ndim) if array.shape[axis] > 1]
    lines = [array[(0,) * axis + (slice(None),) + (0,) * (array.ndim - axis - 1)] for axis in long]
    counts = [np.array_equal(line, np.arange(len(line))) for line in lines]
    if counts.count(True) != 1:
        return None
    at = counts.index(True)
    line = lines[at].reshape([-1 if axis == long[at] else 1 for axis in range(array.ndim)])
    return long[at] if (array == line).all() else None
