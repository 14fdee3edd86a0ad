"""Alias analysis: which buffers instructions read and write, and at what addresses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pallas_shim.evaluator.program import (
    PURE,
    Instruction,
    Operation,
    Program,
    RefType,
    Region,
    Value,
)
from pallas_shim.evaluator.registry import Unsupported


class ModRef:
    """The buffers that some instructions read and write, and whether the world sees them."""

    __slots__ = ("reads", "writes", "io")

    def __init__(self) -> None:
        self.reads: set[Value] = set()
        self.writes: set[Value] = set()
        self.io = False

    def add(self, other: ModRef) -> None:
        self.reads |= other.reads
        self.writes |= other.writes
        self.io |= other.io


class AliasAnalysis:
    """Where each ref of a program points, and what each region does to memory.

    A buffer is named by its *root*: the value of the allocation, or of the parameter,
    that all refs into it are views of. Distinct roots never overlap.

    Raises:
      Unsupported: a structured operation takes or returns a ref, so that roots can't be
        told. (Regions close over refs; JAX has no loop that carries one. What strength
        reduction has loops take is told.)
    """

    def __init__(self, program: Program):
        self.allocated: set[Value] = set()  # roots that no one outside the program sees
        self._roots: dict[Value, Value] = {}
        self._touched: dict[Region, ModRef] = {}
        self._visit(program.top)

    def root(self, ref: Value) -> Value:
        return self._roots.get(ref, ref)

    def roots(self, instruction: Instruction, positions: Iterable[int]) -> list[Value]:
        """The roots of an instruction's operands at the given positions."""
        return [self._roots.get(ref, ref) for ref in (instruction.ins[p] for p in positions)]

    def touched(self, region: Region) -> ModRef:
        """The accesses of a region to memory that is there before it runs."""
        return self._touched[region]

    def within(self, instruction: Instruction) -> ModRef:
        """The accesses of the regions of a structured instruction."""
        touched = ModRef()
        for region in instruction.regions:
            touched.add(self._touched[region])
        return touched

    def only_users(self, region: Region) -> dict[Value, int]:
        """The buffers that a region makes and only one of its instructions uses, and which."""
        users: dict[Value, int] = {}
        shared = set(region.results)
        for at, instruction in enumerate(region.body):
            operation, ins, outs, regions, _ = instruction
            if operation.effects.allocates:
                users.update(dict.fromkeys(outs, -1))
                continue
            used = {self.root(value) for value in ins if type(value.type) is RefType}
            if regions:
                within = self.within(instruction)
                used |= within.reads | within.writes
            for root in used:
                if users.get(root, -1) != -1:
                    shared.add(root)
                if root in users:
                    users[root] = at
        return {root: at for root, at in users.items() if at != -1 and root not in shared}

    def _note_rows(self, instruction: Instruction, touched: ModRef) -> None:
        """Notes the memory that a loop walks along; a row that is read needs no instruction."""
        operation, ins, outs, regions, _ = instruction
        if not outs and not any(region.params for region in regions):
            return  # its regions get nothing
        first = operation.params["num_carry"] if operation.name == "scan" else len(ins)
        if any(type(value.type) is RefType for value in (*ins[:first], *outs)):
            raise Unsupported(operation.name, "a ref is passed through its operands")
        for at in range(first, len(ins)):
            if type(ins[at].type) is not RefType:
                continue
            root = self.root(ins[at])
            self._roots[regions[0].params[at]] = root
            touched.reads.add(root)

    def _visit(self, region: Region) -> None:
        touched = self._touched[region] = ModRef()
        roots = self._roots
        local: list[Value] = []
        reads, writes = touched.reads, touched.writes
        for instruction in region.body:
            operation, ins, outs, regions, _ = instruction
            effects = operation.effects
            if regions:
                self._note_rows(instruction, touched)
                for inner in regions:
                    self._visit(inner)
                    touched.add(self._touched[inner])
            if effects is not PURE:
                for position in effects.reads:
                    reads.add(roots.get(ins[position], ins[position]))
                for position in effects.writes:
                    writes.add(roots.get(ins[position], ins[position]))
                touched.io |= effects.io
                if effects.allocates:
                    local += outs
                    continue
            if ins and type(ins[0].type) is RefType:
                for out in outs:
                    if type(out.type) is RefType:
                        roots[out] = roots.get(ins[0], ins[0])
        # Each run of the region has its own buffers, so its accesses to them have no address
        # outside.
        self.allocated.update(local)
        touched.reads.difference_update(local)
        touched.writes.difference_update(local)


def written(body: Sequence[Instruction], refs: Iterable[Value]) -> set[Value]:
    """Which of some refs, that these instructions don't make, they write to.

    Raises:
      Unsupported: as `AliasAnalysis` does.
    """
    top = Region((), tuple(body), ())
    return AliasAnalysis(Program("", top)).touched(top).writes.intersection(refs)


def only_reads(operation: Operation) -> bool:
    """Whether it only returns a copy of memory. Equal ones are then one, and it may move."""
    _, writes, allocates, io = operation.effects
    return not (writes or allocates or io or operation.view) and operation.fn is not None


def load_address(instruction: Instruction) -> Any:
    """The address that a load reads, None if it is no load. Equal addresses are the same memory."""
    operation = instruction.operation
    if operation.name != "get" or not only_reads(operation):
        return None
    ref, *leaves = instruction.ins
    return (operation.params["path"], ref, *leaves)


def store_address(instruction: Instruction) -> Any:
    """The address that a store overwrites with its second operand, None if it is no store."""
    if instruction.operation.name != "store":
        return None
    ref, _, *leaves = instruction.ins
    return (instruction.operation.params["path"], ref, *leaves)
