"""Notes the kernels that a process reaches, and the functions that call them, each once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from pallas_shim.jax_compat import contents, export_tpu

T = TypeVar("T")


class Noted(Generic[T]):
    """What was noted and not taken yet. A forked process begins with nothing.

    ``key``: gives equal keys for equal things.
    """

    def __init__(self, key: Callable[[T], Any]) -> None:
        self._key = key
        self._lock = threading.Lock()
        self._waiting: list[T] = []
        self._known: set[Any] = set()

    def note(self, found: Iterable[T]) -> None:
        """Notes things, unless equal ones were noted before."""
        for each in found:
            at = self._key(each)
            with self._lock:
                if at not in self._known:
                    self._known.add(at)
                    self._waiting.append(each)

    def take(self) -> list[T]:
        """Returns the things noted since the last time, in the order in which they came."""
        with self._lock:
            taken, self._waiting = self._waiting, []
        return taken


def key(site: export_tpu.Site) -> Any:
    """Equal for kernels that are the same to a compiler. One that can't be read is like no other,
    but itself."""
    try:
        digest = contents.Contents(export_tpu.alone(site)).digest
    except contents.Unreadable:
        digest = site.equation.params.get("jaxpr", site.equation)
    except RecursionError:  # deeply nested
        digest = site.equation
    return digest, site.axes, site.x64


def function_key(function: export_tpu.JittedFunction) -> Any:
    """Equal for functions that are the same to a compiler, or the same jaxpr if they can't be
    read."""
    try:
        digest = contents.Contents(function.jaxpr).digest
    except (contents.Unreadable, RecursionError):
        digest = function.jaxpr
    return digest, *function[2:]


def reached() -> Noted[export_tpu.Site]:
    """For kernels: those are equal that are the same to a compiler, with equal operands' types."""
    return Noted(key)


REACHED = reached()
FUNCTIONS = Noted(function_key)


def _start_over() -> None:
    """Runs in a forked process. Its parent reports the kernels that it has reached."""
    global REACHED, FUNCTIONS
    REACHED, FUNCTIONS = reached(), Noted(function_key)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_over)
