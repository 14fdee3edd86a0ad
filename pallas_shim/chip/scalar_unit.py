"""Runs the program of a kernel's scalar unit: how often each bundle runs, and what is copied.

The scalar unit counts the grid, decides which blocks to copy, branches and waits. Its instructions
are few, and nothing else can change the control flow. What comes from memory or from the vector
units is unknown here; where that decides, `Unknown` is raised instead of a guess.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from pallas_shim.chip.bundles import BundleInstruction, Code
from pallas_shim.chip.dumps import UnreadableDump

# The bundles that follow a branch and still run.
_DELAY_SLOTS = 4
# The bytes of a unit in which copies are counted.
_GRANULE = 32
# Kernels that take more blocks of code than this aren't run to the end.
_MOST_BLOCKS = 2_000_000


class Unknown(Exception):
    """What runs depends on data that isn't known here. The message says what decides."""


class Copy(NamedTuple):
    """The copies that one instruction started: their number, and their bytes together."""

    kind: str
    times: int
    size: int


class Step(NamedTuple):
    """A turn of the outermost loop, or what lies before or after it: bundles that ran, and bytes
    that were copied from and to HBM. ``times``: how many such steps there were."""

    bundles: int
    hbm: int
    times: int


class Run(NamedTuple):
    """``counts``: how often each bundle ran. ``copies``: by the bundle that starts them."""

    counts: list[int]
    copies: dict[int, Copy]
    steps: list[Step]


def _wrap(value: int) -> int:
    return ((value + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def _shift_right(a: int, b: int) -> int:
    return (a & 0xFFFFFFFF) >> b if 0 <= b < 32 else 0


# Of two known integers.
_BINARY: dict[str, Callable[[int, int], int]] = {
    "sadd": lambda a, b: _wrap(a + b),
    "ssub": lambda a, b: _wrap(a - b),
    "smul": lambda a, b: _wrap(a * b),
    "sand": lambda a, b: _wrap(a & b),
    "sor": lambda a, b: _wrap(a | b),
    "sxor": lambda a, b: _wrap(a ^ b),
    "sshll": lambda a, b: _wrap(a << b) if 0 <= b < 32 else 0,
    "sshrl": lambda a, b: _wrap(_shift_right(a, b)),
    "sshra": lambda a, b: a >> min(b & 0xFFFFFFFF, 31),
    "smin": min,
    "smax": max,
}
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}

# A value: an integer or a boolean; None: unknown.
Value = Any
# Values by name; "spill:NAME" for those in scalar memory, "register:NAME" for what a phi reads.
State = dict[str, Value]

_NAME = re.compile(r"^(!?)%([\w.]+)$")
_PREDICATE = re.compile(r"\((!?%\w+)\)\s*,?")
_SELECTED = re.compile(r"^\((!?%\w+),\s*([^)]*)\),\s*(.*)$", re.S)
_SPILL = re.compile(r"\[smem:\[(#\w+_spill)\]\]\s*(?:\[[^\]]*\]\s*)?(.*)$", re.S)
_TARGET = re.compile(r"\$?region\s*=?\s*(\d+)")


def run(code: Code) -> Run:
    """Runs the scalar unit's program.

    Raises:
      Unknown: data decides which bundles run, or what is copied.
      Unreadable: the program has a form that isn't known.
    """
    blocks = _blocks(code)
    state: State = {}
    counts = [0] * len(code.bundles)
    copies: dict[int, Copy] = {}
    steps: dict[tuple[int, int], int] = {}
    entered = bundles = hbm = 0
    at: int | None = 0
    while at is not None:
        entered += 1
        if entered > _MOST_BLOCKS:
            raise Unknown(f"it is longer than {_MOST_BLOCKS} turns of loops")
        block = blocks[at]
        if block.begins_turn and bundles:
            steps[bundles, hbm] = steps.get((bundles, hbm), 0) + 1
            bundles = hbm = 0
        block.count += 1
        bundles += block.end - block.begin
        taken = block.branch is not None
        for number, execute in block.steps:
            got = execute(state)
            if number < 0:
                taken = got
            elif got:
                kind, size = got
                old = copies.get(number, Copy(kind, 0, 0))
                copies[number] = Copy(kind, old.times + 1, old.size + size)
                hbm += size if "hbm" in kind else 0
        at = block.branch if taken else block.following
    steps[bundles, hbm] = steps.get((bundles, hbm), 0) + 1
    for block in blocks.values():
        for number in range(block.begin, block.end):
            counts[number] = block.count
    return Run(counts, copies, [Step(b, h, n) for (b, h), n in steps.items()])


class _Block:
    """Bundles that run one after the other. ``steps``: what they do, each with its bundle, or -1
    for the condition of the branch."""

    def __init__(self, begin: int, end: int, following: int | None):
        self.begin, self.end, self.following = begin, end, following
        self.branch: int | None = None
        self.begins_turn = False
        self.count = 0
        self.steps: list[tuple[int, Callable[[State], Any]]] = []


def _blocks(code: Code) -> dict[int, _Block]:
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
    for begin, end in zip(starts, ends, strict=True):
        block = blocks[begin] = _Block(begin, end, end if end < len(bundles) else None)
        for number in range(begin, end):
            # A phi stands for the register's value before the bundle.
            ordered = sorted(bundles[number].instructions, key=lambda i: i.name != "sphi")
            for instruction in ordered:
                made = _step(instruction, phis)
                if made is not None:
                    block.steps.append((-1 if instruction.name.startswith("sbr") else number, made))
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


def _target(code: Code, branch: BundleInstruction) -> int:
    match = _TARGET.search(branch.operands)
    if match is None or int(match[1]) not in code.regions:
        raise UnreadableDump(f"a branch to an unknown place: {branch.operands}")
    return code.regions[int(match[1])]


def _step(instruction: BundleInstruction, phis: set[str]) -> Callable[[State], Any] | None:
    """What an instruction does with the values; None: nothing that matters here."""
    name, rest, result = instruction.name, instruction.operands, instruction.result
    if name.startswith("sbr"):
        return _branch(rest)
    if name.startswith("dma.") and not name.startswith("dma.done"):
        return _copy(name, rest)
    base = name.partition(".")[0]
    if base == "sst":
        return _store(rest)
    if result is None or not re.match(r"[sp]\d", result):
        return None
    value = _phi(result) if base == "sphi" else _value(name, rest)
    keys = (result, f"register:{_register(result)}") if result in phis else (result,)

    def assign(state: State) -> None:
        got = value(state)
        for key in keys:
            state[key] = got

    return assign


def _register(name: str) -> str:
    return name.rpartition("_")[2]


def _phi(result: str) -> Callable[[State], Value]:
    key = f"register:{_register(result)}"
    return lambda state: state.get(key)


def _branch(rest: str) -> Callable[[State], bool]:
    match = _PREDICATE.search(rest)
    if match is None:
        return lambda state: True
    condition = _operand(match[1])

    def taken(state: State) -> bool:
        value = condition(state)
        if value is None:
            raise Unknown("a branch depends on data")
        return bool(value)

    return taken


def _copy(name: str, rest: str) -> Callable[[State], tuple[str, int] | None]:
    match = _PREDICATE.search(rest)
    condition = _operand(match[1]) if match else lambda state: True
    if match:
        rest = rest[: match.start()] + rest[match.end() :]
    parts = _parts(re.sub(r"\[thread:[^\]]*\]\s*,?", "", rest))
    if len(parts) < 3:
        raise UnreadableDump(f"a copy of another form: {name} {rest}")
    size = _operand(parts[1])

    def copied(state: State) -> tuple[str, int] | None:
        wanted = condition(state)
        if wanted is None:
            raise Unknown("whether a block is copied depends on data")
        if not wanted:
            return None
        granules = size(state)
        if granules is None:
            raise Unknown("the size of a copy depends on data")
        return name, granules * _GRANULE

    return copied


def _store(rest: str) -> Callable[[State], None] | None:
    match = _SPILL.search(rest)
    if match is None:
        return None
    key, value = f"spill:{match[1]}", _operand(match[2])

    def store(state: State) -> None:
        state[key] = value(state)

    return store


def _value(name: str, rest: str) -> Callable[[State], Value]:
    base = name.partition(".")[0]
    selected = _SELECTED.match(rest)
    if selected is not None:  # where the predicate is false, another value
        condition, other = _operand(selected[1]), _operand(selected[2])
        value = _value(name, selected[3])

        def select(state: State) -> Value:
            chosen = condition(state)
            return None if chosen is None else value(state) if chosen else other(state)

        return select
    predicated = re.match(r"\(!?%\w+\),\s*(.*)$", rest, re.S)
    if predicated is not None:  # where it is false, nobody reads the result
        rest = predicated[1]
    if base == "sld":
        match = _SPILL.search(rest)
        if match is None:
            return lambda state: None
        key = f"spill:{match[1]}"
        return lambda state: state.get(key)
    operands = [_operand(part) for part in _parts(rest)]
    if base in _BINARY and len(operands) == 2:
        a, b = operands
        return _of_known(_BINARY[base], a, b)
    if base == "scmp" and len(operands) == 2:
        _, how, kind, *_rest = [*name.split("."), "", ""]
        if how in _COMPARE:
            compare = _COMPARE[how]
            if kind.startswith("u"):
                return _of_known(lambda x, y: compare(x & 0xFFFFFFFF, y & 0xFFFFFFFF), *operands)
            if kind.startswith("s"):
                return _of_known(compare, *operands)
    if base in ("smov", "pmov") and len(operands) == 1:
        return operands[0]
    if base == "pneg" and len(operands) == 1:
        return _negated(operands[0])
    if base in ("pand", "por", "pnand", "pnor", "pxor") and len(operands) == 2:
        return _logical(base, *operands)
    if base == "scalar_select" and len(operands) == 3:
        condition, yes, no = operands

        def choose(state: State) -> Value:
            chosen = condition(state)
            return None if chosen is None else yes(state) if chosen else no(state)

        return choose
    return lambda state: None


def _of_known(
    function: Callable[[int, int], Value],
    a: Callable[[State], Value],
    b: Callable[[State], Value],
) -> Callable[[State], Value]:
    def value(state: State) -> Value:
        x, y = a(state), b(state)
        return None if x is None or y is None else function(x, y)

    return value


def _logical(
    name: str, a: Callable[[State], Value], b: Callable[[State], Value]
) -> Callable[[State], Value]:
    """Of predicates; one that is known may decide alone."""
    negated = name in ("pnand", "pnor")
    decides = {"pand": False, "pnand": False, "por": True, "pnor": True}.get(name)

    def value(state: State) -> Value:
        x, y = a(state), b(state)
        if decides is not None and (x is decides or y is decides):
            return decides is not negated
        if x is None or y is None:
            return None
        return (x != y) if decides is None else (decides is negated)

    return value


def _negated(value: Callable[[State], Value]) -> Callable[[State], Value]:
    def negate(state: State) -> Value:
        got = value(state)
        return None if got is None else not got

    return negate


def _operand(text: str) -> Callable[[State], Value]:
    text = text.strip()
    match = _NAME.match(text)
    if match is not None:
        key = match[2]
        if match[1]:
            return _negated(lambda state: state.get(key))
        return lambda state: state.get(key)
    if re.fullmatch(r"-?\d+", text):
        number = _wrap(int(text))
        return lambda state: number
    if re.fullmatch(r"\$?0x[0-9a-f]+", text):
        number = _wrap(int(text.lstrip("$"), 16))
        return lambda state: number
    return lambda state: None


def _parts(text: str) -> list[str]:
    """Splits at the commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]
