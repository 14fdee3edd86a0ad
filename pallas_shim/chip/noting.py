"""Notes the kernels that a process reaches, each once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import Any

from pallas_shim.jax_compat import contents, export_tpu


class Reached:
    """The kernels that were reached and not taken yet. A forked process begins with none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[export_tpu.Site] = []
        self._known: set[Any] = set()

    def note(self, sites: Iterable[export_tpu.Site]) -> None:
        """Notes kernels, unless equal ones with operands of the same types were noted before."""
        for site in sites:
            at = key(site)
            with self._lock:
                if at not in self._known:
                    self._known.add(at)
                    self._waiting.append(site)

    def take(self) -> list[export_tpu.Site]:
        """Returns the kernels noted since the last time, in the order in which they came."""
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


REACHED = Reached()


def _start_over() -> None:
    """Runs in a forked process. Its parent reports the kernels that it has reached."""
    global REACHED
    REACHED = Reached()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_over)
