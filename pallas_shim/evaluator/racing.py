"""Runs a function whose programs talk once more, and watches for races between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pallas_shim.evaluator.checks.lowering import Checks
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.findings import Finding
from pallas_shim.evaluator.machine import operations, order
from pallas_shim.evaluator.machine.clocks import Clocks
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.jax_compat.callbacks import CALLBACK_PRIMITIVES


class RacingExecutable(Executable):
    """An `Executable` that reports races between devices and cores.

    ``timed`` makes the program that can be watched.
    """

    def __init__(
        self,
        executable: Executable,
        timed: Callable[[], Executable],
        checks: Checks,
        found: Callable[[Finding], None],
    ) -> None:
        self.program = executable.program
        self._run_once = executable
        self._make = timed
        self._checks = checks
        self._found = found
        self._timed: Executable | None = None
        self._talks = any(
            i.name == operations.MEET and i.operation.params["patient"]  # the end of a kernel
            for i in self.program.top.walk()
        )

    def run(self, args: Sequence[Any]) -> list[Any]:
        results = self._run_once.run(args)
        if self._talks:
            self._watch(args)
        return results

    def _watch(self, args: Sequence[Any]) -> None:
        reason = None
        if any(i.name in CALLBACK_PRIMITIVES for i in self.program.top.walk()):
            reason = "its function calls back to the host, so it can't be run again"
        elif self._timed is None:
            try:
                self._timed = self._make()
            except Unsupported as unsupported:
                reason = str(unsupported)
            else:
                self._say_what_is_left_out(self._timed)
        if reason is not None:
            self._talks = False
            self._checks.skipped(self.program.name, f"races between its programs: {reason}")
            return
        assert self._timed is not None
        with order.running(order.OWN_ORDER, Clocks(self._report)):
            self._timed.run(args)

    def _say_what_is_left_out(self, timed: Executable) -> None:
        """Names the accesses that aren't noted."""
        unseen = dict.fromkeys(
            i.operation.params["unseen"]
            for i in timed.program.top.walk()
            if i.name == operations.NOTE
        )
        for what in filter(None, unseen):
            self._checks.skipped(self.program.name, f"races between its programs: {what}")

    def _report(self, finding: Finding) -> None:
        if finding.kind in self._checks.kinds:
            self._found(finding)
