"""A trace as Perfetto's UI and Chrome's read it: the JSON format of trace events.

Each kernel is a process, each program of it a thread with its cells, each semaphore a thread with
the copies and waits on it. A microsecond of the trace is a step, see `data`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pallas_shim.view.data import Event, RecordedKernel, RecordedRun, Trace

# Copies of one semaphore overlap, and slices of a thread may not. So they get lanes.
_LANES = 100


def events(trace: Trace) -> dict[str, Any]:
    """The trace as the JSON object that Perfetto opens."""
    found = [
        event
        for process, kernel in enumerate(trace.kernels, 1)
        for event in _of_kernel(process, kernel)
    ]
    return {
        "traceEvents": found,
        "displayTimeUnit": "ns",
        "otherData": {
            "title": trace.title,
            "made": trace.made,
            "clock": "a microsecond is a step, one for each memory operation: an order, not a time",
            **trace.versions,
        },
    }


def _of_kernel(process: int, kernel: RecordedKernel) -> Iterator[dict[str, Any]]:
    yield _name("process_name", process, 0, f"{kernel.name} ({kernel.source or kernel.function})")
    for number, run in enumerate(kernel.runs):
        thread = 1 + number
        yield _name("thread_name", process, thread, run.program or "cells")
        yield from _cells(process, thread, run)
    lanes: dict[str, list[int]] = {}
    threads: dict[str, int] = {}
    for event in sorted(kernel.events, key=lambda e: (e.start, e.end)):
        row = f"{event.semaphore}{f' of {event.owner}' if event.owner else ''}"
        first = threads.setdefault(row, _LANES * (len(threads) + 1))
        ends = lanes.setdefault(row, [])
        lane = next((n for n, end in enumerate(ends) if end <= event.start), len(ends))
        if lane == len(ends):
            ends.append(0)
            yield _name("thread_name", process, first + lane, row)
        ends[lane] = max(event.end, event.start + 1)
        yield _event(process, first + lane, event, kernel)


def _cells(process: int, thread: int, run: RecordedRun) -> Iterator[dict[str, Any]]:
    moved = {"fetched": run.fetched, "written back": run.written_back, "copied": run.copied}
    moved = {name: by_cell for name, by_cell in moved.items() if any(by_cell)}
    for cell, (start, end) in enumerate(zip(run.steps, [*run.steps[1:], run.end], strict=True)):
        indices = _indices(cell, run.grid)
        yield {
            "name": f"cell {indices}", "cat": "cell", "ph": "X", "ts": start,
            "dur": max(end - start, 1), "pid": process, "tid": thread,
            "args": {"fetched": run.fetched[cell], "written back": run.written_back[cell],
                     "copied": run.copied[cell]},
        }  # fmt: skip
        if moved:
            counts = {name: by_cell[cell] for name, by_cell in moved.items()}
            program = f" {run.program}" if run.program else ""
            yield {"name": f"bytes moved{program}", "ph": "C", "ts": start, "pid": process,
                   "args": counts}  # fmt: skip


def _event(process: int, thread: int, event: Event, kernel: RecordedKernel) -> dict[str, Any]:
    line = None if event.line is None else kernel.lines[event.line]
    return {
        "name": f"{event.kind}: {event.text}", "cat": event.kind, "ph": "X", "ts": event.start,
        "dur": max(event.end - event.start, 1), "pid": process, "tid": thread,
        "args": {
            "program": kernel.runs[event.run].program,
            "cell": str(_indices(event.cell, kernel.runs[event.run].grid)),
            "bytes": event.nbytes,
            "line": "" if line is None else f"{line.file}:{line.number}",
            "waited for": event.awaited,
        },
    }  # fmt: skip


def _indices(cell: int, grid: tuple[int, ...]) -> tuple[int, ...]:
    indices: list[int] = []
    for size in reversed(grid):
        cell, index = divmod(cell, size)
        indices.insert(0, index)
    return tuple(indices)


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
