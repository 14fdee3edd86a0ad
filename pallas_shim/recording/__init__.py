"""Records what kernels do, for `view`.

The recorder is an observer of `dispatch`. The first run of each function goes through a watched
program, which isn't optimised; later runs go through the optimised one. If a run has more cells
than are shown, it is cut short and repeated by the optimised program.
"""

from __future__ import annotations

import contextlib
import datetime
import platform
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

import pallas_shim
from pallas_shim import dispatch, settings
from pallas_shim.evaluator import compiler
from pallas_shim.evaluator.execute import Executable
from pallas_shim.jax_compat.callbacks import CALLBACK_PRIMITIVES
from pallas_shim.recording.function import Enough, FunctionWatch
from pallas_shim.view import data

__all__ = ["Recorder", "record"]

# What is recorded of a script.
_MOST_CELLS = 1 << 15
_MOST_KERNELS = 40


@contextlib.contextmanager
def record(title: str = "a recording") -> Iterator[data.Trace]:
    """Records the kernels that run inside the with-statement, and fills the trace when it ends.

    The shim has to be on. JAX forgets what it has compiled, so that kernels that ran before are
    seen, too.
    """
    trace = data.Trace(title, "", {}, [], [])
    recorder = Recorder()
    jax.clear_caches()
    dispatch.observe(recorder)
    try:
        yield trace
    finally:
        dispatch.observe(None)
        recorder.is_open = False
        recorder.fill(trace)


class Recorder:
    """Records the first run of each program that `dispatch` plans. See `dispatch.Observer`."""

    def __init__(self) -> None:
        self._functions: list[FunctionWatch] = []
        self._notes: list[str] = []
        self.cells_left = _MOST_CELLS
        self.is_open = True
        self._lock = threading.Lock()

    def planned(self, executable: Executable, function: dispatch.Function) -> Executable:
        if sum(len(f.kernels) for f in self._functions) >= _MOST_KERNELS:
            self._note(f"kernels after the first {_MOST_KERNELS} are left out")
            return executable
        watch = FunctionWatch(function, self)
        try:
            watched = compiler.compile_watched(
                function.jaxpr, watch, name=function.name, axes=function.axes,
                on_mesh=function.on is not None, tpu_cores=settings.current().tpu_cores,
            )  # fmt: skip
        except Exception as error:  # a view must not cost the user the call
            self._note(f"{function.name} is left out: {type(error).__name__}: {error}")
            return executable
        self._functions.append(watch)
        return _Recorded(executable, watched, watch)

    def ran(self, *_: Any, **__: Any) -> None:
        """What a run gives isn't looked at here."""

    def _note(self, text: str) -> None:
        with self._lock:
            if text not in self._notes:
                self._notes.append(text)

    def fill(self, trace: data.Trace) -> None:
        """Puts what was recorded into a trace."""
        trace.made = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        trace.versions = {
            "pallas_shim": pallas_shim.__version__,
            "JAX": jax.__version__,
            "NumPy": np.__version__,
            "Python": platform.python_version(),
        }
        trace.kernels += [kernel for f in self._functions for kernel in f.result()]
        trace.notes += self._notes
        for function in self._functions:
            seen = {kernel.call.name for kernel in function.kernels}
            trace.notes += [
                f"the kernel {info.name} of {function.name} is left out: "
                + ("it never ran" if not function.calls else "its cores are of several kinds")
                for info in function.infos if info.name not in seen
            ]  # fmt: skip


class _Recorded(Executable):
    """An executable whose first call is recorded."""

    def __init__(self, plain: Executable, watched: Executable, watch: FunctionWatch) -> None:
        self.program = plain.program
        self._plain, self._watched, self._watch = plain, watched, watch
        self._first = threading.Lock()
        called = {i.name for i in plain.program.top.walk()} & set(CALLBACK_PRIMITIVES)
        watch.may_stop = not called  # a second run would show its callbacks to the user again

    def run(self, args: Sequence[np.ndarray]) -> list[np.ndarray]:
        if not self._watch.recorder.is_open:
            return self._plain.run(args)
        self._watch.calls += 1
        if not self._first.acquire(blocking=False):
            return self._plain.run(args)
        try:
            return self._watched.run(args)
        except Enough:
            return self._plain.run(args)
        finally:
            self._watch.end()
