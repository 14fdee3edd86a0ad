"""How NumPy lays out the arrays of a program in memory: the order of sums depends on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator.codegen.native.places import BufferPlace, reach, strides_of
from pallas_shim.evaluator.program import Instruction, Program, RefType, Value

Strides = tuple[int, ...]

# These give contiguous arrays of contiguous ones.
_CONTIGUOUS = frozenset({
    "abs", "add", "add_any", "and", "clamp", "convert_element_type", "copy", "div", "eq", "exp",
    "floor_divide", "floor_remainder", "ge", "get", "gt", "integer_pow", "iota", "is_finite", "le",
    "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pow", "reduce_max",
    "reduce_min", "reduce_sum", "rem", "round", "rsqrt", "select_n", "sign", "sub", "take", "tanh",
    "xor",
})  # fmt: skip


class Layouts:
    """The strides of the arrays of a program, without those along dimensions of one element. An
    instruction's function is run on zeros, where that can't be known otherwise."""

    def __init__(self, program: Program, places: Mapping[Value, BufferPlace]):
        """``places``: where refs, among others, are."""
        self._places = places
        self._known: dict[Value, Strides | None] = {}
        self._made: dict[Value, Instruction] = {}
        self._given: dict[Value, list[tuple[Value, bool]]] = {}  # may be these, or their rows
        for instruction in program.top.walk():
            self._made.update(dict.fromkeys(instruction.outs, instruction))
            if instruction.name in ("scan", "while") and instruction.regions:
                self._loop(instruction)

    def of(self, value: Value) -> Strides | None:
        """The strides of a value, None if they aren't known."""
        shape, dtype = value.type.shape, value.type.dtype
        if value.const is not None:
            return value.const.strides
        if value not in self._known:
            self._known[value] = strides_of(shape, dtype)  # until another one is found
            found = self._found(value)
            self._known[value] = found
        return self._known[value]

    def is_contiguous(self, value: Value) -> bool:
        shape = value.type.shape
        return not shape or significant(self.of(value), shape) == significant(
            strides_of(shape, value.type.dtype), shape
        )

    def _loop(self, instruction: Instruction) -> None:
        *conditions, body = instruction.regions
        count = instruction.operation.params.get("num_carry", len(instruction.ins))
        for n, value in enumerate(instruction.ins[:count]):
            both = [(value, False), (body.results[n], False)]
            for region in (*conditions, body):
                self._given[region.params[n]] = both
            self._given[instruction.outs[n]] = both
        for param, value in zip(body.params[count:], instruction.ins[count:], strict=True):
            self._given[param] = [(value, True)]

    def _found(self, value: Value) -> Strides | None:
        shape = value.type.shape
        contiguous = strides_of(shape, value.type.dtype)
        if value in self._given:
            whole = all(self.is_contiguous(source) for source, _ in self._given[value])
            return contiguous if whole else None
        made = self._made.get(value)
        if isinstance(value.type, RefType):
            return self._places[value].strides if value in self._places else None
        if made is None:
            return contiguous  # a parameter of the program
        if made.regions:
            results = [region.results[made.outs.index(value)] for region in made.regions
                       if made.name == "switch"]  # fmt: skip
            return contiguous if all(map(self.is_contiguous, results)) else None
        operands = [v for v in made.ins if v.type.shape]
        known = made.name in _CONTIGUOUS or isinstance(made.operation.fn, np.ufunc)
        if known and not made.operation.view and all(map(self.is_contiguous, operands)):
            return contiguous
        return self._learnt(made, value)

    def _learnt(self, made: Instruction, value: Value) -> Strides | None:
        operands = []
        for operand in made.ins:
            shape, dtype = operand.type.shape, operand.type.dtype
            if operand.const is not None:
                operands.append(operand.const[()])
                continue
            strides = self.of(operand)
            if strides is None:
                return None
            operands.append(zeros(shape, dtype, strides) if shape else dtype.type(0))
        assert made.operation.fn is not None
        try:
            with np.errstate(all="ignore"):
                results = made.operation.fn(*operands)
        except Exception:
            return None
        result = results[made.outs.index(value)] if made.operation.multiple else results
        found = getattr(result, "strides", None)
        return found if np.shape(result) == value.type.shape else None


def zeros(shape: Strides, dtype: np.dtype, strides: Strides) -> np.ndarray:
    """An array that is laid out like that."""
    low, high = reach(shape, strides)
    memory = np.zeros(high - low + dtype.itemsize, np.uint8)
    return np.ndarray(shape, dtype, memory, -low, strides)


def significant(strides: Sequence[int] | None, shape: Sequence[int]) -> list[Any] | None:
    """Strides without those along dimensions of one element."""
    if strides is None:
        return None
    return [s for s, n in zip(strides, shape, strict=True) if n != 1]


def is_dense(strides: Sequence[int], shape: Sequence[int], dtype: np.dtype) -> bool:
    """Whether an array's elements fill its memory, each at a place of its own."""
    size = dtype.itemsize
    for stride, count in sorted((s, n) for s, n in zip(strides, shape, strict=True) if n != 1):
        if stride != size:
            return False
        size *= count
    return True
