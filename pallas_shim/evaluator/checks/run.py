"""One run of a checked program: where it stands, and what it has found."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import Any

from pallas_shim import jax_compat
from pallas_shim.evaluator.checks.shadow import DEFINED, Shadow
from pallas_shim.evaluator.findings import Access, Finding


@dataclasses.dataclass(frozen=True, eq=False)
class AccessSite:
    """An access in the user's code.

    ``number`` is the same in each program that is lowered from one jaxpr. ``ref`` is the user's
    name of the ref. ``what``: as in `Access`. ``source`` is where the user's code asked for it.
    """

    number: int
    ref: str | None
    what: str
    source: Any

    def access(
        self, indices: str = "", cell: tuple[int, ...] | None = None, program: str | None = None
    ) -> Access:
        return Access(self.what, indices, line(self.source), program, cell)


def line(source: Any) -> str | None:
    """The user's ``file:line``. None if it isn't known."""
    where = jax_compat.user_source(source)
    return None if where is None else where.partition(" ")[0]


class CheckedRun:
    """What one run finds.

    ``report`` gets each finding at once, except `candidates`: reads of undefined elements, by the
    numbers of their sites, which are faults only if they change what the function returns.
    ``disturbed``: the sites at which undefined elements are replaced by ``garbage``; None for all.
    """

    def __init__(
        self,
        report: Callable[[Finding], None],
        disturbed: Collection[int] | None = (),
        garbage: int = 0,
    ) -> None:
        self.report = report
        self.disturbed = disturbed
        self.garbage = garbage
        self.candidates: dict[int, Finding] = {}
        self._shadows: dict[tuple[Any, int], Shadow] = {}
        self._early: set[tuple[Any, int]] = set()
        self.kernel: tuple[str, str | None] = "", None  # the last one that started

    def disturbs(self, site: AccessSite) -> bool:
        return self.disturbed is None or site.number in self.disturbed

    def share(self, key: Any, program: int, shadow: Shadow) -> Shadow:
        """Keeps the shadow of a program's memory, for other programs that write to it."""
        if (key, program) in self._early:  # they have, before the program came here
            shadow.reset(DEFINED)
        self._shadows[key, program] = shadow
        return shadow

    def shadow_of(self, key: Any, program: int, shape: tuple[int, ...]) -> Shadow:
        """The shadow of another program's memory."""
        found = self._shadows.get((key, program))
        if found is None:
            self._early.add((key, program))
            found = Shadow(shape, DEFINED)
        return found

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """A context in which programs report to this run."""
        token = _running.set(self)
        try:
            yield
        finally:
            _running.reset(token)


def current() -> CheckedRun:
    """The run that programs report to."""
    return _running.get()


_running: contextvars.ContextVar[CheckedRun] = contextvars.ContextVar("pallas_shim_checked_run")


class Activation:
    """One execution of a kernel. ``cell`` is the grid cell that runs, None before the first.
    ``turn``: the number of its place among those that may run at the same time. ``program``: the
    name of the device or core, None if there is only one."""

    __slots__ = ("run", "kernel", "source", "program", "cell", "turn")

    def __init__(self, kernel: str, source: str | None, program: str | None = None) -> None:
        self.run = _running.get()
        self.run.kernel = kernel, source
        self.kernel = kernel
        self.source = source
        self.program = program
        self.cell: tuple[int, ...] | None = None
        self.turn = 0

    def finding(
        self, kind: str, rule: str, message: str, advice: str, site: AccessSite, *accesses: Access
    ) -> Finding:
        """A finding at a site. ``message`` is a sentence whose subject, the kernel, is missing."""
        message = f"the kernel {self.kernel} {message}"
        # Where the user's line isn't known, the kernel's own is near.
        accesses = tuple(
            dataclasses.replace(access, where=access.where or self.source) for access in accesses
        )
        return Finding(
            kind, rule, self.kernel, message, advice, accesses, site.ref, self.source
        )

    def found(
        self,
        kind: str,
        rule: str,
        message: str,
        advice: str,
        site: AccessSite,
        indices: str = "",
        others: tuple[Access, ...] = (),
    ) -> None:
        """Reports a fault at an access."""
        access = self.access(site, indices)
        self.found_at(kind, rule, message, advice, site, access, *others)

    def access(self, site: AccessSite, indices: str = "") -> Access:
        """An access of this program, now."""
        return site.access(indices, self.cell, self.program)

    def found_at(
        self, kind: str, rule: str, message: str, advice: str, site: AccessSite, *accesses: Access
    ) -> None:
        """Reports a fault of these accesses."""
        self.run.report(self.finding(kind, rule, message, advice, site, *accesses))
