"""Reads XLA's compiled program of a function: its instructions, the order in which they run, and
the memory in which each value lies."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from pallas_shim.chip.dumps import UnreadableDump

_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%(?P<name>[^ ]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"\s*(?P<root>ROOT )?%(?P<name>[^ ]+) = (?P<shape>\(.*?\)|\S+) (?P<opcode>[\w-]+)\((?P<rest>.*)"
)
_ARRAY = re.compile(r"(?P<type>\w+)\[(?P<sizes>[\d,]*)\](?P<layout>\{[^}]*\})?")
_BITS = re.compile(r"(?:s|u|f|bf|c)(\d+)")
_SPACE = re.compile(r"S\((\d+)\)")
# XLA's numbers of a TPU's memories. Without a number it is HBM.
_SPACES = {"1": "vmem", "2": "sflag", "5": "host"}


class Array(NamedTuple):
    """A value, or a part of one: its type, its bytes (without padding) and its memory."""

    type: str
    size: int
    space: str


class HloInstruction(NamedTuple):
    """``arrays``: the parts of its result. ``operands``: the names of instructions. ``rest``: what
    follows the operands."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    @property
    def is_kernel(self) -> bool:
        return 'custom_call_target="tpu_custom_call"' in self.rest

    def attribute(self, pattern: str) -> str | None:
        """What a pattern's group matches in what follows the operands."""
        match = re.search(pattern, self.rest)
        return None if match is None else match[1]


class Module(NamedTuple):
    """The program: the instructions of each computation by name, and the one that runs first."""

    computations: dict[str, dict[str, HloInstruction]]
    entry: str


def read(text: str) -> Module:
    """Reads a program.

    Raises:
      UnreadableDump: it has another form.
    """
    computations: dict[str, dict[str, HloInstruction]] = {}
    entry = None
    here: dict[str, HloInstruction] | None = None
    for line in text.splitlines():
        head = _COMPUTATION.match(line)
        if head is not None:
            here = computations[head["name"]] = {}
            entry = head["name"] if head["entry"] else entry
        elif line.startswith("}"):
            here = None
        elif here is not None:
            made = _instruction(line)
            if made is not None:
                here[made.name] = made
    if entry is None or not computations[entry]:
        raise UnreadableDump("XLA's program has another form")
    return Module(computations, entry)


def _instruction(line: str) -> HloInstruction | None:
    match = _INSTRUCTION.match(line)
    if match is None:
        return None
    # Operands may be printed with their types, in which more parentheses stand.
    given, _, rest = re.sub(r"\)(?=,|$)", "\0", match["rest"], count=1).partition("\0")
    return HloInstruction(
        match["name"],
        match["opcode"],
        tuple(_array(each) for each in _ARRAY.finditer(match["shape"])),
        tuple(re.findall(r"%([^ ,)]+)", given)),
        given + rest if match["opcode"] == "constant" else rest,
        match["root"] is not None,
    )


def _array(match: re.Match[str]) -> Array:
    bits = _BITS.match(match["type"])
    count = math.prod(int(n) for n in match["sizes"].split(",") if n)
    space = _SPACE.search(match["layout"] or "")
    return Array(
        f"{match['type']}[{match['sizes']}]",
        count * (int(bits[1]) if bits is not None else 8) // 8,
        "hbm" if space is None else _SPACES.get(space[1], f"memory {space[1]}"),
    )


def turns(module: Module, where: dict[str, HloInstruction], loop: HloInstruction) -> int | None:
    """How often a loop turns that counts from one constant up to another; None: unknown.

    Args:
      where: the computation in which the loop stands.
    """
    condition = module.computations.get(loop.attribute(r"condition=%([^ ,]+)") or "", {})
    body = module.computations.get(loop.attribute(r"body=%([^ ,]+)") or "", {})
    compared, result = _root(condition), _root(body)
    if compared is None or result is None or compared.opcode != "compare":
        return None
    if compared.attribute(r"direction=(\w+)") != "LT" or len(compared.operands) != 2:
        return None
    counter, limit = (_behind(condition, name) for name in compared.operands)
    place = None if counter is None else _element(counter)
    end = _constant(limit)
    start_of = _behind(where, loop.operands[0]) if loop.operands else None
    if place is None or end is None or start_of is None or start_of.opcode != "tuple":
        return None
    begin = _constant(_behind(where, start_of.operands[place]))
    after = _behind(body, result.operands[place]) if result.opcode == "tuple" else None
    if begin is None or after is None or after.opcode != "add":
        return None
    added = [_behind(body, name) for name in after.operands]
    if sorted(_constant(each) or 0 for each in added) != [0, 1]:
        return None
    if not any(each is not None and _element(each) == place for each in added):
        return None
    return max(end - begin, 0)


def _root(computation: dict[str, HloInstruction]) -> HloInstruction | None:
    return next((each for each in computation.values() if each.is_root), None)


def _behind(computation: dict[str, HloInstruction], name: str) -> HloInstruction | None:
    """The instruction of that name, or the one that it only copies."""
    found = computation.get(name)
    while found is not None and found.opcode in ("copy", "bitcast") and found.operands:
        found = computation.get(found.operands[0])
    return found


def _element(instruction: HloInstruction) -> int | None:
    """The number of the loop's value that this reads."""
    number = instruction.attribute(r"\bindex=(\d+)")
    return int(number) if instruction.opcode == "get-tuple-element" and number else None


def _constant(instruction: HloInstruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant":
        return None
    number = re.match(r"-?\d+", instruction.rest)
    return None if number is None else int(number[0])


def inner(module: Module, instruction: HloInstruction) -> Iterator[dict[str, HloInstruction]]:
    """The computations that a conditional or a call runs."""
    named = instruction.attribute(r"branch_computations=\{([^}]*)\}") or ""
    names = re.findall(r"%([^ ,]+)", named)
    for pattern in (r"true_computation=%([^ ,]+)", r"false_computation=%([^ ,]+)"):
        names += [instruction.attribute(pattern) or ""]
    if instruction.opcode == "call":
        names.append(instruction.attribute(r"to_apply=%([^ ,]+)") or "")
    yield from (module.computations[name] for name in names if name in module.computations)
