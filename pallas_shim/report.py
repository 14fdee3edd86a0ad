"""The report: which kernels were called, how each ran, and the time it took."""

from __future__ import annotations

import atexit
import dataclasses
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pallas_shim.jax_compat.kernel_info import KernelInfo

log = logging.getLogger("pallas_shim")

_lock = threading.Lock()  # guards all counts


@dataclasses.dataclass(eq=False, slots=True, weakref_slot=True)
class Use:
    """The kernels of one jitted function (or one kernel of a compiled one) on one rung.

    There may be no kernels, under PALLAS_NUMPY_SCOPE=all.

    ``calls`` and the seconds count all the kernels together. ``tracing`` is the time JAX took to
    trace the function (None: unknown), ``lowering`` the time to make its NumPy program, and
    ``running`` the time of the calls. ``happened``: the use is in the report. ``cache`` is the
    outcome of the cache on disk whose key is the function: "read", "written", or the reason why the
    program isn't kept; None: this cache is off. ``traced_cache`` is the outcome of the cache whose
    key is the jaxpr. ``raised`` counts the calls that ended with an exception, and ``error`` is the
    last exception's type. ``native``: what became of native code for the program; None: nothing
    yet.
    """

    function: str
    kernels: tuple[KernelInfo, ...]
    rung: str
    reason: str
    calls: int = 0
    tracing: float | None = None
    lowering: float = 0.0
    running: float = 0.0
    happened: bool = False
    cache: str | None = None
    traced_cache: str | None = None
    raised: int = 0
    error: str | None = None
    native: str | None = None

    def ran(self, seconds: float, error: BaseException | None = None) -> None:
        """Counts one call, and the exception that ended it, if any."""
        with _lock:
            self.happened = True
            self.calls += 1
            self.running += seconds
            if error is not None:
                self.raised += 1
                self.error = type(error).__name__

    def caches(self) -> str | None:
        """The outcome of both caches, as text for people. None if neither was used."""
        if self.cache is None or self.traced_cache is None:
            return self.cache or self.traced_cache
        known = not self.cache.startswith("not kept")
        return self.cache if known else f"{self.cache}; {self.traced_cache}"

    def prepared(self, lowering: float, tracing: float | None = None) -> None:
        """Adds the time of the preparation."""
        with _lock:
            self.lowering += lowering
            if tracing is not None:
                self.tracing = (self.tracing or 0.0) + tracing


class Report:
    """The uses of a process, in the order in which they were first seen."""

    def __init__(self) -> None:
        self._uses: dict[Any, Use] = {}

    def use(self, function: str, kernels: tuple[KernelInfo, ...], rung: str, reason: str) -> Use:
        """The use with this description. A new one is logged."""
        key = (function, kernels, rung, reason)
        with _lock:
            found = self._uses.get(key)
            if found is None:
                found = self._uses[key] = Use(function, kernels, rung, reason)
                names = ", ".join(_titled(kernel) for kernel in kernels) or "all"
                log.info("%s of %s: rung %s, %s", names, function, rung, reason)
            return found

    def clear(self) -> None:
        """Forgets all uses. Plans that are kept go on counting, from zero."""
        with _lock:
            for use in self._uses.values():
                use.calls, use.tracing, use.lowering, use.running = 0, None, 0.0, 0.0
                use.happened, use.raised, use.error = False, 0, None

    def rows(self) -> list[dict[str, Any]]:
        """One row for each kernel, or for each function without one. This is the JSON form.

        The keys: name, source, grid, function, calls, rung, reason, tracing_s, lowering_s,
        running_s, shared_with, cache, raised, error, native. If several kernels of one jitted
        function ran as one program, the calls and seconds are the program's. ``shared_with``
        counts the function's other kernels.
        """
        with _lock:
            uses = [use for use in self._uses.values() if use.happened]
        return [
            {
                "name": kernel.name if kernel else f"{use.function} (no kernel)",
                "source": kernel.source if kernel else None,
                "grid": kernel.grid if kernel else "",
                "function": use.function,
                "calls": use.calls,
                "rung": use.rung,
                "reason": use.reason,
                "tracing_s": use.tracing,
                "lowering_s": use.lowering,
                "running_s": use.running,
                "shared_with": max(len(use.kernels) - 1, 0),
                "cache": use.caches(),
                "raised": use.raised,
                "error": use.error,
                "native": use.native,
            }
            for use in uses
            for kernel in use.kernels or (None,)
        ]

    def table(self) -> str:
        """The rows as text, for people."""
        return table(self.rows())


_HEADER = (
    "kernel", "source", "grid", "calls", "rung", "tracing s", "lowering s", "running s", "reason",
)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of a report as text, for people."""
    if not rows:
        return "pallas_shim: no Pallas kernel was called"
    lines = [_HEADER]
    for row in rows:
        tracing = "-" if row["tracing_s"] is None else f"{row['tracing_s']:.3f}"
        shared = "*" if row["shared_with"] else ""
        lines.append(
            (
                row["name"],
                row["source"] or "-",
                row["grid"] or "-",
                f"{row['calls']}{shared}",
                row["rung"],
                f"{tracing}{shared}",
                f"{row['lowering_s']:.3f}{shared}",
                f"{row['running_s']:.3f}{shared}",
                "; ".join(_remarks(row)),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    text.insert(0, "pallas_shim: the Pallas kernels of this process")
    if any(row["shared_with"] for row in rows):
        text.append("* of the whole jitted function, which holds other kernels too")
    return "\n".join(text)


def _remarks(row: dict[str, Any]) -> Iterator[str]:
    yield row["reason"]
    if row["cache"]:
        yield f"cache: {row['cache']}"
    if row.get("native"):
        yield row["native"]
    if row.get("raised"):
        yield f"{row['raised']} of {row['calls']} calls raised, the last one {row['error']}"


def _titled(kernel: KernelInfo) -> str:
    return f"kernel {kernel.name}" + (f" ({kernel.source})" if kernel.source else "")


REPORT = Report()


def _start_over() -> None:
    """Runs in a forked process: makes a new lock, since no thread is left to release the old one,
    and forgets the parent's runs."""
    global _lock
    _lock = threading.Lock()
    REPORT.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_over)


def write(destination: str) -> None:
    """Writes the report. "1" prints a table to stderr; anything else is the path of a JSON file.

    ``{pid}`` in a path stands for the process id, for scripts that start other processes.
    """
    if destination == "1":
        print(REPORT.table(), file=sys.stderr)
        return
    path = destination.replace("{pid}", str(os.getpid()))
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"pid": os.getpid(), "kernels": REPORT.rows()}, file, indent=1)
            file.write("\n")
    except OSError as error:
        print(f"pallas_shim: the report can't be written: {error}", file=sys.stderr)


def show(path: str) -> int:
    """Prints the table of a JSON file that `write` made. Returns the exit status: 1 if the file
    can't be read."""
    try:
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)["kernels"]
        print(table(rows))
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"pallas_shim: {path} isn't a report: {error}", file=sys.stderr)
        return 1
    return 0


def write_at_exit(destination: str | None) -> None:
    """Writes the report when Python ends. If it is called again, the last destination counts."""
    atexit.unregister(write)
    if destination is not None:
        atexit.register(write, destination)


def log_to_stderr() -> None:
    """Shows each decision as it is made, unless the user has set up logging already."""
    log.setLevel(logging.INFO)
    if not log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("pallas_shim: %(message)s"))
        log.addHandler(handler)
