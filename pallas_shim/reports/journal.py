"""Keeps a process's counts on disk while it runs, so that they survive if it is killed.

Pools of processes kill their workers. A journal has, for each use, one line that describes it and
one of fixed length with its counts, which is written over after each call. The process keeps a
lock on it, which the system releases however the process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from typing import Any

from pallas_shim import facts
from pallas_shim.reports.uses import Use, rows

_COUNTS = 256  # the length of a line of counts


class Journal:
    """The journal of this process, in a file that is made at its first call of a kernel."""

    def __init__(self, path: str, run: str):
        self.path = path
        self._run = run
        self._file: int | None = None
        self._places: dict[Use, int] = {}
        self._end = 0

    def hear(self, use: Use) -> None:
        """Writes what a use has counted. Where that fails, it is written when the process ends."""
        with contextlib.suppress(OSError):
            if self._file is None:
                self._begin()
            place = self._places.get(use)
            if place is None:
                self._append({"rows": rows(use)})
                place = self._places[use] = self._end
                self._end += _COUNTS
            counts = {
                "calls": use.calls,
                "raised": use.raised,
                "error": None if use.error is None else use.error[:80],
                "tracing_s": use.tracing,
                "lowering_s": use.lowering,
                "running_s": use.running,
            }
            line = json.dumps(counts).ljust(_COUNTS - 1) + "\n"
            assert self._file is not None
            os.pwrite(self._file, line.encode(), place)

    def _begin(self) -> None:
        flags = os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_CLOEXEC
        self._file = os.open(self.path, flags, 0o666)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._append({"process": {**facts.of_process(), "run": self._run}})

    def _append(self, what: dict[str, Any]) -> None:
        assert self._file is not None
        line = (json.dumps(what) + "\n").encode()
        os.pwrite(self._file, line, self._end)
        self._end += len(line)

    def remove(self) -> None:
        """Ends the journal: what it has is written elsewhere. Later calls begin it again."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            os.close(self._file)
            self._file = None
            self._places.clear()
            self._end = 0

    def forget(self) -> None:
        """Runs in a forked process: the file is the parent's, and so is the lock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def is_open(path: str) -> bool:
    """Whether the process whose journal this is still runs."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def read(path: str) -> dict[str, Any] | None:
    """The entry of a process in a report, as its journal has it. None: it has nothing yet."""
    process: dict[str, Any] | None = None
    described: list[dict[str, Any]] = []
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        last = facts.moment(os.fstat(file.fileno()).st_mtime)
        for line in file:
            try:
                said = json.loads(line)
            except ValueError:  # the process ended while it wrote
                continue
            if "process" in said:
                process = {**said["process"], "ended": last, "kernels": []}
            elif "rows" in said:
                described = said["rows"]
            elif process is not None:
                process["kernels"] += [{**row, **said} for row in described]
    return process
