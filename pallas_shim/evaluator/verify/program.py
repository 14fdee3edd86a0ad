"""Checks one program: its values, types, parameters, effects and regions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pallas_shim.evaluator import ops
from pallas_shim.evaluator.analysis.alias import AliasAnalysis
from pallas_shim.evaluator.op_types import broadcasts
from pallas_shim.evaluator.program import (
    ArrayType,
    Instruction,
    Operation,
    Program,
    Region,
    Type,
    Value,
)
from pallas_shim.evaluator.registry import BATCHING_RULES, Unsupported
from pallas_shim.evaluator.verify.errors import InvalidProgram, invalid
from pallas_shim.evaluator.verify.lifetimes import SHARES, Lifetimes
from pallas_shim.evaluator.verify.operations import wrong_with


class Check:
    """The checks of one program. ``right``: the operations that are already checked."""

    def __init__(self, program: Program, after: str, right: set[Operation]):
        self.program = program
        self.after = after
        self.right = right
        self.scope: set[Value] = set()
        self.ever: set[Value] = set()
        self.instruction: Instruction | None = None
        self.overwrites = False  # whether some instruction writes over an operand
        self.views = False  # whether some load is a view

    def fail(self, what: str, instruction: Instruction | None = None) -> InvalidProgram:
        at = self.instruction if instruction is None else instruction
        return invalid(self.program, self.after, at, what)

    def run(self) -> AliasAnalysis | None:
        """Runs the checks, and returns the alias analysis. If the buffers of refs can't be told, it
        returns None, and the checks of memory are skipped."""
        self.region(self.program.top)
        try:
            memory = AliasAnalysis(self.program)
        except Unsupported:
            return None
        self.shared_buffers(memory)
        if self.overwrites or self.views:
            Lifetimes(self.program, self.after, memory).run()
        return memory

    # -- values -----------------------------------------------------------------------------

    def define(self, values: Iterable[Value]) -> None:
        for value in values:
            if value in self.ever:
                raise self.fail("it defines a value that is defined elsewhere, too")
            if value.const is not None:
                raise self.fail("it defines a constant")
            self.ever.add(value)
            self.scope.add(value)

    def use(self, values: Iterable[Value], what: str) -> None:
        scope = self.scope
        for position, value in enumerate(values):
            if value in scope:
                continue
            if value.const is None:
                known = "outside of where it is defined" if value in self.ever else (
                    "before it is defined, if it is at all"
                )
                raise self.fail(f"{what} {position} is used {known}")
            if value.const.shape != value.type.shape or value.const.dtype != value.type.dtype:
                raise self.fail(f"{what} {position} is a {value.type}, and its constant isn't")
            scope.add(value)

    # -- instructions -------------------------------------------------------------------------

    def region(self, region: Region) -> None:
        self.define(region.params)
        right, holder = self.right, self.instruction
        defined = list(region.params)
        for instruction in region.body:
            self.instruction = instruction
            operation, ins, outs, regions, _ = instruction
            self.use(ins, "operand")
            if operation not in right:
                wrong = wrong_with(_as_given(operation, ins))
                if wrong is not None:
                    raise self.fail(wrong)
                right.add(operation)
            self.types("operand", ins, operation.ins, operation)
            self.types("result", outs, operation.outs, None)
            if ops.INTO in operation.params:
                self.overwrites = True
            elif operation.view and operation.name == "get":
                self.views = True
            if regions or operation.fn is None:
                self.structured(instruction)
            self.define(outs)
            defined += outs
        self.instruction = holder
        self.use(region.results, "result of a region")
        self.scope.difference_update(defined)

    def types(
        self, what: str, values: Sequence[Value], types: Sequence[Type],
        operation: Operation | None,
    ) -> None:  # fmt: skip
        if len(values) != len(types):
            raise self.fail(f"it has {len(values)} {what}s, its operation {len(types)}")
        for position, (value, type) in enumerate(zip(values, types, strict=True)):
            if value.type is type or value.type == type:
                continue
            if operation is None or not _spreads(value.type, type, operation):
                raise self.fail(f"{what} {position} is a {value.type}, its operation has {type}")

    def structured(self, instruction: Instruction) -> None:
        row = ops.row_of(instruction.operation)
        if row.regions is None:
            raise self.fail(f"{instruction.name} has regions")
        for region in instruction.regions:
            self.region(region)
        wrong = row.regions(instruction)
        if wrong is not None:
            raise self.fail(wrong)

    # -- memory -----------------------------------------------------------------------------

    def shared_buffers(self, memory: AliasAnalysis) -> None:
        """Checks that nothing writes to a buffer that shares its operand's memory."""
        shared = {
            i.outs[0]: i for i in self.program.top.walk()
            if i.name == "buffer" and i.operation.fn in SHARES
        }  # fmt: skip
        for instruction in self.program.top.walk() if shared else ():
            for root in memory.roots(instruction, instruction.operation.effects.writes):
                if root in shared:
                    raise self.fail("it writes to an operand's own memory", instruction)


def _spreads(value: Type, type: Type, operation: Operation) -> bool:
    """Whether an operation takes a value with another shape than its operand type. Elementwise
    operations over axes in front keep the types that they were made for, and NumPy broadcasts."""
    form = BATCHING_RULES.get(operation.name)
    if form is None or not form.broadcasts or not isinstance(value, ArrayType):
        return False
    return value.dtype == type.dtype and broadcasts(value.shape, operation.outs[0].shape)


def _as_given(operation: Operation, ins: Sequence[Value]) -> Operation:
    """The operation with the types of its actual operands."""
    types = tuple([value.type for value in ins])
    if types == operation.ins or operation.fn is None or len(types) != len(operation.ins):
        return operation
    if not all(_spreads(a, b, operation) for a, b in zip(types, operation.ins, strict=True)):
        return operation
    return Operation(
        operation.name, operation.params, types, operation.outs, operation.fn, operation.effects,
        operation.view, operation.multiple,
    )  # fmt: skip
