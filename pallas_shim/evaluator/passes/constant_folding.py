"""Constant folding: computes what can be computed before the program runs.

It runs pure instructions on constants, and replaces those that return an operand by it
(`identities`). A switch on a constant becomes the branch taken, a loop of one round that round, and
a grid axis of one cell its only index.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pallas_shim.evaluator.floating import as_xla
from pallas_shim.evaluator.passes.identities import IDENTITIES, uniform
from pallas_shim.evaluator.passes.rewrite import (
    Substitution,
    substitute,
    with_operands,
    with_regions,
)
from pallas_shim.evaluator.program import (
    PURE,
    ArrayType,
    Instruction,
    Operation,
    Program,
    Region,
    Type,
    Value,
    branch_taken,
)

# Results of more bytes than this are left to the run, so that programs stay small.
_LARGEST_RESULT = 1 << 20
# Constants up to this many bytes are compared by content, so that equal ones are one value.
_LARGEST_COMPARED = 1 << 16


def fold_constants(program: Program) -> Program:
    return Program(program.name, as_xla(_Folding().region, program.top))


class _Folding:
    def __init__(self) -> None:
        self.replaced: Substitution = {}
        self.known: dict[Any, Any] = {}
        self.by_content: dict[Any, Value] = {}
        self.elements: dict[Value, Any] = {}
        self.foldable: dict[Operation, bool] = {}

    def region(self, region: Region) -> Region:
        body: list[Instruction] = []
        self.block(region, body)
        return Region(region.params, tuple(body), substitute(region.results, self.replaced))

    def block(self, region: Region, body: list[Instruction]) -> None:
        """Appends the remaining instructions of a region to ``body``."""
        replaced, append = self.replaced, body.append
        for instruction in with_operands(region.body, replaced):
            operation, ins, outs, regions, _ = instruction
            if regions:
                self.structured(instruction, body)
                continue
            for value in ins:
                if value.const is None:
                    break
            else:
                results = self.evaluate(operation, ins)
                if results is not None:
                    replaced.update(zip(outs, results, strict=True))
                    continue
            identity = IDENTITIES.get(operation.name)
            if identity is not None:
                same = identity(operation, ins, self.uniform)
                if same is not None:
                    replaced[outs[0]] = same
                    continue
            append(instruction)

    def structured(self, instruction: Instruction, body: list[Instruction]) -> None:
        operation, ins, outs, regions, _ = instruction
        if operation.name == "switch" and ins[0].const is not None:
            taken = regions[branch_taken(int(ins[0].const), len(regions))]
            self.block(taken, body)
            results = substitute(taken.results, self.replaced)
            self.replaced.update(zip(outs, results, strict=True))
            return
        if (
            operation.name == "scan"
            and operation.params["length"] == 1
            and operation.params["num_carry"] == len(ins) == len(outs)
        ):
            self.replaced.update(zip(regions[0].params, ins, strict=True))
            self.block(regions[0], body)
            results = substitute(regions[0].results, self.replaced)
            self.replaced.update(zip(outs, results, strict=True))
            return
        if operation.name == "grid":
            for index, size in zip(regions[0].params, ins, strict=True):
                if size.const is not None and int(size.const) == 1:
                    self.replaced[index] = self.constant(np.zeros((), np.int32), index.type)
        body.append(with_regions(instruction, [self.region(region) for region in regions]))

    def evaluate(self, operation: Operation, ins: tuple[Value, ...]) -> tuple[Value, ...] | None:
        """The results of an instruction on constants, None if it has to stay."""
        foldable = self.foldable.get(operation)
        if foldable is None:
            foldable = self.foldable[operation] = (
                operation.effects is PURE
                and operation.fn is not None
                and all(
                    isinstance(out, ArrayType) and out.nbytes <= _LARGEST_RESULT
                    for out in operation.outs
                )
            )
        if not foldable:
            return None
        key = (operation, ins)
        results = self.known.get(key, key)
        if results is key:
            results = self.known[key] = self.run(operation, ins)
        return results

    def uniform(self, value: Value) -> Any:
        """`uniform`, remembered: unrolled code asks about the same mask a thousand times."""
        if value not in self.elements:
            self.elements[value] = uniform(value)
        return self.elements[value]

    def run(self, operation: Operation, ins: tuple[Value, ...]) -> tuple[Value, ...] | None:
        try:
            results = operation.fn(*[value.const for value in ins])  # type: ignore[misc]
        except Exception:
            return None  # it may never be reached; if it is, the run tells where it failed
        if not operation.multiple:
            results = (results,)
        return tuple(
            [self.constant(np.asarray(r), t) for r, t in zip(results, operation.outs, strict=True)]
        )

    def constant(self, array: np.ndarray, type: Type) -> Value:
        if array.flags.writeable:
            array = array.view()
            array.flags.writeable = False
        if array.nbytes > _LARGEST_COMPARED:
            return Value(type, array)
        return self.by_content.setdefault((type, array.tobytes()), Value(type, array))
