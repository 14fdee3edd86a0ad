"""Findings that the user doesn't want to see: by a file, and by comments in the source.

The file is TOML. Each ``[[suppress]]`` names what a finding must have: ``kind`` (``races``, or
``races/unordered``), ``kernel`` (with wildcards), ``line`` (``file.py:12``, or ``file.py`` for
all of the file). At least one; ``reason`` says why, for people. In the source, the comment
``# pallas: ignore[races]`` on a line of the finding, or where its kernel is defined, does the same;
without brackets it is for all kinds.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import linecache
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pallas_shim.check.results import Results, Suppressed, place
from pallas_shim.evaluator.findings import KINDS, Finding

_COMMENT = re.compile(r"#\s*pallas:\s*ignore(?:\[([^\]]*)\])?")


class BadFile(Exception):
    """The file of suppressions can't be read, or holds something unknown."""


@dataclasses.dataclass(frozen=True)
class Suppression:
    """One entry of the file. None: any."""

    kind: str | None = None
    kernel: str | None = None
    line: str | None = None
    reason: str = ""

    def covers(self, finding: Finding) -> bool:
        return (
            (self.kind is None or _is_of(finding, self.kind))
            and (self.kernel is None or fnmatch.fnmatchcase(finding.kernel, self.kernel))
            and (self.line is None or any(_is_at(spot, self.line) for spot in _spots(finding)))
        )

    def __str__(self) -> str:
        said = {"kind": self.kind, "kernel": self.kernel, "line": self.line}
        return ", ".join(f"{name} = {value!r}" for name, value in said.items() if value)


def read(path: str) -> list[Suppression]:
    """The suppressions in a file.

    Raises:
      BadFile: says what is wrong.
    """
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except (OSError, ValueError) as error:
        raise BadFile(f"the suppressions in {path} can't be read: {error}") from error
    entries = content.pop("suppress", [])
    if content or not isinstance(entries, list):
        raise BadFile(f"{path}: only entries [[suppress]] are allowed")
    return [_entry(path, entry) for entry in entries]


def _entry(path: str, entry: object) -> Suppression:
    allowed = [field.name for field in dataclasses.fields(Suppression)]
    if not isinstance(entry, dict) or not all(isinstance(v, str) for v in entry.values()):
        raise BadFile(f"{path}: an entry [[suppress]] has texts for {', '.join(allowed)}")
    unknown = sorted(entry.keys() - set(allowed))
    if unknown:
        raise BadFile(f"{path}: {unknown[0]} isn't known; it is one of {', '.join(allowed)}")
    if not entry.keys() & {"kind", "kernel", "line"}:
        raise BadFile(f"{path}: an entry without kind, kernel and line would suppress everything")
    kind = entry.get("kind", KINDS[0]).partition("/")[0]
    if kind not in KINDS:
        raise BadFile(f"{path}: the kind {kind!r} isn't one of {', '.join(KINDS)}")
    return Suppression(**entry)


def apply(
    findings: Iterable[Finding],
    suppressions: Sequence[Suppression] = (),
    not_checked: Iterable[tuple[str, str]] = (),
    processes: Iterable[Mapping[str, Any]] = (),
) -> Results:
    """Separates what is suppressed, by these suppressions and by comments."""
    shown, hidden, used = [], [], set()
    for finding in findings:
        covering = [s for s in suppressions if s.covers(finding)]
        used.update(covering)
        if _has_comment(finding):
            hidden.append(Suppressed(finding, "comment", ""))
        elif covering:
            hidden.append(Suppressed(finding, "file", covering[0].reason))
        else:
            shown.append(finding)
    unused = tuple(str(s) for s in suppressions if s not in used)
    return Results(tuple(shown), tuple(hidden), tuple(not_checked), unused, tuple(processes))


def _spots(finding: Finding) -> list[tuple[str, int]]:
    """The lines of a finding."""
    texts = [access.where for access in finding.accesses] + [finding.source]
    return [spot for text in texts if (spot := place(text)) is not None]


def _is_of(finding: Finding, kind: str) -> bool:
    return kind in (finding.kind, finding.rule, f"{finding.kind}/{finding.rule}")


def _is_at(spot: tuple[str, int], wanted: str) -> bool:
    file, line = place(wanted) or (wanted, None)
    ends = spot[0] == file or spot[0].endswith("/" + file.removeprefix("./"))
    return ends and line in (None, spot[1])


def _has_comment(finding: Finding) -> bool:
    for file, line in _spots(finding):
        found = _COMMENT.search(linecache.getline(file, line))
        if found is None:
            continue
        kinds = found.group(1)
        if kinds is None or any(_is_of(finding, kind.strip()) for kind in kinds.split(",")):
            return True
    return False
