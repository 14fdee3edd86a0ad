"""Holds programs to the contract of the IR (`ops`), and passes to what they may change.

`verify` looks at one program: each value is defined once, before it is used and around it; types,
parameters, effects and regions are what the operations' rows say; an array that an instruction
writes over isn't used afterwards, and what a load views isn't overwritten while it is.

`verify_pass` looks at a program before and after a pass: all that the outside sees is still there.
A pass may leave out a store only if it proves that nobody reads it, which is checked again here in
another way; and a load that is still there still sees the same stores.

`Verifier` does both along the pipeline. It is off in ordinary runs: `optimise` takes one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator import memory as memory_paths
from pallas_shim.evaluator import ops, printer
from pallas_shim.evaluator.analysis.alias import AliasAnalysis, store_address
from pallas_shim.evaluator.passes.rewrite import is_ufunc
from pallas_shim.evaluator.program import (
    ArrayType,
    Instruction,
    Operation,
    Program,
    RefType,
    Region,
    Type,
    Value,
)
from pallas_shim.evaluator.registry import BATCHING_RULES, Unsupported


class InvalidProgram(Exception):
    """A program isn't what the contract says, which is a bug in lowering or in a pass.

    The message names the pass, the instruction, the user's line, and what is wrong.
    """


def verify(program: Program, after: str = "lowering") -> None:
    """Checks one program. ``after``: what made it, for the message.

    Raises:
      InvalidProgram: something is wrong.
    """
    Verifier().program(program, after)


def verify_pass(before: Program, after: Program, name: str) -> None:
    """Checks that a pass has kept what it must keep; both programs must be valid.

    Args:
      name: the pass. Those that may leave out or multiply stores are known by it.

    Raises:
      InvalidProgram: something that can be seen is gone, or new, or in another order.
    """
    _Comparison(_effects_of(before), _effects_of(after), name).check()


class Verifier:
    """Checks the programs of one pipeline, one after the other. Each operation is looked at once,
    however many passes and instructions it lives through."""

    def __init__(self) -> None:
        self._right: set[Operation] = set()
        self._last: Program | None = None
        self._effects: _ProgramEffects | None = None

    def program(self, program: Program, after: str) -> None:
        """Checks a program, and what has changed since the one before.

        Raises:
          InvalidProgram: something is wrong.
        """
        if program is self._last:
            return
        memory = _Check(program, after, self._right).run()
        effects = None if memory is None else _ProgramEffects(program, memory)
        if effects is not None and self._effects is not None:
            _Comparison(self._effects, effects, after).check()
        self._last, self._effects = program, effects


def _invalid(
    program: Program, after: str, instruction: Instruction | None, what: str
) -> InvalidProgram:
    where = f"the program {program.name} is wrong after {after}"
    if instruction is None:
        return InvalidProgram(f"{where}: {what}")
    names = printer.names(program)
    source = jax_compat.user_source(instruction.source)
    return InvalidProgram(
        f"{where}: {what}\n  in {printer.instruction(instruction, names)}"
        + (f"\n  at {source}" if source else "")
    )


# -- one program ------------------------------------------------------------------------------


class _Check:
    """``right``: the operations that have been looked at."""

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
        return _invalid(self.program, self.after, at, what)

    def run(self) -> AliasAnalysis | None:
        """Returns where refs point, None if that can't be told: then nothing of it is checked."""
        self.region(self.program.top)
        try:
            memory = AliasAnalysis(self.program)
        except Unsupported:
            return None
        self.shared_buffers(memory)
        if self.overwrites or self.views:
            _Lifetimes(self, memory).run()
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
                wrong = ops.wrong_with(_as_given(operation, ins))
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
        """A buffer that is its operand's own memory is only read."""
        shared = {
            i.outs[0]: i for i in self.program.top.walk()
            if i.name == "buffer" and i.operation.fn in _SHARES
        }  # fmt: skip
        for instruction in self.program.top.walk() if shared else ():
            for root in memory.roots(instruction, instruction.operation.effects.writes):
                if root in shared:
                    raise self.fail("it writes to an operand's own memory", instruction)


_SHARES = (memory_paths.same, np.asarray)


def _spreads(value: Type, type: Type, operation: Operation) -> bool:
    """Whether an operation takes a value of another shape than it says. Over axes in front, the
    elementwise ones say for which shapes they were made, and NumPy spreads what they are given."""
    form = BATCHING_RULES.get(operation.name)
    if form is None or not form.broadcasts or not isinstance(value, ArrayType):
        return False
    return value.dtype == type.dtype and ops.broadcasts(value.shape, operation.outs[0].shape)


def _as_given(operation: Operation, ins: Sequence[Value]) -> Operation:
    """The operation with the types of the operands that it is given."""
    types = tuple([value.type for value in ins])
    if types == operation.ins or operation.fn is None or len(types) != len(operation.ins):
        return operation
    if not all(_spreads(a, b, operation) for a, b in zip(types, operation.ins, strict=True)):
        return operation
    return Operation(
        operation.name, operation.params, types, operation.outs, operation.fn, operation.effects,
        operation.view, operation.multiple,
    )  # fmt: skip


class _Memory(NamedTuple):
    """Memory that values may share: ``by`` makes or views it, the instruction number ``at``, in a
    region. ``loops``: how many loops are around it. ``root``: of a load, the buffer."""

    value: Value
    at: int
    region: Region
    loops: int
    by: Instruction
    root: Value | None


class _Lifetimes:
    """Which arrays share memory, and until when they are used, along one walk in the order of the
    text. Instructions are numbered in that order; a region's results count as after its body.

    ``memories``: for a value the memory that it may share, of arrays that instructions make and of
    loads that are views. What a round of a loop made is not what the next one makes, so a value
    that is carried along shares nothing that is made inside.
    """

    def __init__(self, check: _Check, memory: AliasAnalysis):
        self.check = check
        self.memory = memory
        self.memories: dict[Value, frozenset[_Memory]] = {}
        self.made_at: dict[Value, int] = {}
        self.last: dict[Value, int] = {}  # the last use of each value that shares memory
        self.writes: dict[Value, list[tuple[int, Instruction]]] = {}
        self.overwrites: list[tuple[int, Region, Instruction]] = []
        self.loads: list[_Memory] = []
        self.leaving: list[tuple[_Memory, Instruction]] = []  # by the results of loops' regions
        self.loops: list[int] = []  # where the loops around begin
        self.ends: dict[int, int] = {}
        # The loops, by where they begin, in which a value from outside of them is used.
        self.again: dict[Value, set[int]] = {}
        self.count = 0

    def run(self) -> None:
        self.region(self.check.program.top)
        users: dict[_Memory, list[Value]] = {}
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
                self.made_at[out] = self.count  # after what is inside
        self.count += 1
        for value in region.results:
            self.use(value, self.count)

    def use(self, value: Value, at: int) -> None:
        memories = self.memories.get(value)
        if memories:
            # In a loop that the memory is not made in, each round may use it again.
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
            load = _Memory(outs[0], at, region, len(self.loops), instruction, root)
            self.loads.append(load)
            self.memories[outs[0]] = frozenset([load])
        elif ins and (operation.view or operation.fn in _SHARES or operation.name == "buffer"):
            self.share(outs, ins[:1])
        else:
            for out in outs:
                if not isinstance(out.type, RefType):
                    made = _Memory(out, at, region, len(self.loops), instruction, None)
                    self.memories[out] = frozenset([made])

    def share(self, values: Iterable[Value], sources: Iterable[Value]) -> None:
        none: frozenset[_Memory] = frozenset()
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
                if memory.loops < inside:  # made outside, carried on by another name
                    for region in regions:
                        param = region.params[number]
                        self.memories[param] = self.memories.get(param, frozenset()) | {memory}

    # -- what is checked ----------------------------------------------------------------------

    def last_use(self, value: Value) -> int:
        ends = [self.ends[loop] for loop in self.again.get(value, ())]
        return max([self.last.get(value, 0), *ends])

    def overwritten(
        self, at: int, region: Region, instruction: Instruction,
        users: Mapping[_Memory, list[Value]],
    ) -> None:  # fmt: skip
        over = instruction.ins[instruction.operation.params[ops.INTO]]
        memories = self.memories.get(over, frozenset())
        own = bool(memories) and all(
            memory.region is region and memory.root is None and _makes_array(memory.by)
            for memory in memories
        )
        if not own:
            raise self.check.fail(
                "it writes over an array that isn't one of this round's own", instruction
            )
        for memory in memories:
            for value in users[memory]:
                if self.made_at.get(value, 0) < at < self.last_use(value):
                    raise self.check.fail(
                        "it writes over an array that is used afterwards", instruction
                    )

    def viewed(self, load: _Memory, users: Sequence[Value]) -> None:
        assert load.root is not None
        last = max([self.last_use(value) for value in users])
        top = self.check.program.top
        if load.root not in self.memory.allocated and not set(top.results).isdisjoint(users):
            raise self.check.fail("it gives a view of the caller's memory", load.by)
        for at, write in self.writes.get(load.root, ()):
            if load.at < at < last:
                raise self.check.fail("it overwrites what a load views that is still used", write)
        for memory, loop in self.leaving:
            if memory is load and load.root in self.memory.within(loop).writes:
                raise self.check.fail("what it views is overwritten in the next round", load.by)


def _makes_array(instruction: Instruction) -> bool:
    """Whether an instruction's result is an array of its own, for sure."""
    operation = instruction.operation
    return (
        is_ufunc(operation) or operation.name in ops.MAKES_ARRAYS or ops.INTO in operation.params
    )


# -- a program before and after a pass ----------------------------------------------------------

# The passes that may change how many stores there are; all others keep them all. The second kind
# makes other loops in the place of loops, the last has more computed where it is stored.
LEAVES_OUT_UNSEEN_STORES = frozenset({"dead_code"})
MULTIPLIES_LOOPS = frozenset({"grid_batching"})
ADDS_STORES = MULTIPLIES_LOOPS | {"in_place_recurrences"}

_WORLD = "the outside world"  # in the place of a buffer: what `io` is done to


class _Access(NamedTuple):
    """What an instruction does to one buffer, in the order of the text. ``loops``: the loops
    around it, by the number of their instruction."""

    at: int
    root: Any
    instruction: Instruction
    loops: tuple[int, ...]

    @property
    def key(self) -> Any:
        operation, ins, outs, _, _ = self.instruction
        return outs or (operation, ins)


class _ProgramEffects:
    """What a program does to memory and to the world."""

    def __init__(self, program: Program, memory: AliasAnalysis):
        self.program = program
        self.memory = memory
        self.reads: list[_Access] = []
        self.writes: list[_Access] = []
        self.structured: set[Operation] = set()
        self.seen_by: dict[Value, tuple[int, ...]] = {}  # of loads: how many stores come before
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
                for value in ins:  # rows of memory that a loop walks along
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
            for root in (*roots(instruction, writes), *([_WORLD] if io else [])):
                self._add(self.writes, root, instruction)
                self._written[root] += 1
            if allocates:
                self.made_in.update(dict.fromkeys(outs, self._loops))

    def _add(self, to: list[_Access], root: Any, instruction: Instruction) -> None:
        to.append(_Access(self._number, root, instruction, self._loops))


def _effects_of(program: Program) -> _ProgramEffects:
    return _ProgramEffects(program, AliasAnalysis(program))


class _Comparison:
    def __init__(self, before: _ProgramEffects, after: _ProgramEffects, name: str):
        self.before = before
        self.after = after
        self.name = name

    def fail(self, what: str, instruction: Instruction | None = None) -> InvalidProgram:
        program = self.after.program if instruction is None else self.before.program
        return _invalid(program, self.name, instruction, what)

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
            # Buffers that nothing reads any more may have got others in their place.
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
        """How many stores to each buffer there must be after a pass at least, and at most: of a
        switch that is gone there is one branch left."""
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
        """An instruction that wrote to a buffer and isn't there any more."""
        left = Counter([access.key for access in self.after.writes if access.root is root])
        for access in self.before.writes:
            if access.root is root:
                left[access.key] -= 1
                if left[access.key] < 0:
                    return access.instruction
        return None

    def order(self) -> None:
        """Each load that is still there sees the same stores."""
        for value, seen in self.after.seen_by.items():
            if self.before.seen_by.get(value, seen) != seen:
                load = next(a.instruction for a in self.after.reads if value in a.instruction.outs)
                raise _invalid(
                    self.after.program, self.name, load,
                    "it has changed places with a store to what it loads",
                )  # fmt: skip

    def unseen(self) -> None:
        """What is gone was stored where nobody looks, or stored over."""
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
