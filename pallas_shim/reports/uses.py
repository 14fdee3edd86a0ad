"""The uses of kernels in this process: which were called, how each ran, and the time it took."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from pallas_shim.jax_compat.kernel_info import KernelInfo

log = logging.getLogger("pallas_shim")

_lock = threading.Lock()  # guards all counts


@dataclasses.dataclass(eq=False, slots=True, weakref_slot=True)
class Use:
    """The kernels of one jitted function (or one kernel of a compiled one) on one rung.

    There may be no kernels: see PALLAS_NUMPY_SCOPE.

    ``calls`` and the seconds count all the kernels together. ``tracing`` is the time JAX took to
    trace the function (None: unknown), ``lowering`` the time to make its NumPy program, and
    ``running`` the time of the calls. ``happened``: the use is in the report. ``cache`` is the
    outcome of the cache on disk whose key is the function: "read", "written", or the reason why the
    program isn't kept; None: this cache is off. ``traced_cache`` is the outcome of the cache whose
    key is the jaxpr. ``raised`` counts the calls that ended with an exception, and ``error`` is the
    last exception's type. ``native``: what became of native code for the program; None: nothing
    yet. ``meters`` tell of calls that nobody else does: how many since they were last asked, and
    the seconds.
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
    meters: list[Callable[[], tuple[int, float]]] = dataclasses.field(default_factory=list)

    def ran(self, seconds: float, error: BaseException | None = None) -> None:
        """Counts one call, and the exception that ended it, if any."""
        with _lock:
            self.happened = True
            self.calls += 1
            self.running += seconds
            if error is not None:
                self.raised += 1
                self.error = type(error).__name__
            if REPORT.hear is not None and self.kernels:
                REPORT.hear(self)

    def count(self) -> None:
        """Counts what the meters tell."""
        for meter in self.meters:
            calls, seconds = meter()
            self.happened = self.happened or calls > 0
            self.calls += calls
            self.running += seconds

    def counts(self) -> Counts:
        """The counts so far."""
        return Counts(self.calls, self.raised, self.tracing, self.lowering, self.running)

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
        # What the TPU's compiler said of the kernels, see `chip.verdicts.Verdict.row`.
        self.verdicts: list[dict[str, Any]] = []
        self.hear: Callable[[Use], None] | None = None  # is called after each call of a kernel
        self.wanted = False  # someone will look, so calls that JAX runs are worth counting

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
                use.count()
                use.calls, use.tracing, use.lowering, use.running = 0, None, 0.0, 0.0
                use.happened, use.raised, use.error = False, 0, None

    def mark(self) -> Mark:
        """The counts so far, for `rows` to leave out later."""
        with _lock:
            for use in self._uses.values():
                use.count()
            return {use: use.counts() for use in self._uses.values() if use.happened}

    def rows(self, since: Mark | None = None) -> list[dict[str, Any]]:
        """One row for each kernel. This is the JSON form.

        The keys: name, source, grid, function, calls, rung, reason, tracing_s, lowering_s,
        running_s, shared_with, cache, raised, error, native. If several kernels of one jitted
        function ran as one program, the calls and seconds are the program's. ``shared_with``
        counts the function's other kernels. With ``since``, only what was counted after it.
        """
        return self._rows(since, with_kernels=True)

    def functions(self, since: Mark | None = None) -> list[dict[str, Any]]:
        """One row for each function without a kernel, with the same keys: see
        PALLAS_NUMPY_SCOPE."""
        return self._rows(since, with_kernels=False)

    def _rows(self, since: Mark | None, *, with_kernels: bool) -> list[dict[str, Any]]:
        with _lock:
            for use in self._uses.values():
                use.count()
            uses = [use for use in self._uses.values() if use.happened]
        before = since or {}
        return [
            row
            for use in uses
            if bool(use.kernels) is with_kernels
            if use not in before or use.calls > before[use].calls
            for row in rows(use, before.get(use, Counts()))
        ]


Mark: TypeAlias = dict[Use, "Counts"]


class Counts(NamedTuple):
    """The counts of a use at one moment."""

    calls: int = 0
    raised: int = 0
    tracing: float | None = None
    lowering: float = 0.0
    running: float = 0.0


def rows(use: Use, before: Counts | None = None) -> list[dict[str, Any]]:
    """One row for each kernel of a use, without what it had counted before: see `Report.rows`."""
    before = before or Counts()
    tracing = use.tracing
    if tracing is not None and before.tracing is not None:
        tracing -= before.tracing
    raised = use.raised - before.raised
    return [
        {
            "name": kernel.name if kernel else use.function,
            "source": kernel.source if kernel else None,
            "grid": kernel.grid if kernel else "",
            "function": use.function,
            "calls": use.calls - before.calls,
            "rung": use.rung,
            "reason": use.reason,
            "tracing_s": tracing,
            "lowering_s": use.lowering - before.lowering,
            "running_s": use.running - before.running,
            "shared_with": max(len(use.kernels) - 1, 0),
            "cache": use.caches(),
            "raised": raised,
            "error": use.error if raised else None,
            "native": use.native,
        }
        for kernel in use.kernels or (None,)
    ]


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


def log_to_stderr() -> None:
    """Shows each decision as it is made, unless the user has set up logging already."""
    log.setLevel(logging.INFO)
    if not log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("pallas_shim: %(message)s"))
        log.addHandler(handler)
