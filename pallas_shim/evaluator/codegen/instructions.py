"""Writes instructions as lines of source, except loops and branches."""

from __future__ import annotations

import abc
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from pallas_shim.evaluator import memory, scalars
from pallas_shim.evaluator.analysis import ranges
from pallas_shim.evaluator.analysis.liveness import dead_after
from pallas_shim.evaluator.codegen import numbers, places
from pallas_shim.evaluator.codegen.numbers import Number
from pallas_shim.evaluator.codegen.source import Source
from pallas_shim.evaluator.program import PURE, ArrayType, Instruction, Region, Value

# These operands come as the leaves of a path, which any kind of number can be.
_FIRST_LEAF = {"get": 1, "store": 2, "view": 1}

# The source of the operations that `scalars` has for floats.
_OPERATORS: dict[Any, str] = {
    operator.add: "{} + {}",
    operator.sub: "{} - {}",
    operator.mul: "{} * {}",
    operator.neg: "-{}",
    operator.abs: "abs({})",
    operator.eq: "{} == {}",
    operator.ne: "{} != {}",
    operator.lt: "{} < {}",
    operator.le: "{} <= {}",
    operator.gt: "{} > {}",
    operator.ge: "{} >= {}",
}


def is_written_out(instruction: Instruction) -> bool:
    """Whether an instruction is one that needs no call, as far as its types tell."""
    operation, _, outs, regions, _ = instruction
    if regions:
        return False
    if operation.name == "view":
        return "block" in operation.params
    if operation.name in ("get", "store"):
        return places.has_key(operation.params.get("path"))
    return len(outs) == 1 and numbers.kind(outs[0].type) is not None


class Instructions(Source, abc.ABC):
    def __init__(self, slot: Callable[[Value], int]):
        super().__init__(slot)
        self.conditions: dict[Value, str] = {}  # the booleans that integers were made of

    @abc.abstractmethod
    def structured(self, instruction: Instruction) -> None:
        """Writes out a loop or a branch."""

    def region(self, region: Region) -> None:
        dead = dead_after(region.body, region.results)
        for position, instruction in enumerate(region.body):
            self.at = instruction
            self.instruction(instruction)
            for value in dead.get(position, ()):
                self.line(f"{self.names[value]} = None")

    def instruction(self, instruction: Instruction) -> None:
        operation, ins, outs, regions, _ = instruction
        if operation.fn is memory.same:
            self._rename(outs[0], ins[0])
        elif regions:
            self.structured(instruction)
        elif not (self._number(instruction) or self._access(instruction)):
            self._call(instruction)

    def _rename(self, new: Value, old: Value) -> None:
        self.names[new] = self.text(old)
        if numbers.kind(old.type):
            self.known_limits[new] = self.limits(old)

    def _number(self, instruction: Instruction) -> bool:
        """Writes out arithmetic on scalars; False if it isn't that."""
        operation, ins, outs, _, _ = instruction
        types = [v.type for v in (*ins, *outs)]
        if operation.effects != PURE or len(outs) != 1:
            return False
        if not ins or not all(isinstance(t, ArrayType) and not t.shape for t in types):
            return False
        if all(numbers.kind(t) for t in types[:-1]):
            operands = list(map(self.number, ins))
            found = numbers.expression(operation.name, operation.ins, types[-1], operands)
            if found is not None:
                self._assign(outs[0], found)
                if operation.name == "convert_element_type" and ins[0].type.dtype.kind == "b":
                    self.conditions[outs[0]] = operands[0].text
                return True
        symbol = _OPERATORS.get(scalars.function(operation))
        if symbol is None or any(map(numbers.kind, types[:-1])):
            return False
        operands_text = [self.text(v) for v in ins]
        self.line(f"{self.fresh(outs[0])} = {symbol.format(*operands_text)}")
        return True

    def _assign(self, out: Value, number: Number) -> None:
        assert isinstance(out.type, ArrayType)
        low, high = whole = ranges.of_dtype(out.type.dtype)
        text = number.text
        if number.range.within(whole):
            self.known_limits[out] = number.range
            self.line(f"{self.fresh(out)} = {text}")
        elif low == 0:
            self.line(f"{self.fresh(out)} = {numbers.wrapped(text, out.type.dtype)}")
        else:
            name = self.fresh(out)
            back = numbers.wrapped(name, out.type.dtype)
            self.line(f"{name} = {text}")
            self.line(f"if not {low} <= {name} <= {high}: {name} = {back}")

    def _access(self, instruction: Instruction) -> bool:
        """Writes out a load, a store or a block; False if it isn't that, or has no short form."""
        operation, ins, outs, _, _ = instruction
        params, path = operation.params, operation.params.get("path")
        if operation.name == "view" and "block" in params:
            leaves = list(map(self.number, ins[1:]))
            key = places.key_of_block(ins[0].ref, params["block"], leaves, self._clamped)
            self.line(f"{self.fresh(outs[0])} = {key.of(self.text(ins[0]), to_view=True)}")
            return True
        if not places.has_key(path):
            return False
        count = {"get": 1, "store": 2}.get(operation.name)
        if "direct" in params:
            count = len(ins) - places.leaves(path)
        if count is None:
            return False
        key = places.key_of_path(
            ins[0].ref, path, list(map(self.number, ins[count:])), self._clamped
        )
        if "direct" in params:
            operands = ", ".join(map(self.array, ins[1:count]))
            target = key.of(self.text(ins[0]))
            self.line(f"{self.given(params['direct'])}({operands}, out={target})")
        elif key.is_element:
            self._element(instruction, key)
        elif outs:
            copied = "" if operation.view else ".copy()"
            self.line(f"{self.fresh(outs[0])} = {key.of(self.text(ins[0]))}{copied}")
        else:
            place = key.of(self.text(ins[0])) if key.parts else f"{self.text(ins[0])}[...]"
            self.line(f"{place} = {self.text(ins[1])}")
        return True

    def _element(self, instruction: Instruction, key: places.Key) -> None:
        """Writes out the load or the store of one element."""
        _, ins, outs, _, _ = instruction
        ref, kind = ins[0], ins[0].ref.dtype.kind
        buffer = self.buffer(ref) if kind in "iub" else None
        if buffer is not None:
            place = key.of(buffer)
        elif kind in "iu" and outs:
            place = f"{self.text(ref)}.item({', '.join(key.parts)})"
        else:
            place = key.of(self.text(ref))
        self.line(f"{self.fresh(outs[0])} = {place}" if outs else f"{place} = {self.text(ins[1])}")

    def _clamped(self, start: Number, dim: int, size: int) -> str:
        """The start of a slice after XLA has clamped it."""
        text, last = start.text, dim - size
        if not (text.isidentifier() or text.lstrip("-").isdigit()):
            text = self.fresh()
            self.line(f"{text} = {start.text}")
        if 0 <= start.low and start.high <= last:
            return text
        inside = self.fresh()
        clamped = f"{self.given(memory.clamped)}({text}, {dim}, {size})"
        self.line(f"{inside} = {text} if 0 <= {text} <= {last} else {clamped}")
        return inside

    def _call(self, instruction: Instruction) -> None:
        operation, ins, outs, _, _ = instruction
        fn = scalars.function(operation)
        over = ""
        if "into" in operation.params:
            fn = operation.params["ufunc"]
            over = f", out={self.array(ins[operation.params['into']])}"
            ins = ins[: fn.nin]
        leaf = _FIRST_LEAF.get(operation.name, len(ins))
        # NumPy's types make their scalars of Python's numbers, and its ufuncs take those for
        # numbers of the type of the array beside them.
        same_types = len({v.type.dtype for v in ins}) == 1
        if isinstance(fn, type) or isinstance(fn, np.ufunc) and outs[0].type.shape and same_types:
            leaf = 0
        args = ", ".join([*map(self.array, ins[:leaf]), *map(self.text, ins[leaf:])])
        call = f"{self.given(fn)}({args}{over})"
        if not outs:
            self.line(call)
        elif operation.multiple:
            self.line(f"{', '.join(map(self.fresh, outs))}, = {call}")
        else:
            self.line(f"{self.fresh(outs[0])} = {call}")
        for out in outs:
            if numbers.kind(out.type) == "integer":
                self.line(f"{self.names[out]} = int({self.names[out]})")
