"""Runs a function under the checker, within a time limit."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from pallas_shim.evaluator import compiler
from pallas_shim.evaluator.checks.lowering import Checks
from pallas_shim.evaluator.findings import KINDS, Finding

# A mutant may loop for ever without waiting for anything.
SECONDS = 20


@dataclasses.dataclass
class Outcome:
    """What the checker said of one run: its findings, the error with which it ended, and what it
    didn't check."""

    findings: list[Finding] = dataclasses.field(default_factory=list)
    error: str = ""
    not_checked: list[str] = dataclasses.field(default_factory=list)

    @property
    def kinds(self) -> set[str]:
        """Of what was found. A deadlock is an error whether kernels are checked or not."""
        deadlock = {"sync"} if self.error.startswith("Deadlock") else set()
        return {finding.kind for finding in self.findings} | deadlock

    def __str__(self) -> str:
        rules = ", ".join(f"{f.kind}/{f.rule} of {f.ref}" for f in self.findings)
        return "; ".join(filter(None, (rules, self.error, *self.not_checked))) or "nothing"


def check(jaxpr: Any, args: list[Any]) -> Outcome:
    """Compiles and runs a closed jaxpr with all checks."""
    outcome = Outcome()
    places = set()

    def found(finding: Finding) -> None:
        if finding.place() not in places:
            places.add(finding.place())
            outcome.findings.append(finding)

    def skipped(kernel: str, reason: str) -> None:
        if reason not in outcome.not_checked:
            outcome.not_checked.append(reason)

    options = compiler.Options(checks=Checks(frozenset(KINDS), skipped), found=found)
    try:
        with _limited(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = compiler.compile(jaxpr, name="mutant", options=options)
            run(*map(np.asarray, args))
    except Exception as error:
        outcome.error = f"{type(error).__name__}: {str(error)[:200]}"
    return outcome


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
