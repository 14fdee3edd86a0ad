"""Reads what libtpu dumps about one kernel: its memory, its code, and what made it slow.

The form is undocumented and changes between versions, so the heads of the files are checked, and
anything else is `UnreadableDump`.
"""

from __future__ import annotations

import collections
import glob
import hashlib
import os
import re
from typing import NamedTuple

from pallas_shim.chip.jobs import Allocation

# What makes libtpu write these files. It reads this when it is loaded.
FLAGS = (
    "--xla_jf_dump_to={directory}",
    "--xla_jf_dump_llo_text=true",
    "--xla_jf_dump_llo_pass_label_regex=final",
    "--xla_mosaic_enable_llo_source_annotations=true",
    "--xla_jf_emit_annotations=true",
)

_ALLOCATIONS = "-pre-finalize-registers-and-allocations.txt"
_UTILIZATION = "-final_hlo-static-per-bundle-utilization.txt"
_BUNDLES = "-final_bundles.txt"


class UnreadableDump(Exception):
    """The dump isn't there, or isn't in a form that is known. The message says which."""


class Files(NamedTuple):
    """The texts about one kernel."""

    allocations: str
    utilization: str
    bundles: str


class Compiled(NamedTuple):
    """A function that was compiled: XLA's program, and the texts about each of its kernels, by the
    name of the instruction that calls it."""

    hlo: str
    kernels: dict[str, Files]


# Lines of HLO may hold a large constant.
_LONGEST = 6000


def without_long_lines(hlo: str) -> str:
    """XLA's program with digests in the place of the kernels' code, and without the middles of
    lines that are still long."""

    def digest(match: re.Match[str]) -> str:
        return f'"body":"{hashlib.sha256(match[1].encode()).hexdigest()}"'

    lines = (re.sub(r'"body":"([^"]*)"', digest, line) for line in hlo.splitlines())
    return "\n".join(
        line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
        for line in lines
    )


def kernels(hlo: str) -> list[str]:
    """The names of the instructions of a compiled module that call a kernel."""
    return re.findall(r'%([\w.-]+) = [^\n]*custom_call_target="tpu_custom_call"', hlo)


def read(directory: str, kernel: str) -> Files:
    """The files about a kernel, by its instruction's name."""
    texts = []
    for ending in (_ALLOCATIONS, _UTILIZATION, _BUNDLES):
        pattern = f"*-{glob.escape(kernel)}-[0-9]*{ending}"
        # The name of "schedule-analysis_final_bundles" ends alike.
        found = [
            path
            for path in glob.glob(os.path.join(glob.escape(directory), pattern))
            if re.search(rf"-{re.escape(kernel)}-\d+{re.escape(ending)}$", path)
        ]
        if not found:
            raise UnreadableDump(f"no *{ending} of the kernel was written")
        with open(max(found), encoding="utf-8", errors="replace") as file:
            texts.append(file.read())
    return Files(*texts)


# -- memory -------------------------------------------------------------------------------------

_ALLOCATION = re.compile(
    r"(?P<indent> *)#allocation\w+ \[shape = '(?P<shape>[^']*)', space=(?P<space>\w+), "
    r"size = (?P<size>0x[0-9a-f]+|\d+)(?P<how>(?:, (?!tag)[^,\]]+)*)(?:, tag = '(?P<tag>[^']*)')?"
)


def allocations(files: Files) -> tuple[Allocation, ...]:
    """What the kernel holds at the place where it holds most VMEM, the largest first."""
    held: list[tuple[int, Allocation]] = []
    most: list[Allocation] = []
    seen = False
    for line in files.allocations.splitlines():
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip(" "))
        # A scope's allocations stand before its code, which is indented at least as far.
        held = [(at, allocation) for at, allocation in held if at <= indent]
        match = _ALLOCATION.match(line)
        if match is None:
            continue
        seen = True
        # Constants and registers of the scalar unit. Libtpu 0.0.24 doesn't say that they are fixed.
        if "fixed_abs" in match["how"] or "constant byte address" in (match["tag"] or ""):
            continue
        held.append((indent, _allocation(match)))
        now = [allocation for _, allocation in held]
        if _total(now) >= _total(most):
            most = now
    if not seen:
        raise UnreadableDump("its allocations have another form")
    return tuple(sorted(most, key=lambda a: (-a.size, a.what)))


def _allocation(match: re.Match[str]) -> Allocation:
    what = (match["tag"] or "").partition(". The window shape")[0]
    return Allocation(match["space"], int(match["size"], 0), match["shape"], what)


def _total(held: list[Allocation]) -> tuple[int, int]:
    return sum(a.size for a in held if a.space == "vmem"), len(held)


# -- code ---------------------------------------------------------------------------------------


class Utilization(NamedTuple):
    """How many of each unit each bundle uses. ``capacity``: what one bundle can use at most."""

    capacity: dict[str, int]
    bundles: list[tuple[int, ...]]

    def total(self, unit: str) -> int:
        column = list(self.capacity).index(unit) if unit in self.capacity else None
        return 0 if column is None else sum(bundle[column] for bundle in self.bundles)


def utilization(files: Files) -> Utilization:
    """Reads the table of units by bundle."""
    lines = files.utilization.splitlines()
    # The first word is misspelt by libtpu 0.0.42.
    heads = [i for i, line in enumerate(lines) if re.match(r"== (CAPACTIY|CAPACITY):", line)]
    if not heads or len(lines) < heads[0] + 4 or not lines[heads[0] + 3].startswith("== UTIL"):
        raise UnreadableDump("the table of units by bundle has another form")
    at = heads[0]
    names = [name.strip() for name in lines[at + 1].split(",")]
    try:
        capacity = dict(zip(names, map(int, lines[at + 2].split()), strict=True))
        bundles = [tuple(map(int, line.split())) for line in lines[at + 4 :] if line.strip()]
    except ValueError as error:
        raise UnreadableDump("the table of units by bundle has another form") from error
    if not {"MXU", "VALU", "SALU"} <= capacity.keys() or any(
        len(bundle) != len(names) for bundle in bundles
    ):
        raise UnreadableDump("the table of units by bundle has another form")
    return Utilization(capacity, bundles)


# Instructions that cost time for the shape or place of the data, and what to say of them.
_COSTLY = (
    # sm: the sublanes; all eight are 0xff.
    (
        re.compile(r"\bvst\.msk\b|\bvst\.sshfl\.msk\b|\bvst \[[^\n]* sm:\$0x(?!ff\])"),
        "masked stores",
    ),
    (re.compile(r"\bvld\.msk\b|\bvld \[[^\n]* sm:\$0x(?!ff\])"), "masked loads"),
    (re.compile(r"\bvld\.sshfl\b|\bvst\.sshfl\b"), "shuffled loads and stores"),
    (re.compile(r"\bvrot\.\w+|\bvperm\.\w+|\bvcombine\.\w+"), "rotations and permutations"),
    (re.compile(r"\bvxpose\.\w+"), "transposes"),
)
_LOCATION = re.compile(r'loc\("(?P<file>[^"]+)":(?P<line>\d+)')


def warnings(files: Files) -> tuple[str, ...]:
    """The costly instructions by kind, each with the user's lines that most of them come from."""
    found: dict[str, collections.Counter[str]] = {}
    for instruction in re.split(r";;|\n", files.bundles):
        for pattern, kind in _COSTLY:
            if pattern.search(instruction):
                place = _LOCATION.search(instruction)
                where = f"{place['file']}:{place['line']}" if place else "no line"
                found.setdefault(kind, collections.Counter())[where] += 1
                break
    return tuple(
        f"{sum(lines.values())} {kind}: "
        + ", ".join(f"{count} at {line}" for line, count in lines.most_common(3))
        + (", ..." if len(lines) > 3 else "")
        for kind, lines in found.items()
    )
