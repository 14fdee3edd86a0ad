"""Reads a kernel's VLIW code as libtpu dumps it: bundles, instructions, regions, source lines."""

from __future__ import annotations

import re
from typing import NamedTuple

from pallas_shim.chip.dumps import Files, UnreadableDump, Utilization, utilization


class BundleInstruction(NamedTuple):
    """``result`` and ``operands`` as they are written, without comments; ``line`` is "file:line"
    of the user's source, or None."""

    result: str | None
    name: str
    operands: str
    line: str | None


class Bundle(NamedTuple):
    """What one cycle starts. ``depth``: the number of loops around it. ``uses``: how much of each
    unit, in the order of the code's ``units``."""

    depth: int
    instructions: tuple[BundleInstruction, ...]
    uses: tuple[int, ...]


class Code(NamedTuple):
    """A kernel's code. ``regions``: the bundle at which each region starts."""

    bundles: tuple[Bundle, ...]
    regions: dict[int, int]
    units: dict[str, int]


_BUNDLE = re.compile(
    r"^ *(?P<at>0x[0-9a-f]+|\d+) +(?P<label>[A-Z]{2})? *: *(?P<depth>(?:> ?)*) *\{"
)
_REGION = re.compile(r"Start(?:/End empty)? region (\d+)")
_LINE = re.compile(r'loc\("(?P<file>[^"]+)":(?P<line>\d+)')
_COMMENT = re.compile(r"/\*.*?\*/", re.S)
_INSTRUCTION = re.compile(r"^(?:%(?P<result>[\w.]+) = )?(?P<name>[a-zA-Z_][\w.]*)\s*(?P<rest>.*)$",
                          re.S)  # fmt: skip


def read(files: Files) -> Code:
    """Reads the code of a kernel.

    Raises:
      Unreadable: it has a form that isn't known.
    """
    units: Utilization = utilization(files)
    records: list[list[str]] = []
    for line in files.bundles.splitlines():
        if _BUNDLE.match(line):
            records.append([line])
        elif records:
            records[-1].append(line)
    if len(records) != len(units.bundles):
        raise UnreadableDump(f"{len(records)} bundles, {len(units.bundles)} rows of units")
    bundles: list[Bundle] = []
    regions: dict[int, int] = {}
    for number, (lines, uses) in enumerate(zip(records, units.bundles, strict=True)):
        text = "\n".join(lines)
        head = _BUNDLE.match(text)
        assert head is not None
        if int(head["at"], 0) != number:
            raise UnreadableDump("its bundles aren't numbered one after the other")
        for region in _REGION.findall(text):
            regions.setdefault(int(region), number)
        body = text[head.end() :].rpartition("}")[0]
        bundles.append(Bundle(head["depth"].count(">"), tuple(_instructions(body)), uses))
    return Code(tuple(bundles), regions, units.capacity)


def _instructions(body: str) -> list[BundleInstruction]:
    found = []
    for part in body.split(";;"):
        place = _LINE.search(part)
        match = _INSTRUCTION.match(_COMMENT.sub("", part).strip())
        if match is not None:
            line = f"{place['file']}:{place['line']}" if place else None
            operands = match["rest"].strip()
            found.append(BundleInstruction(match["result"], match["name"], operands, line))
    return found
