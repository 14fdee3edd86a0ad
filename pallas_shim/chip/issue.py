"""When the bundles of straight code start: a unit that is still busy holds up the whole bundle."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from pallas_shim.chip.bundles import Bundle, BundleInstruction


class Issue(NamedTuple):
    """For each bundle the cycle in which it starts, counted from the first one; and the cycles
    until the next code can start."""

    starts: list[float]
    cycles: float


class Occupancy(NamedTuple):
    """The cycles for which an instruction occupies its unit, by a pattern of its name. As XProf's
    documentation of custom calls gives them, by generation."""

    pattern: re.Pattern[str]
    unit: str
    old: int
    new: int


# v5e and v5p; v6e and v7x.
_OCCUPANCY = tuple(
    Occupancy(re.compile(pattern), unit, old, new)
    for pattern, unit, old, new in (
        (r"^vmatmul\b.*\.(s8|u8|s4|u4)\b", "MXU", 1, 1),
        (r"^vmatmul\b.*\.(f8\w*)\b", "MXU", 4, 4),
        (r"^vmatmul\b.*\.bf16\b", "MXU", 2, 2),
        (r"^vmatmul\b", "MXU", 8, 8),
        (r"^vmatpush\w*\.bf16\.xpose\b", "latch", 8, 8),
        (r"^vmatpush\w*(\.xpose|\.bf16)\b", "latch", 4, 4),
        (r"^vmatpush", "latch", 2, 2),
        (r"^vxpose\.xlu\d\.(c\.)?b16", "XLU", 17, 4),
        (r"^vxpose\.xlu\d\.c\.", "XLU", 17, 4),
        (r"^vxpose", "XLU", 9, 4),
        (r"^v(pow2|log2|rcp|rsqrt|tanh|erf|sin|cos|pow|sigshft)\b", "EUP", 2, 1),
    )
)
_NEW = frozenset({"v6e", "v7x"})
_PORT = re.compile(r"\.(mxu|xlu)(\d)")


def occupied(instruction: BundleInstruction, tpu: str) -> tuple[str, str, int] | None:
    """The unit that an instruction occupies for more than its own cycle, which of these units,
    and for how many cycles. None: it occupies none."""
    for known in _OCCUPANCY:
        if known.pattern.search(instruction.name):
            cycles = known.new if tpu in _NEW else known.old
            port = _PORT.search(instruction.name)
            return known.unit, port[2] if port else "0", cycles
    return None


def issue(code: Sequence[Bundle], tpu: str) -> Issue:
    """Starts bundles one after the other. All units are free at first."""
    free: dict[tuple[str, str], float] = {}
    total: dict[tuple[str, str], float] = {}
    starts: list[float] = []
    now = 0.0
    for bundle in code:
        found = [got for i in bundle.instructions if (got := occupied(i, tpu)) is not None]
        for unit, port, _ in found:
            now = max(now, free.get((unit, port), 0.0))
        starts.append(now)
        for unit, port, cycles in found:
            free[unit, port] = max(now, free.get((unit, port), 0.0)) + cycles
            total[unit, port] = total.get((unit, port), 0.0) + cycles
        now += 1
    return Issue(starts, max(now, max(total.values(), default=0.0)))


# Which unit an instruction is for, by the beginning of its name.
_UNITS = (
    (re.compile(r"^(vmat|vdwg|vpop\..*mrf)"), "MXU"),
    (re.compile(r"^(vxpose|vperm|vpop\.(trf|xlane|permute)|vset\.pattern|v\w+\.xlane|vrot\.lane)"),
     "XLU"),
    (re.compile(r"^v(pow2|log2|rcp|rsqrt|tanh|erf|sin|cos|pow|sigshft)\b|^vpop\.eup"), "EUP"),
    (re.compile(r"^vld"), "loads"),
    (re.compile(r"^vst"), "stores"),
    (re.compile(r"^(dma\.|vsync)"), "copies"),
    (re.compile(r"^v"), "VALU"),
)  # fmt: skip


def unit(instruction: BundleInstruction) -> str:
    """The unit that starts an instruction, in the words of the profile."""
    if instruction.name.startswith(("vld", "vst")) and "_spill" in instruction.operands:
        return "spills"
    return next((u for known, u in _UNITS if known.match(instruction.name)), "scalar")


def by_unit(bundle: Bundle, tpu: str) -> dict[str, int]:
    """The cycles for which a bundle occupies each unit, where that is more than one."""
    spent: dict[str, int] = {}
    for instruction in bundle.instructions:
        found = occupied(instruction, tpu)
        if found is not None:
            spent[found[0]] = spent.get(found[0], 0) + found[2]
    return spent
