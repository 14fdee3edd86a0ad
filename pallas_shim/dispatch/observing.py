"""Who looks on: one observer in a process, which is told of each program and each of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pallas_shim.dispatch.function import Function
from pallas_shim.evaluator.execute import Executable


class Observer(Protocol):
    """What `bisect` is, which compares the runs."""

    def planned(self, executable: Executable, function: Function) -> None: ...

    def ran(
        self,
        executable: Executable,
        values: Sequence[np.ndarray],
        results: Sequence[np.ndarray] | Exception,
        inside_xla: bool,
    ) -> None:
        """``inside_xla``: XLA's thread waits, and JAX must not be called."""


current: Observer | None = None


def observe(observer: Observer | None) -> None:
    """From now on this observer is told, or nobody."""
    global current
    current = observer
