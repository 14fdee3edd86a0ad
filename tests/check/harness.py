"""Runs functions with their kernels checked, and gives what was found."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import jax
import numpy as np

from pallas_shim.evaluator import compiler
from pallas_shim.evaluator.checks.lowering import Checks
from pallas_shim.evaluator.findings import KINDS, Finding


class Checked:
    """A checked run: its results, findings, and what was not checked."""

    def __init__(
        self, f: Callable[..., Any], *args: Any, kinds: Collection[str] = KINDS, tpu_cores: int = 1
    ) -> None:
        self.findings: list[Finding] = []
        self.not_checked: list[tuple[str, str]] = []
        checks = Checks(frozenset(kinds), lambda *note: self.not_checked.append(note))
        options = compiler.Options(checks=checks, found=self._add, tpu_cores=tpu_cores)
        executable = compiler.compile(jax.make_jaxpr(f)(*args), name="checked", options=options)
        self.program = executable.program
        self.results = executable(*[np.asarray(x) for x in jax.tree.leaves(args)])

    def _add(self, finding: Finding) -> None:
        if finding.place() not in {other.place() for other in self.findings}:
            self.findings.append(finding)

    @property
    def rules(self) -> list[str]:
        return [f"{finding.kind}/{finding.rule}" for finding in self.findings]


def check(
    f: Callable[..., Any], *args: Any, kinds: Collection[str] = KINDS, tpu_cores: int = 1
) -> Checked:
    return Checked(f, *args, kinds=kinds, tpu_cores=tpu_cores)
