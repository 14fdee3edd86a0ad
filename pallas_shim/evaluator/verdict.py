"""Runs a checked program, and decides which reads of undefined elements are faults.

A kernel may read undefined elements: it may mask them later, or never use them. So such a read is
first a candidate. The program then runs again with other elements in their place. If any result
differs, it depends on memory that nothing wrote, which is a fault on every device. Otherwise the
read does no harm with these inputs, and nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from pallas_shim.evaluator.checks.kernel import AS_ON_A_TPU
from pallas_shim.evaluator.checks.lowering import Checks
from pallas_shim.evaluator.checks.run import CheckedRun
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.findings import Access, Finding
from pallas_shim.evaluator.machine.scheduler import Deadlock
from pallas_shim.evaluator.program import Program
from pallas_shim.jax_compat.callbacks import CALLBACK_PRIMITIVES

# What undefined elements are replaced by: small numbers first, since loops may run so often.
_GARBAGE = (3, 12345)
# Of more candidates than this in one run, only whether they matter together is found out.
_MOST = 32


class CheckedExecutable(Executable):
    """An `Executable` that reports what its kernels do wrongly.

    ``disturbed`` makes the program that can replace undefined elements, and ``unchecked`` the one
    without checks. ``started`` is called before each run.
    """

    def __init__(
        self,
        executable: Executable,
        disturbed: Callable[[], Executable],
        unchecked: Callable[[], Executable],
        checks: Checks,
        found: Callable[[Finding], None],
        started: Callable[[], None],
    ) -> None:
        self.program = executable.program
        self._started = started
        self._run_once = executable
        self._make = disturbed
        self._checks = checks
        self._found = found
        self._disturbed: Executable | None = None
        self._known: dict[int, bool] = {}
        self._unchecked: Executable | None = None
        # Where the checked program does what a TPU does, and the user asked for something else,
        # the unchecked one gives the results.
        if _does_what_a_tpu_does(executable.program):
            self._unchecked = unchecked()
        self._only_unchecked = self._unchecked is not None and any(
            i.name in CALLBACK_PRIMITIVES for i in self.program.top.walk()
        )

    def run(self, args: Sequence[np.ndarray]) -> list[np.ndarray]:
        self._started()
        if self._only_unchecked:
            self._checks.skipped(
                self.program.name,
                "it writes to scalar prefetch, which interpret=True takes back after each cell, "
                "and its function calls back to the host, so it can't be run again",
            )
        else:
            checked = self._checked(args)
        return checked if self._unchecked is None else self._unchecked.run(args)

    def _checked(self, args: Sequence[np.ndarray]) -> list[np.ndarray]:
        run = CheckedRun(self._report)
        with run.active():
            try:
                results = self._run_once.run(args)
            except Deadlock as deadlock:
                if not deadlock.alone:  # else the checks have said so
                    self._report(_finding(deadlock, run))
                raise
        if run.candidates:
            self._judge(run.candidates, args)
        return results

    def _report(self, finding: Finding) -> None:
        if finding.kind in self._checks.kinds:
            self._found(finding)

    def _judge(self, candidates: dict[int, Finding], args: Sequence[np.ndarray]) -> None:
        """Reports the candidates that change a result."""
        if all(self._known.get(number) for number in candidates):
            return
        if self._calls_back():
            for finding in candidates.values():
                self._checks.skipped(
                    finding.kernel,
                    f"whether undefined elements of {finding.ref} matter: its function calls back "
                    "to the host, so it can't be run again",
                )
            return
        if self._disturbed is None:
            self._disturbed = self._make()
        before = self._returned((), 0, args)
        if before is None:
            for finding in candidates.values():
                self._checks.skipped(
                    finding.kernel,
                    f"whether undefined elements of {finding.ref} matter: its function fails when "
                    "it is run again",
                )
            return
        if not self._matters(None, before, args):
            return
        guilty = [
            number
            for number in list(candidates)[:_MOST]
            if len(candidates) == 1 or self._matters({number}, before, args)
        ]
        for number in guilty or list(candidates)[:1]:
            self._known[number] = True
            self._report(candidates[number])

    def _calls_back(self) -> bool:
        """Whether the program needs what the host returns. A second run doesn't print."""
        return any(i.name in CALLBACK_PRIMITIVES and i.outs for i in self.program.top.walk())

    def _matters(
        self,
        sites: Collection[int] | None,
        before: list[bytes] | None,
        args: Sequence[np.ndarray],
    ) -> bool:
        """Whether other elements in place of the undefined ones change a result."""
        return any(self._returned(sites, garbage, args) != before for garbage in _GARBAGE)

    def _returned(
        self, sites: Collection[int] | None, garbage: int, args: Sequence[np.ndarray]
    ) -> list[bytes] | None:
        """The function's results. None if it fails."""
        assert self._disturbed is not None
        try:
            with CheckedRun(lambda finding: None, sites, garbage).active():
                return [np.asarray(result).tobytes() for result in self._disturbed.run(args)]
        except Exception:
            return None


def _does_what_a_tpu_does(program: Program) -> bool:
    return any(
        i.name == "check" and i.operation.params["checks"] == AS_ON_A_TPU
        for i in program.top.walk()
    )


def _finding(deadlock: Deadlock, run: CheckedRun) -> Finding:
    """The finding of programs that wait for one another."""
    kernel, source = run.kernel
    where = (source or "").partition(" ")[0] or None
    accesses = tuple(
        Access("waits for", f" {wait.what}", (wait.where or "").partition(" ")[0] or None,
               wait.program)
        for wait in deadlock.waits
    )  # fmt: skip
    count = len(accesses)
    message = f"{count} program{'s wait' if count > 1 else ' waits'}, and none can go on"
    advice = "Give each wait a signal, or a copy, that arrives"
    return Finding("sync", "deadlock", kernel, message, advice, accesses, None, where)
