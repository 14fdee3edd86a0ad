"""Findings as plain text, for a terminal or a log."""

from __future__ import annotations

import collections
import linecache
from collections.abc import Iterator

from pallas_shim import columns
from pallas_shim.check.results import Results, place
from pallas_shim.evaluator.findings import KINDS, Access, Finding


def table(results: Results) -> str:
    """All that was found, in at most 100 columns."""
    sources = [f.source for f in results.findings]
    sources += [access.where for f in results.findings for access in f.accesses]
    names = columns.places(sources)
    lines = [f"pallas_shim check: {_summary(results)}"]
    for number, finding in enumerate(results.findings, 1):
        lines += ["", *_finding(number, finding, names)]
    remarks = list(_remarks(results))
    return "\n".join([*lines, *([""] if results.findings and remarks else []), *remarks])


def html_table(results: Results) -> str:
    """The same for a notebook."""
    rows = [("fault", "kernel", "ref", "what happened", "where", "what to do")]
    names = columns.places(a.where for f in results.findings for a in f.accesses)
    for f in results.findings:
        where = ["  ".join(filter(None, _access(a, f.ref, names))) for a in f.accesses]
        kind = f"{f.kind}/{f.rule}"
        rows.append((kind, f.kernel, f.ref or "", f.message, "; ".join(where), f.advice))
    title = f"pallas_shim check: {_summary(results)}"
    return columns.html_table(title, rows, list(_remarks(results)))


def _summary(results: Results) -> str:
    count = len(results.findings)
    if not count:
        return "no findings"
    kinds = collections.Counter(finding.kind for finding in results.findings)
    each = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind])
    return f"{count} finding{'s' if count > 1 else ''} ({each})"


def _finding(number: int, finding: Finding, names: dict[str | None, str]) -> Iterator[str]:
    of = f", ref {finding.ref}" if finding.ref else ""
    at = f" ({names[finding.source]})" if finding.source else ""
    title = f"{number}. {finding.kind}/{finding.rule}: kernel {finding.kernel}{at}{of}"
    yield from columns.paragraph(title)
    yield from columns.paragraph(finding.message, indent="   ")
    if finding.accesses:
        rows = [_access(access, finding.ref, names) for access in finding.accesses]
        used = [i for i in range(len(rows[0])) if any(row[i] for row in rows)]
        yield from columns.table([[row[i] for i in used] for row in rows], indent="     ")
        source = _source_line(finding.accesses[0].where)
        if source:
            yield from columns.paragraph(f"> {source}", indent="     ")
    yield from columns.paragraph(f"What to do: {finding.advice}", indent="   ")


def _access(access: Access, ref: str | None, names: dict[str | None, str]) -> tuple[str, ...]:
    cell = "" if access.cell is None else f"cell {access.cell}"
    where = names[access.where] if access.where else ""
    what = f"{access.what} {ref or ''}{access.indices}".rstrip()
    return (what, where, access.program or "", cell)


def _source_line(where: str | None) -> str:
    spot = place(where)
    return linecache.getline(*spot).strip() if spot else ""


def _remarks(results: Results) -> Iterator[str]:
    if results.suppressed:
        count = collections.Counter(s.by for s in results.suppressed)
        by = " and ".join(f"{count[by]} by {text}" for by, text in _BY.items() if count[by])
        yield f"Suppressed: {by}."
    for unused in results.unused:
        yield from columns.paragraph(f"A suppression matches nothing: {unused}.")
    for kernel, reason in results.not_checked:
        yield from columns.paragraph(f"Not checked: {kernel}: {reason}")


_BY = {"comment": "comments in the source", "file": "the file of suppressions"}
