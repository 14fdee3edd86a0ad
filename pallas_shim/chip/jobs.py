"""The compiler's jobs and answers. They are plain data: pickled, and kept on disk."""

from __future__ import annotations

import dataclasses
from typing import Any

ACCEPTED, REFUSED, NO_VERDICT = "accepted", "refused", "no verdict"

# The stages at which a kernel is refused.
LOWERING, MOSAIC, LLO, MEMORY = "JAX's lowering", "Mosaic", "LLO", "memory"


@dataclasses.dataclass(frozen=True)
class Job:
    """A kernel to compile: its exported module, JAX's name of the topology, the named axes of the
    devices that run it, and whether its schedule is wanted too.

    ``hollow``: if its blocks and scratch seem too large, the same kernel with a body that does
    nothing. What doesn't fit then fits with no body, and is refused in a second; large blocks
    unroll to code that the compiler takes minutes for. ``is_function``: the module is that of a
    function with any number of kernels, which may overwrite the ``donated`` arguments.
    """

    module: bytes
    topology: str
    axes: tuple[tuple[Any, int], ...] = ()
    schedule: bool = False
    hollow: bytes | None = None
    is_function: bool = False
    donated: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Allocation:
    """Memory that the compiler gave a kernel. ``space``: vmem, smem or sflag (semaphores)."""

    space: str
    size: int
    shape: str
    what: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """The compiler's answer.

    ``message``: why it refused, or why there is no verdict. ``allocations``, ``bundles``,
    ``spills`` (stores of vector registers, as instructions in the code) and ``warnings`` come from
    the compiler's dump; None: it can't be read, and ``unread`` says why. ``seconds``: CPU time.
    ``schedule``: a kernel's `dumps.Files`, or a function's `dumps.Compiled`.
    """

    outcome: str
    stage: str | None = None
    message: str | None = None
    code_size: int | None = None
    allocations: tuple[Allocation, ...] | None = None
    bundles: int | None = None
    spills: int | None = None
    warnings: tuple[str, ...] = ()
    unread: str | None = None
    libtpu: str | None = None
    seconds: float = 0.0
    schedule: Any = None


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of one job: seconds of CPU (with the compiler's dumps, and again without), seconds
    on the clock without using any, bytes of memory. How long it takes is up to what else the
    machine does."""

    cpu: float = 120.0
    idle: float = 120.0
    memory: int = 6 << 30
