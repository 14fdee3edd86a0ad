"""The observer. A process has at most one. It sees each program and each of its runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from pallas_shim.dispatch.function import Function
from pallas_shim.evaluator.execute import Executable


class Observer(Protocol):
    """The interface of an observer of runs: `bisect`, `view` and `debug` have one each."""

    def planned(self, executable: Executable, function: Function) -> Executable:
        """Returns what is to run in its place, which has the same results. Usually itself."""

    def ran(
        self,
        executable: Executable,
        values: Sequence[np.ndarray],
        results: Sequence[np.ndarray] | Exception,
        inside_xla: bool,
    ) -> None:
        """``inside_xla``: a thread of XLA waits for this call, so JAX must not be called."""


current: Observer | None = None
listeners: list[Callable[[], None]] = []  # hear when there is another one


def observe(observer: Observer | None) -> None:
    """Sets the observer, or removes it."""
    global current
    current = observer
    for listener in listeners:
        listener()
