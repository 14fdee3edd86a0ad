"""Checks that a pass keeps visible stores, outside effects, and the order of loads and stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from pallas_shim.evaluator.analysis.alias import AliasAnalysis, store_address
from pallas_shim.evaluator.program import Instruction, Operation, Program, RefType, Region, Value
from pallas_shim.evaluator.verify.errors import InvalidProgram, invalid

# Only these passes may change the number of stores. dead_code removes stores that nobody reads.
# grid_batching and loop_distribution replace loops. in_place_recurrences computes more results
# where they are stored.
LEAVES_OUT_UNSEEN_STORES = frozenset({"dead_code"})
MULTIPLIES_LOOPS = frozenset({"grid_batching", "loop_distribution"})
ADDS_STORES = MULTIPLIES_LOOPS | {"in_place_recurrences"}

_WORLD = "the outside world"  # stands for the buffer of an `io` effect


class _Access(NamedTuple):
    """An access of an instruction to one buffer. ``at``: the instruction's number in the order of
    the text. ``loops``: the numbers of the loops around it."""

    at: int
    root: Any
    instruction: Instruction
    loops: tuple[int, ...]

    @property
    def key(self) -> Any:
        operation, ins, outs, _, _ = self.instruction
        return outs or (operation, ins)


class ProgramEffects:
    """The effects of a program on memory and on the outside world."""

    def __init__(self, program: Program, memory: AliasAnalysis):
        self.program = program
        self.memory = memory
        self.reads: list[_Access] = []
        self.writes: list[_Access] = []
        self.structured: set[Operation] = set()
        self.seen_by: dict[Value, tuple[int, ...]] = {}  # for each load, the stores before
        self.made_in: dict[Value, tuple[int, ...]] = {}  # the loops around an allocation
        self._loops: tuple[int, ...] = ()
        self._number = 0
        self._written: Counter[Any] = Counter()
        self._visit(program.top)
        self.counts = Counter([access.root for access in self.writes])

    def _visit(self, region: Region) -> None:
        roots = self.memory.roots
        for instruction in region.body:
            self._number += 1
            operation, ins, outs, regions, _ = instruction
            reads, writes, allocates, io = operation.effects
            if regions:
                self.structured.add(operation)
                for value in ins:  # a loop may walk along rows of memory
                    if isinstance(value.type, RefType):
                        self._add(self.reads, self.memory.root(value), instruction)
                loops = self._loops
                if operation.name != "switch":
                    self._loops = (*loops, self._number)
                for inner in regions:
                    self._visit(inner)
                self._loops = loops
            for root in roots(instruction, reads):
                self._add(self.reads, root, instruction)
            if reads and not writes:
                for out in outs:
                    self.seen_by[out] = tuple([self._written[r] for r in roots(instruction, reads)])
            written: list[Any] = [*roots(instruction, writes), *([_WORLD] if io else [])]
            for root in written:
                self._add(self.writes, root, instruction)
                self._written[root] += 1
            if allocates:
                self.made_in.update(dict.fromkeys(outs, self._loops))

    def _add(self, to: list[_Access], root: Any, instruction: Instruction) -> None:
        to.append(_Access(self._number, root, instruction, self._loops))


def effects_of(program: Program) -> ProgramEffects:
    return ProgramEffects(program, AliasAnalysis(program))


class Comparison:
    def __init__(self, before: ProgramEffects, after: ProgramEffects, name: str):
        self.before = before
        self.after = after
        self.name = name

    def fail(self, what: str, instruction: Instruction | None = None) -> InvalidProgram:
        program = self.after.program if instruction is None else self.before.program
        return invalid(program, self.name, instruction, what)

    def check(self) -> None:
        before, after = self.before.program.top, self.after.program.top
        if before.params != after.params:
            raise self.fail("it has other parameters than before")
        if [v.type for v in before.results] != [v.type for v in after.results]:
            raise self.fail("it has results of other types than before")
        if self.name in LEAVES_OUT_UNSEEN_STORES:
            self.unseen()
            return
        least, most = self.bounds(before)
        if self.name in MULTIPLIES_LOOPS:
            # The pass may have replaced buffers that nothing reads any more.
            read = {access.root for access in self.after.reads}
            own = self.before.memory.allocated - read
            least = Counter({root: n for root, n in least.items() if root not in own})
        for root in least.keys() | (self.after.counts.keys() & self.before.counts.keys()):
            count = self.after.counts[root]
            if count < least[root]:
                lost = self.gone(root)
                raise self.fail(f"a store, or what the world sees, is gone ({count} are left of "
                                f"at least {least[root]})", lost)  # fmt: skip
            if count > most[root] and self.name not in ADDS_STORES:
                raise self.fail(f"there are more stores to one buffer: {count} for {most[root]}")
        if self.before.counts == self.after.counts:
            self.order()

    def bounds(self, region: Region) -> tuple[Counter[Any], Counter[Any]]:
        """The smallest and the largest number of stores to each buffer that a pass may leave. If a
        switch is gone, one of its branches remains."""
        least: Counter[Any] = Counter()
        most: Counter[Any] = Counter()
        roots = self.before.memory.roots
        for instruction in region.body:
            effects = instruction.operation.effects
            found = [*roots(instruction, effects.writes), *([_WORLD] if effects.io else [])]
            least.update(found)
            most.update(found)
            if not instruction.regions:
                continue
            inner = list(map(self.bounds, instruction.regions))
            if instruction.name == "switch" and self.is_gone(instruction):
                which = instruction.ins[0].const
                if which is not None:
                    inner = [inner[min(max(int(which), 0), len(inner) - 1)]]
                low = inner[0][0]
                for one, _ in inner[1:]:
                    low = low & one
                least.update(low)
                high: Counter[Any] = Counter()
                for _, one in inner:
                    high |= one
                most.update(high)
            else:
                for low, high in inner:
                    least.update(low)
                    most.update(high)
        return least, most

    def is_gone(self, switch: Instruction) -> bool:
        return self.name in MULTIPLIES_LOOPS or switch.operation not in self.after.structured

    def gone(self, root: Any) -> Instruction | None:
        """An instruction that wrote to the buffer and is gone. None if there is none."""
        left = Counter([access.key for access in self.after.writes if access.root is root])
        for access in self.before.writes:
            if access.root is root:
                left[access.key] -= 1
                if left[access.key] < 0:
                    return access.instruction
        return None

    def order(self) -> None:
        """Checks that each remaining load sees the same stores."""
        for value, seen in self.after.seen_by.items():
            if self.before.seen_by.get(value, seen) != seen:
                load = next(a.instruction for a in self.after.reads if value in a.instruction.outs)
                raise invalid(
                    self.after.program, self.name, load,
                    "it has changed places with a store to what it loads",
                )  # fmt: skip

    def unseen(self) -> None:
        """Checks that the removed stores were never read, or were overwritten."""
        left = Counter([access.key for access in self.after.writes])
        over = {store_address(access.instruction) for access in self.after.writes} - {None}
        reading = {access.key for access in self.after.reads}
        reads: dict[Any, list[_Access]] = {}
        for access in self.before.reads:
            if access.key in reading or access.instruction.regions:
                reads.setdefault(access.root, []).append(access)
        for access in self.removed(left):
            root = access.root
            if store_address(access.instruction) in over:
                continue
            if root is _WORLD or root not in self.before.memory.allocated:
                raise self.fail("what the outside sees is gone", access.instruction)
            made_in = self.before.made_in[root]
            around = set(access.loops[len(made_in) :])
            for read in reads.get(root, ()):
                if read.at > access.at or not around.isdisjoint(read.loops):
                    raise self.fail("a store is gone that is read", access.instruction)

    def removed(self, left: Counter[Any]) -> Iterator[_Access]:
        for access in self.before.writes:
            left[access.key] -= 1
            if left[access.key] < 0:
                yield access
