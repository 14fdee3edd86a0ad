"""What instructions of the scalar unit compute, as far as it is known without the data.

A value is an integer, a boolean, or a `Pointer`. None: unknown.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

Value = Any
# Values by name; "spill:NAME" for those in scalar memory, "register:NAME" for what a phi reads.
State = dict[str, Value]
Get = Callable[[State], Value]
# The words of scalar memory that are known, by allocation (or operand) and place in it.
Memory = dict[str | int, dict[int, Value]]


class Pointer(NamedTuple):
    """A place in memory: what it was allocated for, and an offset in units of the memory's own.

    ``base`` is the allocation's name, or the position of an operand of the kernel.
    """

    base: str | int
    offset: int | None


def wrap(value: int) -> int:
    return ((value + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def _shift_right(a: int, b: int) -> int:
    return (a & 0xFFFFFFFF) >> b if 0 <= b < 32 else 0


# Of two known integers.
_BINARY: dict[str, Callable[[int, int], int]] = {
    "sadd": lambda a, b: wrap(a + b),
    "ssub": lambda a, b: wrap(a - b),
    "smul": lambda a, b: wrap(a * b),
    "sand": lambda a, b: wrap(a & b),
    "sor": lambda a, b: wrap(a | b),
    "sxor": lambda a, b: wrap(a ^ b),
    "sshll": lambda a, b: wrap(a << b) if 0 <= b < 32 else 0,
    "sshrl": lambda a, b: wrap(_shift_right(a, b)),
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

_NAME = re.compile(r"^(!?)%([\w.]+)$")
_ALLOCATION = re.compile(r"^\[(#\w+)(?: \+ (\$?0x[0-9a-f]+|\d+))?\]$")
_PREDICATE = re.compile(r"^\((!?%\w+)\)\s*,?")
_SELECTED = re.compile(r"^\((!?%\w+),\s*([^)]*)\),\s*(.*)$", re.S)
_SPILL = re.compile(r"\[smem:\[(#\w+_spill)\]\]\s*(?:\[[^\]]*\]\s*)?(.*)$", re.S)
_SMEM = re.compile(r"^\[smem:\[([^\]+]+)(?:\+([^\]]+))?\]\]\s*(.*)$", re.S)
_INDEX = re.compile(r"index: (\d+), kind: (\w+)")


def value(name: str, rest: str, memory: Memory) -> Get:
    """What an instruction computes. ``memory`` is read when it runs."""
    base = name.partition(".")[0]
    selected = _SELECTED.match(rest)
    if selected is not None:  # where the predicate is false, another value
        condition, other = operand(selected[1]), operand(selected[2])
        chosen_value = value(name, selected[3], memory)
        return _chosen(condition, chosen_value, other)
    predicated = re.match(r"\(!?%\w+\),\s*(.*)$", rest, re.S)
    if predicated is not None:  # where it is false, nobody reads the result
        rest = predicated[1]
    if base == "inlined_call_operand":
        found = _INDEX.search(rest)
        return _constant(None if found is None else Pointer(int(found[1]), 0))
    if base == "sld":
        return _load(rest, memory)
    operands = [operand(part) for part in parts(re.sub(r"^\[resolvable:[^\]]*\]", "", rest))]
    if name == "sshll.u32" and len(operands) == 2:
        return _shifted(*operands)
    if base == "int_to_ptr" and operands:
        return operands[-1]
    if base in _BINARY and len(operands) == 2:
        return _of_integers(_BINARY[base], *operands)
    if base == "scalar_lea" and len(operands) == 2:
        return _moved(*operands)
    if base == "scmp" and len(operands) == 2:
        _, how, kind, *_rest = [*name.split("."), "", ""]
        if how in _COMPARE:
            compare = _COMPARE[how]
            if kind.startswith("u"):
                return _of_integers(lambda x, y: compare(x & 0xFFFFFFFF, y & 0xFFFFFFFF), *operands)
            if kind.startswith("s"):
                return _of_integers(compare, *operands)
    if base in ("smov", "pmov") and len(operands) == 1:
        return operands[0]
    if base == "pneg" and len(operands) == 1:
        return negated(operands[0])
    if base in ("pand", "por", "pnand", "pnor", "pxor") and len(operands) == 2:
        return _logical(base, *operands)
    if base == "scalar_select" and len(operands) == 3:
        return _chosen(*operands)
    return _constant(None)


def store(rest: str, memory: Memory) -> Callable[[State], None]:
    """What an `sst` does: to a spill, or to ``memory``, which is forgotten if it isn't known where
    it writes."""
    match = _SPILL.search(rest)
    if match is not None:
        key, spilled = f"spill:{match[1]}", operand(match[2])

        def spill(state: State) -> None:
            state[key] = spilled(state)

        return spill
    predicate = _PREDICATE.match(rest)
    condition = _constant(True) if predicate is None else operand(predicate[1])
    match = _SMEM.match(rest if predicate is None else rest[predicate.end() :].strip())
    if match is None:
        return lambda state: memory.clear()
    place, written = _place(match), operand(match[3])

    def write(state: State) -> None:
        at, wanted = place(state), condition(state)
        if wanted is not None and not wanted:
            return
        if at is None or at.offset is None:
            memory.clear()
        else:
            held = None if wanted is None else written(state)
            memory.setdefault(at.base, {})[at.offset] = held

    return write


def _load(rest: str, memory: Memory) -> Get:
    match = _SPILL.search(rest)
    if match is not None:
        key = f"spill:{match[1]}"
        return lambda state: state.get(key)
    match = _SMEM.match(rest)
    if match is None:
        return _constant(None)
    place = _place(match)

    def load(state: State) -> Value:
        at = place(state)
        if at is None or at.offset is None:
            return None
        return memory.get(at.base, {}).get(at.offset)

    return load


def _place(match: re.Match[str]) -> Get:
    start = match[1].strip()
    base = operand(f"[{start}]" if start.startswith("#") else start)
    return base if match[2] is None else _moved(base, operand(match[2]))


def _moved(base: Get, by: Get) -> Get:
    def move(state: State) -> Value:
        at, offset = base(state), by(state)
        if type(at) is not Pointer:
            return None
        if type(offset) is not int or at.offset is None:
            return Pointer(at.base, None)
        return Pointer(at.base, at.offset + offset)

    return move


def _shifted(value: Get, by: Get) -> Get:
    """Addresses are shifted to bytes; what they belong to stays."""
    integers = _of_integers(_BINARY["sshll"], value, by)

    def shift(state: State) -> Value:
        shifted = value(state)
        return Pointer(shifted.base, None) if type(shifted) is Pointer else integers(state)

    return shift


def _constant(known: Value) -> Get:
    return lambda state: known


def _chosen(condition: Get, yes: Get, no: Get) -> Get:
    def choose(state: State) -> Value:
        chosen = condition(state)
        if chosen is None:
            return None
        return yes(state) if chosen else no(state)

    return choose


def _of_integers(function: Callable[[int, int], Value], a: Get, b: Get) -> Get:
    def compute(state: State) -> Value:
        x, y = a(state), b(state)
        return function(x, y) if type(x) is int and type(y) is int else None

    return compute


def _logical(name: str, a: Get, b: Get) -> Get:
    """Of predicates; one that is known may decide alone."""
    inverted = name in ("pnand", "pnor")
    decides = {"pand": False, "pnand": False, "por": True, "pnor": True}.get(name)

    def compute(state: State) -> Value:
        x, y = a(state), b(state)
        if decides is not None and (x is decides or y is decides):
            return decides is not inverted
        if x is None or y is None:
            return None
        return (x != y) if decides is None else (decides is inverted)

    return compute


def negated(of: Get) -> Get:
    def negate(state: State) -> Value:
        got = of(state)
        return None if got is None else not got

    return negate


def operand(text: str) -> Get:
    """What an operand stands for."""
    text = text.strip()
    match = _NAME.match(text)
    if match is not None:
        key = match[2]
        if match[1]:
            return negated(lambda state: state.get(key))
        return lambda state: state.get(key)
    match = _ALLOCATION.match(text)
    if match is not None:
        return _constant(Pointer(match[1], int((match[2] or "0").lstrip("$"), 0)))
    if re.fullmatch(r"-?\d+", text):
        return _constant(wrap(int(text)))
    if re.fullmatch(r"\$?0x[0-9a-f]+", text):
        return _constant(wrap(int(text.lstrip("$"), 16)))
    return _constant(None)


def parts(text: str) -> list[str]:
    """Splits at the commas outside of brackets."""
    found, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            found.append(text[start:at])
            start = at + 1
    return [part.strip() for part in [*found, text[start:]] if part.strip()]
