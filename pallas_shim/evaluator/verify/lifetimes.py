"""Checks lifetimes of arrays that share memory.

Nothing uses an array after an instruction has written over it, and nothing overwrites memory while
a load's view of it is in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pallas_shim.evaluator import memory as memory_paths
from pallas_shim.evaluator import ops
from pallas_shim.evaluator.analysis.alias import AliasAnalysis
from pallas_shim.evaluator.passes.rewrite import is_ufunc
from pallas_shim.evaluator.program import Instruction, Program, RefType, Region, Value
from pallas_shim.evaluator.verify.errors import InvalidProgram, invalid

# A buffer with one of these functions shares its operand's memory.
SHARES = (memory_paths.same, np.asarray)


class Storage(NamedTuple):
    """Memory that values may share. ``by``: the instruction that makes or views it. ``at``: the
    number of that instruction. ``loops``: the number of loops around it. ``root``: the buffer that
    it loads from, or None."""

    value: Value
    at: int
    region: Region
    loops: int
    by: Instruction
    root: Value | None


class Lifetimes:
    """Finds which arrays share memory, and the last use of each. It walks once in the order of the
    text, and numbers instructions in that order. A region uses its results after its body.

    ``memories``: for each value the memory that it may share: arrays that instructions make, and
    memory behind loads that are views. Each round of a loop makes new arrays, so a carried value
    shares no array that is made inside.
    """

    def __init__(self, program: Program, after: str, memory: AliasAnalysis):
        self.program = program
        self.after = after
        self.memory = memory
        self.memories: dict[Value, frozenset[Storage]] = {}
        self.made_at: dict[Value, int] = {}
        self.last: dict[Value, int] = {}  # the last use of each value that shares memory
        self.writes: dict[Value, list[tuple[int, Instruction]]] = {}
        self.overwrites: list[tuple[int, Region, Instruction]] = []
        self.loads: list[Storage] = []
        self.leaving: list[tuple[Storage, Instruction]] = []  # views in the results of loops
        self.loops: list[int] = []  # the numbers of the loops around
        self.ends: dict[int, int] = {}
        # For each value, the numbers of loops that use it and don't make its memory.
        self.again: dict[Value, set[int]] = {}
        self.count = 0

    def run(self) -> None:
        self.region(self.program.top)
        users: dict[Storage, list[Value]] = {}
        for value, memories in self.memories.items():
            for memory in memories:
                users.setdefault(memory, []).append(value)
        for at, region, instruction in self.overwrites:
            self.overwritten(at, region, instruction, users)
        for load in self.loads:
            self.viewed(load, users[load])

    # -- the walk ---------------------------------------------------------------------------

    def region(self, region: Region) -> None:
        for instruction in region.body:
            self.count += 1
            at = self.count
            operation, ins, outs, regions, _ = instruction
            for value in ins:
                self.use(value, at)
            if regions:
                self.structured(instruction, at)
            else:
                self.plain(region, instruction, at)
            for root in self.memory.roots(instruction, operation.effects.writes):
                self.writes.setdefault(root, []).append((at, instruction))
            for out in outs:
                self.made_at[out] = self.count  # after the regions' instructions
        self.count += 1
        for value in region.results:
            self.use(value, self.count)

    def use(self, value: Value, at: int) -> None:
        memories = self.memories.get(value)
        if memories:
            # If a loop doesn't make the memory itself, each round may use it again.
            outer = min([memory.loops for memory in memories])
            around = self.loops[outer:]
            self.last[value] = max(self.last.get(value, 0), at)
            if around:
                self.again.setdefault(value, set()).add(around[0])

    def plain(self, region: Region, instruction: Instruction, at: int) -> None:
        operation, ins, outs, _, _ = instruction
        position = operation.params.get(ops.INTO)
        if position is not None and not operation.effects.writes:
            self.overwrites.append((at, region, instruction))
            self.share(outs, [ins[position]])
        elif operation.name == "get" and operation.view and outs[0].type.shape:
            (root,) = self.memory.roots(instruction, (0,))
            load = Storage(outs[0], at, region, len(self.loops), instruction, root)
            self.loads.append(load)
            self.memories[outs[0]] = frozenset([load])
        elif ins and (operation.view or operation.fn in SHARES or operation.name == "buffer"):
            self.share(outs, ins[:1])
        else:
            for out in outs:
                if not isinstance(out.type, RefType):
                    made = Storage(out, at, region, len(self.loops), instruction, None)
                    self.memories[out] = frozenset([made])

    def share(self, values: Iterable[Value], sources: Iterable[Value]) -> None:
        none: frozenset[Storage] = frozenset()
        found = none.union(*[self.memories.get(source, none) for source in sources])
        for value in values if found else ():
            self.memories[value] = self.memories.get(value, none) | found

    def structured(self, instruction: Instruction, at: int) -> None:
        _, ins, outs, regions, _ = instruction
        if instruction.name == "switch":
            for region in regions:
                self.region(region)
                for out, result in zip(outs, region.results, strict=True):
                    self.share([out], [result])
            return
        if instruction.name == "programs":
            self.programs(instruction, at)
            return
        self.loops.append(at)
        inside = len(self.loops)
        count = instruction.operation.params.get("num_carry", len(ins))
        for region in regions if instruction.name != "grid" else ():
            for param, value in zip(region.params, ins, strict=True):
                self.made_at[param] = at
                self.share([param], [value])
        for region in regions:
            self.region(region)
        self.loops.pop()
        self.ends[at] = self.count
        if instruction.name == "grid":
            return
        for number, out in enumerate(outs[:count]):
            result = regions[-1].results[number]
            self.share([out], [result, regions[0].params[number]])
            for memory in self.memories.get(result, ()):
                if memory.root is not None:
                    self.leaving.append((memory, instruction))
                if memory.loops < inside:  # made outside, and carried under another name
                    for region in regions:
                        param = region.params[number]
                        self.memories[param] = self.memories.get(param, frozenset()) | {memory}

    def programs(self, instruction: Instruction, at: int) -> None:
        """Walks the region of programs. Each program has parts of the operands. The results may
        share memory that a program made."""
        _, ins, outs, (region,), _ = instruction
        self.loops.append(at)
        for param in region.params:
            self.made_at[param] = at
        operands = ins[1:]
        parts = region.params[len(region.params) - len(operands) :]
        for param, value in zip(parts, operands, strict=True):
            self.share([param], [value])
        self.region(region)
        self.loops.pop()
        self.ends[at] = self.count
        for out, result in zip(outs, region.results, strict=True):
            self.share([out], [result])

    def fail(self, what: str, instruction: Instruction) -> InvalidProgram:
        return invalid(self.program, self.after, instruction, what)

    # -- what is checked ----------------------------------------------------------------------

    def last_use(self, value: Value) -> int:
        ends = [self.ends[loop] for loop in self.again.get(value, ())]
        return max([self.last.get(value, 0), *ends])

    def overwritten(
        self, at: int, region: Region, instruction: Instruction,
        users: Mapping[Storage, list[Value]],
    ) -> None:  # fmt: skip
        over = instruction.ins[instruction.operation.params[ops.INTO]]
        memories = self.memories.get(over, frozenset())
        own = bool(memories) and all(
            memory.region is region and memory.root is None and _makes_array(memory.by)
            for memory in memories
        )
        if not own:
            raise self.fail(
                "it writes over an array that isn't one of this round's own", instruction
            )
        for memory in memories:
            for value in users[memory]:
                if self.made_at.get(value, 0) < at < self.last_use(value):
                    raise self.fail(
                        "it writes over an array that is used afterwards", instruction
                    )

    def viewed(self, load: Storage, users: Sequence[Value]) -> None:
        assert load.root is not None
        last = max([self.last_use(value) for value in users])
        top = self.program.top
        if load.root not in self.memory.allocated and not set(top.results).isdisjoint(users):
            raise self.fail("it gives a view of the caller's memory", load.by)
        for at, write in self.writes.get(load.root, ()):
            if load.at < at < last:
                raise self.fail("it overwrites what a load views that is still used", write)
        for memory, loop in self.leaving:
            if memory is load and load.root in self.memory.within(loop).writes:
                raise self.fail("what it views is overwritten in the next round", load.by)


def _makes_array(instruction: Instruction) -> bool:
    """Whether an instruction's result is certainly a new array."""
    operation = instruction.operation
    return (
        is_ufunc(operation) or operation.name in ops.MAKES_ARRAYS or ops.INTO in operation.params
    )
