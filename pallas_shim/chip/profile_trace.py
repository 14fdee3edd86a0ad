"""Profiles as Perfetto's UI and Chrome's read them: the JSON format of trace events.

Each kernel is a process: its turns of the grid, with what they wait for, are one thread, and its
copies lie on as many as are in flight. Of long kernels it has the first turns and copies only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pallas_shim.chip.profile import Profile

_TURNS, _WAITS, _COPIES = 1, 2, 10


def events(profiles: Sequence[Profile]) -> dict[str, Any]:
    """The JSON object that Perfetto opens."""
    found = [
        event
        for number, each in enumerate(profiles, 1)
        if each.elapsed is not None
        for event in _of_kernel(number, each)
    ]
    return {"traceEvents": found, "displayTimeUnit": "ns", "otherData": {
        each.kernel: (f"estimated; {each.error}" if each.seconds is not None
                      else f"{each.unknown}; the times are lower bounds")
        for each in profiles
    }}  # fmt: skip


def _of_kernel(process: int, each: Profile) -> Iterator[dict[str, Any]]:
    scale = 1e6 / (each.clock or 1e6)  # a microsecond is a cycle if the clock isn't known
    yield _name("process_name", process, 0, f"{each.tpu}: {each.kernel} {each.operands}")
    yield _name("thread_name", process, _TURNS, "turns of the grid")
    yield _name("thread_name", process, _WAITS, "waiting for copies")
    for number, turn in enumerate(each.turns):
        yield _slice(process, _TURNS, f"turn {number}", turn.start * scale, turn.cycles * scale,
                     {"cycles": turn.cycles, "waited": turn.waited})  # fmt: skip
    for number, wait in enumerate(each.waiting):
        yield _slice(process, _WAITS, "wait", wait[0] * scale, (wait[1] - wait[0]) * scale,
                     {"number": number})  # fmt: skip
    ends: list[float] = []
    names = {name: place for place, name in enumerate(each.names)}
    for flight in sorted(each.flights, key=lambda f: f.issued):
        lane = next((n for n, end in enumerate(ends) if end <= flight.issued), len(ends))
        if lane == len(ends):
            ends.append(0.0)
            yield _name("thread_name", process, _COPIES + lane, "copies")
        ends[lane] = flight.done
        operand = next((n for n, place in names.items() if place == flight.operand), "")
        kind = flight.kind.removeprefix("dma.")
        yield _slice(process, _COPIES + lane, f"{kind} {operand}".strip(), flight.issued * scale,
                     (flight.done - flight.issued) * scale, {"bytes": flight.size})  # fmt: skip


def _slice(
    process: int, thread: int, name: str, start: float, duration: float, args: dict[str, Any]
) -> dict[str, Any]:
    return {"name": name, "ph": "X", "ts": start, "dur": duration, "pid": process, "tid": thread,
            "args": args}  # fmt: skip


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
