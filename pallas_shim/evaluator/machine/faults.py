"""Errors and warnings about programs that certainly communicate wrongly."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numpy as np

from pallas_shim.evaluator.machine.scheduler import Deadlock, Wait


class SemaphoreWarning(UserWarning):
    """A kernel left a semaphore at a count other than zero."""


def own_deadlock(
    program: str, semaphore: str, has: int, needs: int, source: str | None, alone: bool = False
) -> Deadlock:
    """The error for a wait that no other program can end. ``alone``: see `Deadlock`."""
    where = f" ({source})" if source else ""
    return Deadlock(
        f"deadlock: {program} waits for {semaphore}, which has {has} and needs {needs}{where}. "
        "No other program signals it: signal it, or start the copy that does, before the wait",
        [Wait(program, f"{semaphore}, which has {has} and needs {needs}", source)],
        alone,
    )


class BlockWarning(UserWarning):
    """A block lies wholly outside its array."""


_warned: set[tuple[Any, ...]] = set()
_warning = threading.Lock()


def warn_once(
    key: tuple[Any, ...], message: str, category: type[Warning], where: str | None
) -> None:
    """Warns once for each ``key``, at a file and line if these are known."""
    with _warning:
        if key in _warned:
            return
        _warned.add(key)
    file, _, line = (where or "").partition(" ")[0].rpartition(":")
    if file and line.isdigit():
        warnings.warn_explicit(message, category, file, int(line))
    else:
        warnings.warn(message, category, stacklevel=2)


def warn_of_leftover(
    kernel: str, semaphore: str, program: str, counts: np.ndarray, where: str
) -> None:
    """Warns that a program leaves a semaphore at a count other than zero, once per semaphore of a
    kernel. ``where`` is the file and line of the kernel, or "" if unknown."""
    left = counts[np.nonzero(counts)] if counts.ndim else counts
    text = ", ".join(map(str, np.unique(left)))
    message = (
        f"the Pallas kernel {kernel} ends with {semaphore} at {text} on {program}; on a TPU that "
        "breaks the next kernel. Each signal and each copy needs a wait of the same count"
    )
    warn_once((kernel, semaphore, where), message, SemaphoreWarning, where)
