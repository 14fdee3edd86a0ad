"""A report as an object: the kernels of one process, or of several."""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pallas_shim import columns, facts
from pallas_shim.reports.uses import REPORT, Mark

SCHEMA = "pallas_shim.report"
SCHEMA_VERSION = 1


class NotAReport(ValueError):
    """The document isn't a report, or has another schema."""


@dataclasses.dataclass(frozen=True, repr=False)
class Document:
    """The result of `pallas_shim.report`. It doesn't change when more kernels run.

    ``processes`` has one entry for each process: its pid, argv, host, machine, times and versions,
    its ``kernels``, which are the rows, and its ``functions``, those that ran here without one. One
    whose kernels were compiled for a TPU also has ``compiled``, the rows of
    `chip.verdicts.Verdict.row`.
    """

    processes: tuple[Mapping[str, Any], ...]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row for each kernel of each process: see `uses.Report.rows`. With the pid."""
        return self._rows("kernels")

    @property
    def functions(self) -> list[dict[str, Any]]:
        """One row for each function without a kernel: see `uses.Report.functions`. With the pid."""
        return self._rows("functions")

    def _rows(self, kind: str) -> list[dict[str, Any]]:
        return [
            {**row, "pid": process["pid"]} for process in self.processes
            for row in process.get(kind, ())
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The JSON form. Its ``schema_version`` grows when a key changes its meaning or goes."""
        processes = [dict(process) for process in self.processes]
        return {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "processes": processes}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    def __str__(self) -> str:
        """The table, in at most 100 columns. Equal rows of several processes are one."""
        return "\n".join(_text(self))

    __repr__ = __str__  # what Python and IPython show

    def _repr_html_(self) -> str:
        rows = _of_kernels(self)
        remarks = ["; ".join(_remarks(row)) for row in rows]
        header, *cells = _cells(rows)
        table = [(*header, "reason"), *((*c, r) for c, r in zip(cells, remarks, strict=True))]
        footnotes = [*_footnotes(rows), *_without_kernels(self)]
        return columns.html_table(_title(self), table if rows else [()], footnotes)


def of_process() -> Document:
    """The report of this process until now."""
    return since(None)


def since(mark: Mark | None) -> Document:
    """The report of what happened in this process after a mark."""
    process = {
        **facts.of_process(),
        "kernels": REPORT.rows(mark),
        "functions": REPORT.functions(mark),
    }
    if mark is None and REPORT.verdicts:
        process["compiled"] = list(REPORT.verdicts)
    return Document((process,))


def from_dict(made: Any) -> Document:
    """The document that `Document.to_dict` described.

    Raises:
      NotAReport
    """
    if not isinstance(made, dict) or made.get("schema") != SCHEMA:
        raise NotAReport("it isn't a report of pallas_shim")
    if made.get("schema_version") != SCHEMA_VERSION:
        raise NotAReport(
            f"its schema version is {made.get('schema_version')}, and this pallas_shim reads "
            f"{SCHEMA_VERSION}; use the pallas_shim that wrote it"
        )
    return Document(tuple(made["processes"]))


def merged(documents: Iterable[Document]) -> Document:
    """One document of several, in the order in which the processes began."""
    processes = [process for document in documents for process in document.processes]
    return Document(tuple(sorted(processes, key=lambda process: process["began"])))


# -- the table ---------------------------------------------------------------------------------

_HEADER = (
    "kernel", "function", "source", "grid", "calls", "rung", "tracing s", "lowering s", "running s",
)  # fmt: skip
# Rows with equal values of these are one row of the table.
_SAME = ("name", "source", "grid", "function", "rung", "reason", "shared_with")


def _text(document: Document) -> Iterator[str]:
    rows = _of_kernels(document)
    yield _title(document)
    if rows:
        header, *blocks = columns.blocks(_cells(rows))
        yield from header
        for lines, row in zip(blocks, rows, strict=True):
            yield from lines
            yield from columns.paragraph("; ".join(_remarks(row)), indent="    ")
        yield from _footnotes(rows)
    for footnote in _without_kernels(document):
        yield from columns.paragraph(footnote)


def _of_kernels(document: Document) -> list[dict[str, Any]]:
    """The rows of the table, with those of older runs first. Which of a run's processes came first
    is chance, so their rows are in the order of the source."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for process in document.processes:
        runs.setdefault(process.get("run", ""), []).append(process)
    rows: list[dict[str, Any]] = []
    for processes in runs.values():
        of_run = Document(tuple(processes)).rows
        rows += of_run if len(processes) == 1 else sorted(of_run, key=_place)
    return _merged(rows)


def _place(row: Mapping[str, Any]) -> list[str | int]:
    """Sorts by kernels' places in the source, then by grids. Numbers count by their values."""
    parts = re.split(r"(\d+)", f"{row['source']} {row['name']} {row['grid']}")
    return [int(part) if part.isdigit() else part for part in parts]


def _title(document: Document) -> str:
    count = len(document.processes)
    of = "this process" if count == 1 else f"{count} processes"
    if not document.rows:
        return f"pallas_shim: no Pallas kernel was called in {of}"
    return f"pallas_shim: the Pallas kernels of {of}"


def _cells(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    places = columns.places(row["source"] for row in rows)
    cells: list[tuple[str, ...]] = [_HEADER]
    for row in rows:
        tracing = "-" if row["tracing_s"] is None else f"{row['tracing_s']:.3f}"
        shared = "*" if row["shared_with"] else ""
        cells.append(
            (
                row["name"],
                row["function"],
                places[row["source"]],
                row["grid"] or "-",
                f"{row['calls']}{shared}",
                row["rung"],
                f"{tracing}{shared}",
                f"{row['lowering_s']:.3f}{shared}",
                f"{row['running_s']:.3f}{shared}",
            )
        )
    return cells


def _remarks(row: Mapping[str, Any]) -> Iterator[str]:
    yield row["reason"]
    if row["cache"]:
        yield f"cache: {row['cache']}"
    if row.get("native"):
        yield row["native"]
    if row["raised"]:
        yield f"{row['raised']} of {row['calls']} calls raised, the last one {row['error']}"
    if row["processes"] > 1:
        yield f"in {row['processes']} processes"


def _footnotes(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    if any(row["shared_with"] for row in rows):
        yield "* of the whole jitted function, which holds other kernels too"


def _without_kernels(document: Document) -> Iterator[str]:
    """What ran here and holds no kernel, as one sentence."""
    calls: collections.Counter[str] = collections.Counter()
    for row in document.functions:
        calls[row["function"]] += row["calls"]
    if calls:
        listed = ", ".join(f"{name} ({count})" for name, count in calls.items())
        yield f"without a kernel, also in NumPy, and how often: {listed}"


def _merged(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of several processes, with those of the same kernel added up."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in _SAME)
        if row["pid"] in (first := found.setdefault(key, {**row, "pids": set()}))["pids"]:
            key = (*key, len(found))  # the same process tells two apart, so they are two
            first = found[key] = {**row, "pids": set()}
        if first["pids"]:
            for name in ("calls", "raised", "lowering_s", "running_s"):
                first[name] += row[name]
            if row["tracing_s"] is not None:
                first["tracing_s"] = (first["tracing_s"] or 0.0) + row["tracing_s"]
            first["error"] = row["error"] or first["error"]
            first["cache"] = first["cache"] or row["cache"]
            first["native"] = first.get("native") or row.get("native")
        first["pids"].add(row["pid"])
    return [{**row, "processes": len(row["pids"])} for row in found.values()]
