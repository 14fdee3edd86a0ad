"""Collects what checked runs of kernels find, from all threads of the process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from pallas_shim.evaluator.findings import Finding


class Collector:
    """Keeps each finding once, however often the kernel repeats it.

    Also keeps the kernels that a checked run did not check, or not wholly, and why: a kernel is
    never passed over in silence.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._findings: dict[tuple[Any, ...], Finding] = {}
        self._not_checked: dict[tuple[str, str], None] = {}
        self._hear: Callable[[Finding | tuple[str, str]], None] | None = None

    def listen(self, hear: Callable[[Finding | tuple[str, str]], None] | None) -> None:
        """Calls ``hear`` with each new finding, and each new pair of `not_checked`. None: stops."""
        self._hear = hear

    def add(self, finding: Finding) -> None:
        """Keeps a finding, unless there is one of the same place (`Finding.place`)."""
        with self._lock:
            new = finding.place() not in self._findings
            if new:
                self._findings[finding.place()] = finding
        if new and self._hear is not None:
            self._hear(finding)

    def skip(self, kernel: str, reason: str) -> None:
        """Notes that ``kernel``, or the part of it that ``reason`` names, was not checked."""
        with self._lock:
            new = (kernel, reason) not in self._not_checked
            self._not_checked[kernel, reason] = None
        if new and self._hear is not None:
            self._hear((kernel, reason))

    def findings(self) -> list[Finding]:
        """The findings until now, one of each place, in the order in which they were made."""
        with self._lock:
            return list(self._findings.values())

    def not_checked(self) -> list[tuple[str, str]]:
        """Pairs of a kernel and the reason why it, or a part of it, was not checked."""
        with self._lock:
            return list(self._not_checked)

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._findings.clear()
            self._not_checked.clear()

    def start_over(self) -> None:
        """Forgets everything in a forked process. Its parent shows what it has found itself, and
        no thread is left to release the old lock."""
        hear = self._hear
        self.__init__()  # type: ignore[misc]
        self._hear = hear


COLLECTOR = Collector()

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=COLLECTOR.start_over)
