"""Findings: what a checked run says of a kernel that a device would run wrongly."""

from __future__ import annotations

import dataclasses
from typing import Any

KINDS = ("bounds", "uninitialized", "races", "sync", "blocks")


@dataclasses.dataclass(frozen=True)
class Access:
    """One access, wait or signal that a finding is about.

    ``what`` is a verb phrase ("reads", "writes", "copies from", "waits for"). ``indices`` says
    which elements, as text such as ``[0:8, 128]``, or is "" where there are none. ``where`` is the
    user's ``file:line``, or None if it isn't known. ``program`` names the program ("device 1, core
    0"), or is None if there is only one. ``cell`` is the grid cell, or None outside of a grid.
    """

    what: str
    indices: str = ""
    where: str | None = None
    program: str | None = None
    cell: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fault of a kernel.

    ``kind`` is one of `KINDS`; ``rule`` is the short name of the fault within it, such as
    ``read-before-write``. ``kernel`` is the kernel's name, ``source`` where it is defined
    (``file:line`` or None). ``ref`` is the user's name of the ref, or None. ``message`` is one
    sentence about what happened, ``advice`` one about what to do. The first access is the one at
    which the fault showed.
    """

    kind: str
    rule: str
    kernel: str
    message: str
    advice: str
    accesses: tuple[Access, ...] = ()
    ref: str | None = None
    source: str | None = None

    def place(self) -> tuple[Any, ...]:
        """What two findings have in common that are one to the user: the same fault of the same ref
        at the same lines."""
        lines = tuple((access.what, access.where) for access in self.accesses)
        return (self.kind, self.rule, self.kernel, self.source, self.ref, lines)
