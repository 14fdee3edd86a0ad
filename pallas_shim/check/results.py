"""The findings of a checked run, in one process or several; suppressed ones are kept apart."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pallas_shim.evaluator.findings import Access, Finding

_PLACE = re.compile(r"(.+):(\d+)( \(.*\))?$")  # JAX adds the function's name in brackets

SCHEMA = "pallas_shim.findings"
SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Suppressed:
    """A finding that the user doesn't want to see, and where the user said so.

    ``by`` is ``comment`` or ``file``; ``reason`` is the user's, or "".
    """

    finding: Finding
    by: str
    reason: str


@dataclasses.dataclass(frozen=True, repr=False)
class Results:
    """``findings`` and ``suppressed`` together are all that was found. ``not_checked``: pairs of a
    kernel and the reason why it, or a part of it, wasn't checked. ``unused``: suppressions of the
    file that suppress nothing, as text. ``processes``: the facts of each process (`facts`)."""

    findings: tuple[Finding, ...]
    suppressed: tuple[Suppressed, ...] = ()
    not_checked: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()
    processes: tuple[Mapping[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form. Its ``schema_version`` grows when a key changes its meaning or goes."""
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "processes": [dict(process) for process in self.processes],
            "findings": [finding_to_dict(finding) for finding in self.findings],
            "suppressed": [
                {**finding_to_dict(s.finding), "suppressed_by": s.by, "reason": s.reason}
                for s in self.suppressed
            ],
            "not_checked": [
                {"kernel": kernel, "reason": reason} for kernel, reason in self.not_checked
            ],
            "unused_suppressions": list(self.unused),
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    def _repr_html_(self) -> str:
        from pallas_shim.check import text

        return text.html_table(self)

    def __str__(self) -> str:
        from pallas_shim.check import text

        return text.table(self)

    __repr__ = __str__  # what Python and IPython show


def unique(findings: Iterable[Finding]) -> list[Finding]:
    """One finding of each place, in order: several processes find the same."""
    first: dict[tuple[Any, ...], Finding] = {}
    for finding in findings:
        first.setdefault(finding.place(), finding)
    return list(first.values())


def finding_to_dict(finding: Finding) -> dict[str, Any]:
    made = dataclasses.asdict(finding)
    made["accesses"] = [
        {**access, "cell": None if access["cell"] is None else list(access["cell"])}
        for access in made["accesses"]
    ]
    return made


def finding_from_dict(made: Mapping[str, Any]) -> Finding:
    """The finding that `finding_to_dict` described."""
    accesses = tuple(
        Access(**{**access, "cell": None if access["cell"] is None else tuple(access["cell"])})
        for access in made["accesses"]
    )
    return Finding(**{**made, "accesses": accesses})


def place(where: str | None) -> tuple[str, int] | None:
    """The file and the line in a text ``file:line``. None: it isn't known."""
    found = _PLACE.match(where or "")
    return (found[1], int(found[2])) if found else None
