"""Runs the program of a kernel's scalar unit: how often each bundle runs, what is copied, and when.

The scalar unit counts the grid, decides which blocks to copy, branches and waits. Its instructions
are few, and nothing else can change the control flow. It reads the operands in scalar memory if
they are given. What comes from the vector units is unknown here; where that decides, the outcome
is taken from what the kernel did in NumPy, if that is given. Otherwise `Unknown` is raised instead
of a guess.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pallas_shim.chip import issue
from pallas_shim.chip.bundles import BundleInstruction, Code
from pallas_shim.chip.copies import Engine, Flight, Rates
from pallas_shim.chip.dumps import UnreadableDump
from pallas_shim.chip.scalar_values import (
    Get,
    Memory,
    Pointer,
    State,
    Value,
    operand,
    parts,
    store,
    value,
)

# The bundles that follow a branch and still run.
_DELAY_SLOTS = 4
# The bytes of a unit in which copies are counted.
_GRANULE = 32
# Kernels that take more blocks of code than this aren't run to the end.
_MOST_BLOCKS = 2_000_000
# The turns of the outermost loop that are kept one by one.
_MOST_TURNS = 400


class Unknown(Exception):
    """What runs depends on data that isn't known here. The message says what decides."""


@dataclasses.dataclass(frozen=True)
class Executed:
    """What a run of the kernel in NumPy decided, by source line, in the order of the run.

    ``scalars``: the words of the operands that lie in scalar memory, by the operand's position, as
    they lie there. ``branches``: whether the code of a branch ran; empty: that can't be told.
    ``loops``: the turns of each loop. ``copies``: the number and bytes of the kernel's own copies.
    """

    scalars: Mapping[int, Sequence[int]]
    branches: Mapping[str, Sequence[bool]]
    loops: Mapping[str, Sequence[int]]
    copies: Mapping[str, tuple[int, int]]


NOTHING = Executed({}, {}, {}, {})


class Copy(NamedTuple):
    """The copies that one instruction started: their number, and their bytes together.

    ``operand``: the position of the kernel's operand that is read or written, if it is known.
    """

    kind: str
    times: int
    size: int
    operand: int | None = None
    line: str | None = None


class Step(NamedTuple):
    """A turn of the outermost loop, or what lies before or after it: bundles that ran, and bytes
    that were copied from and to HBM. ``times``: how many such steps there were."""

    bundles: int
    hbm: int
    times: int


class Turn(NamedTuple):
    """One step, in cycles: when it began, how long it took, and how much of that it waited."""

    start: float
    cycles: float
    waited: float


class Run(NamedTuple):
    """``counts``: how often each bundle ran. ``copies``: by the bundle that starts them.

    ``cycles``: how long it took. ``waits``: by bundle, the cycles that it waited for copies;
    ``waiting``: from when to when, the first times;
    ``moving``: cycles in which copies moved bytes. ``turns``: the first steps. ``flights``: the
    first copies. ``from_run``: the source lines whose branches were taken as NumPy did;
    ``agreed``: how many branches that were known went as there, by source line.
    """

    counts: list[int]
    copies: dict[int, Copy]
    steps: list[Step]
    cycles: float
    busy: list[float]
    waits: dict[int, float]
    waiting: list[tuple[float, float]]
    moving: float
    turns: list[Turn]
    flights: list[Flight]
    from_run: tuple[str, ...]
    agreed: dict[str, int]


def run(code: Code, tpu: str, rates: Rates, executed: Executed = NOTHING) -> Run:
    """Runs the scalar unit's program.

    Args:
      tpu: the generation, whose units set the pace of bundles.
      rates: the pace of copies.
      executed: what a run in NumPy decided.

    Raises:
      Unknown: data decides which bundles run, or what is copied.
      Unreadable: the program has a form that isn't known.
    """
    machine = _Machine(executed)
    blocks = _blocks(code, tpu, machine)
    engine = Engine(rates)
    state: State = {}
    copies: dict[int, Copy] = {}
    steps: dict[tuple[int, int], int] = {}
    turns: list[Turn] = []
    waits: collections.Counter[int] = collections.Counter()
    waiting: list[tuple[float, float]] = []
    entered = bundles = hbm = 0
    now = begun = waited = 0.0
    at: int | None = 0
    while at is not None:
        entered += 1
        if entered > _MOST_BLOCKS:
            raise Unknown(f"it is longer than {_MOST_BLOCKS} turns of loops")
        block = blocks[at]
        if block.begins_turn and bundles:
            steps[bundles, hbm] = steps.get((bundles, hbm), 0) + 1
            if len(turns) < _MOST_TURNS:
                turns.append(Turn(begun, now - begun, waited))
            bundles = hbm = 0
            begun, waited = now, 0.0
        block.count += 1
        bundles += block.end - block.begin
        taken = block.branch is not None
        for number, offset, execute in block.steps:
            got = execute(state)
            if got is None or number is None:
                continue
            if number < 0:
                taken = got
            elif type(got) is _Started:
                old = copies.get(number)
                size = got.size + (0 if old is None else old.size)
                times = 1 + (0 if old is None else old.times)
                line = _line_of(code, number)
                copies[number] = Copy(got.kind, times, size, got.operand, line)
                hbm += got.size if "hbm" in got.kind else 0
                engine.start(got.flag, got.kind, got.operand, got.size, now + offset)
            else:
                late = engine.wait(got.flag, got.size, now + offset) - (now + offset)
                if late > 0:
                    waits[number] += late  # type: ignore[assignment]
                    waited += late
                    if len(turns) < _MOST_TURNS:
                        waiting.append((now + offset, now + offset + late))
                    now += late
        now += block.cycles
        at = block.branch if taken else block.following
    steps[bundles, hbm] = steps.get((bundles, hbm), 0) + 1
    if len(turns) < _MOST_TURNS:
        turns.append(Turn(begun, now - begun, waited))
    machine.check()
    counts = [0] * len(code.bundles)
    busy = [0.0] * len(code.bundles)
    for block in blocks.values():
        for number in range(block.begin, block.end):
            counts[number] = block.count
            busy[number] = block.count * block.costs[number - block.begin]
    return Run(
        counts, copies, [Step(b, h, n) for (b, h), n in steps.items()], max(now, engine.last),
        busy, dict(waits), waiting, engine.busy, turns, engine.flights,
        tuple(sorted(machine.asked)), dict(machine.agreed),
    )  # fmt: skip


def _line_of(code: Code, number: int) -> str | None:
    found = [i.line for i in code.bundles[number].instructions if i.name.startswith("dma.")]
    return found[0] if found else None


class _Started(NamedTuple):
    """A copy that begins."""

    kind: str
    size: int
    flag: Any
    operand: int | None


class _Awaited(NamedTuple):
    """A wait for copies of so many bytes; None: it isn't known how many."""

    flag: Any
    size: int | None


class _Machine:
    """What the scalar unit can read besides its registers, and who decides what it can't know."""

    def __init__(self, executed: Executed) -> None:
        self.memory: Memory = {}
        self._operands = {k: dict(enumerate(words)) for k, words in executed.scalars.items()}
        self.memory.update({k: dict(words) for k, words in self._operands.items()})
        self._executed = executed
        self._places: collections.Counter[str] = collections.Counter()
        self._turn: collections.Counter[str] = collections.Counter()
        self.asked: set[str] = set()
        self.agreed: collections.Counter[str] = collections.Counter()

    def decided(self, line: str | None, is_loop: bool) -> bool:
        """Whether a branch on data at a source line is taken. One that ends a loop's turn is taken
        if there is another turn; one that skips code, if that doesn't run."""
        branches = self._executed.branches.get(line or "", ())
        loops = self._executed.loops.get(line or "", ())
        if line is None or not (branches or loops) or (branches and loops):
            where = "" if line is None else f" at {line}"
            raise Unknown(f"a branch{where} depends on data")
        self.asked.add(line)
        place = self._places[line]
        if place >= max(len(branches), len(loops)):
            raise Unknown(f"the branches at {line} aren't those of the run in NumPy")
        if branches:
            self._places[line] += 1
            return not branches[place]
        if not is_loop:
            self._places[line] += loops[place] == 0
            return loops[place] == 0
        self._turn[line] += 1
        if self._turn[line] < loops[place]:
            return True
        self._turn[line] = 0
        self._places[line] += 1
        return False

    def known(self, line: str | None, taken: bool, is_loop: bool) -> None:
        """A branch didn't depend on data. The outcomes of the run are used up all the same."""
        branches = self._executed.branches.get(line or "", ())
        if line is None or is_loop or not branches:
            return
        place = self._places[line]
        self._places[line] += 1
        if place < len(branches) and branches[place] == (not taken):
            self.agreed[line] += 1

    def check(self) -> None:
        """Raises: Unknown: the run in NumPy decided more than was asked."""
        for line in self.asked:
            outcomes = self._executed.branches.get(line) or self._executed.loops[line]
            if self._places[line] != len(outcomes):
                raise Unknown(f"the branches at {line} aren't those of the run in NumPy")

    def arrived(self, source: Value, target: Value) -> None:
        """Something was copied to scalar memory."""
        if type(target) is not Pointer:
            self.memory.clear()
            return
        self.memory.pop(target.base, None)
        if type(source) is Pointer and target.offset == 0 and source.base in self._operands:
            self.memory[target.base] = dict(self._operands[source.base])


class _Block:
    """Bundles that run one after the other. ``steps``: what they do, each with its bundle and the
    cycle in which that starts; the bundle is -1 for the condition of the branch, and None for what
    only computes. ``costs``: the cycles of each bundle."""

    def __init__(self, begin: int, end: int, following: int | None, issued: issue.Issue):
        self.begin, self.end, self.following = begin, end, following
        self.branch: int | None = None
        self.begins_turn = False
        self.count = 0
        self.steps: list[tuple[int | None, float, Callable[[State], Any]]] = []
        self.cycles = issued.cycles
        ends = [*issued.starts[1:], issued.cycles]
        self.costs = [e - s for s, e in zip(issued.starts, ends, strict=True)]


def _blocks(code: Code, tpu: str, machine: _Machine) -> dict[int, _Block]:
    bundles = code.bundles
    branches = {}
    leaders = {0}
    for number, bundle in enumerate(bundles):
        for instruction in bundle.instructions:
            if instruction.name.startswith("sbr"):
                target = _target(code, instruction)
                branches[number] = target
                leaders |= {target, number + _DELAY_SLOTS + 1}
    starts = sorted(leader for leader in leaders if leader < len(bundles))
    ends = [*starts[1:], len(bundles)]
    blocks = {}
    phis = {
        name
        for bundle in bundles
        for instruction in bundle.instructions
        if instruction.name == "sphi"
        for name in re.findall(r"%(\w+)", instruction.operands)
    }
    needed = _needed(code)
    for begin, end in zip(starts, ends, strict=True):
        issued = issue.issue(bundles[begin:end], tpu)
        following = end if end < len(bundles) else None
        block = blocks[begin] = _Block(begin, end, following, issued)
        for number in range(begin, end):
            # A phi stands for the register's value before the bundle.
            ordered = sorted(bundles[number].instructions, key=lambda i: i.name != "sphi")
            for instruction in ordered:
                is_loop = branches.get(number, number) <= number
                made = _step(instruction, needed, phis, machine, is_loop)
                if made is not None:
                    does = _does(instruction.name, number)
                    block.steps.append((does, issued.starts[number - begin], made))
        for number, target in branches.items():
            if begin <= number < end:
                if end != number + _DELAY_SLOTS + 1:
                    raise UnreadableDump("a branch is followed by another one at once")
                block.branch = target
    backwards = [target for number, target in branches.items() if target <= number]
    outermost = min((bundles[t].depth for t in backwards), default=0)
    for target in backwards:
        if bundles[target].depth == outermost:
            blocks[target].begins_turn = True
    return blocks


def _needed(code: Code) -> set[str | None]:
    """The results that decide what runs or is copied. The others are addresses of vectors, and
    checks of bounds."""
    inside: dict[str, list[str]] = collections.defaultdict(list)
    waiting: list[str] = []
    for bundle in code.bundles:
        for instruction in bundle.instructions:
            read = _READ.findall(instruction.operands)
            if instruction.name.startswith(("sbr", "dma.")):
                waiting += read
            elif instruction.name.startswith("sst"):
                spill = _SPILLED.findall(instruction.operands)
                if spill:
                    inside[spill[0]] += read
                else:
                    waiting += read
            elif instruction.result is not None:
                inside[instruction.result] += read + _SPILLED.findall(instruction.operands)
    needed: set[str | None] = set()
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += inside.get(name, ())
    return needed


def _does(name: str, number: int) -> int | None:
    if name.startswith("sbr"):
        return -1
    return number if name.startswith("dma.") else None


def _target(code: Code, branch: BundleInstruction) -> int:
    match = _TARGET.search(branch.operands)
    if match is None or int(match[1]) not in code.regions:
        raise UnreadableDump(f"a branch to an unknown place: {branch.operands}")
    return code.regions[int(match[1])]


_PREDICATE = re.compile(r"\((!?%\w+)\)\s*,?")
_READ = re.compile(r"%([\w.]+)")
_SPILLED = re.compile(r"#\w+_spill")
_TARGET = re.compile(r"\$?region\s*=?\s*(\d+)")


def _step(
    instruction: BundleInstruction,
    needed: set[str | None],
    phis: set[str],
    machine: _Machine,
    is_loop: bool,
) -> Callable[[State], Any] | None:
    """What an instruction does with the values; None: nothing that matters here."""
    name, rest, result = instruction.name, instruction.operands, instruction.result
    if name.startswith("sbr"):
        return _branch(instruction, machine, is_loop)
    if name.startswith("dma.done"):
        return _wait(rest)
    if name.startswith("dma."):
        return _copy(name, rest, machine)
    base = name.partition(".")[0]
    if base == "sst":
        return store(rest, machine.memory)
    if result not in needed or not re.match(r"[sp]\d", result):
        return None
    got = _phi(result) if base == "sphi" else value(name, rest, machine.memory)
    keys = (result, f"register:{_register(result)}") if result in phis else (result,)

    def assign(state: State) -> None:
        made = got(state)
        for key in keys:
            state[key] = made

    return assign


def _register(name: str) -> str:
    return name.rpartition("_")[2]


def _phi(result: str) -> Get:
    key = f"register:{_register(result)}"
    return lambda state: state.get(key)


def _branch(
    instruction: BundleInstruction, machine: _Machine, is_loop: bool
) -> Callable[[State], bool]:
    match = _PREDICATE.search(instruction.operands)
    if match is None:
        return lambda state: True
    condition = operand(match[1])
    line = instruction.line

    def taken(state: State) -> bool:
        known = condition(state)
        if known is None:
            return machine.decided(line, is_loop)
        machine.known(line, bool(known), is_loop)
        return bool(known)

    return taken


def _arguments(rest: str) -> tuple[Get, list[str]]:
    """The predicate of a copy or wait, and its operands."""
    match = _PREDICATE.search(rest)
    condition: Get = operand(match[1]) if match else lambda state: True
    if match:
        rest = rest[: match.start()] + rest[match.end() :]
    return condition, parts(re.sub(r"\[thread:[^\]]*\]\s*,?", "", rest))


def _copy(name: str, rest: str, machine: _Machine) -> Callable[[State], _Started | None]:
    condition, arguments = _arguments(rest)
    if len(arguments) < 3:
        raise UnreadableDump(f"a copy of another form: {name} {rest}")
    ends = operand(arguments[0]), operand(arguments[2])
    size = operand(arguments[1])
    flag = operand(arguments[3]) if len(arguments) > 3 else lambda state: None

    def copied(state: State) -> _Started | None:
        wanted = condition(state)
        if wanted is None:
            raise Unknown("whether a block is copied depends on data")
        if not wanted:
            return None
        granules = size(state)
        if granules is None:
            raise Unknown("the size of a copy depends on data")
        source, target = ends[0](state), ends[1](state)
        if name.endswith("to_smem"):
            machine.arrived(source, target)
        moved = next((p.base for p in (source, target) if _is_operand(p)), None)
        return _Started(name, granules * _GRANULE, flag(state), moved)

    return copied


def _is_operand(place: Value) -> bool:
    return type(place) is Pointer and type(place.base) is int


def _wait(rest: str) -> Callable[[State], _Awaited | None]:
    condition, arguments = _arguments(rest)
    if not arguments:
        raise UnreadableDump(f"a wait of another form: {rest}")
    flag = operand(arguments[0])
    size = operand(arguments[1]) if len(arguments) > 1 else lambda state: None

    def awaited(state: State) -> _Awaited | None:
        if condition(state) is False:
            return None
        granules = size(state)
        known = type(granules) is int
        return _Awaited(flag(state), granules * _GRANULE if known else None)

    return awaited
