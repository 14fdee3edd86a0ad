"""Native code for programs that have earned it.

A program starts in NumPy. When its runs have taken several times what compiling it takes, one
thread in the background makes native code of it. Its next runs are done by both, and compared bit
by bit. From then on it is native, if that is faster. A user's call never waits for this.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from pallas_shim import settings
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.floating import as_xla
from pallas_shim.reports.uses import Use

log = logging.getLogger("pallas_shim")

Run = Callable[[Sequence[np.ndarray]], list[Any]]

# Seconds to compile a program: for any, and for each instruction.
_PROGRAM, _INSTRUCTION = 0.05, 0.001
# How many times as long a program has to have run.
_EARNS = 3
# In so many runs both are compared and timed.
_COMPARED = 3
# Seconds in NumPy: calling a program of less costs most, and jit can call native code by itself.
_TINY = 20e-6
# Of the thread that compiles. On a busy machine, a thread of less priority would rarely run, and
# sometimes be away with the interpreter's lock.
_NICENESS = 5
_EXTRA = "pip install 'pallas_shim[native]'"


class NativeError(RuntimeError):
    """Under PALLAS_NUMPY_NATIVE=force: native code gave other bits than NumPy, or llvmlite, which
    makes it, isn't installed."""


def way(executable: Executable, use: Use) -> Way | None:
    """The way of a program to native code. None: it stays in NumPy."""
    asked = settings.current()
    # A subclass also does what its program doesn't say: it checks, repeats, or records.
    if not asked.native or asked.verify or type(executable) is not Executable:
        return None
    if asked.native_force and not _is_installed():
        raise NativeError(f"PALLAS_NUMPY_NATIVE=force needs llvmlite: {_EXTRA}")
    if asked.native_force or _is_installed() or asked.report is not None:
        return Way(executable, use, asked.native_force)
    return None


def runner(executable: Executable, way: Way | None) -> Run:
    """The function that runs a program: in NumPy, and natively when it has earned that."""
    return executable.run if way is None else way.call


class Way:
    """The way of one program from NumPy to native code. ``_step`` is where it is: one of the
    methods below, not bound, since a cycle of references would keep a dead function's arrays.

    ``forced``: there is native code from the first call on, if the program can have it, and each
    run is done in NumPy too, and compared. ``seconds``: what a native run takes, when all are.
    ``entry``: see `entering`.
    """

    def __init__(self, executable: Executable, use: Use, forced: bool):
        self._step: Callable[[Way, Sequence[np.ndarray]], list[Any]]
        self._step = Way._forced if forced else Way._counted
        self._executable, self.use = executable, use
        self._left: float | None = None  # seconds until it has earned its code
        self.code: Any = None
        self._compared: list[tuple[float, float]] = []  # the seconds of NumPy and of native code
        self.seconds: float | None = None
        self.entry: Any = None

    def call(self, values: Sequence[np.ndarray]) -> list[Any]:
        return self._step(self, values)

    def _in_numpy(self, values: Sequence[np.ndarray]) -> list[Any]:
        return self._executable.run(values)

    def _counted(self, values: Sequence[np.ndarray]) -> list[Any]:
        start = time.perf_counter()
        results = self._executable.run(values)
        left = self._left
        if left is None:
            count = sum(1 for _ in self._executable.program.top.walk())
            left = _EARNS * (_PROGRAM + count * _INSTRUCTION)
        self._left = left = left - (time.perf_counter() - start)
        if left < 0:
            self._step = Way._in_numpy
            later(self._compile_and_compare)
        return results

    def _compile(self) -> None:
        """Makes the code. Without it, the report says why."""
        # Slow imports, so not before a program has earned them.
        from pallas_shim.evaluator.codegen import native

        start = time.perf_counter()
        try:
            if not _is_installed():
                native.source(self._executable.program)
                self.use.native = f"would be native: {_EXTRA}"
                return
            self.code = native.compiled(self._executable.program)
            self.use.native = f"compiled in {time.perf_counter() - start:.3f} s"
        except native.NotNative as error:
            self.use.native = f"not native: {error}"

    def _compile_and_compare(self) -> None:
        try:
            self._compile()
        except Exception as error:
            # The program runs in NumPy as before, but a bug must be visible.
            self.is_wrong(f"{type(error).__name__}: {error}")
            return
        if self.code is not None:
            self._step = Way._both

    def is_wrong(self, what: str) -> None:
        """Stays in NumPy, because of a bug."""
        self._step, self.seconds = Way._in_numpy, None
        self.use.native = f"not native, which is a bug in pallas_shim: {what}"
        log.warning("%s: %s", self.use.function, self.use.native)

    def _both(self, values: Sequence[np.ndarray]) -> list[Any]:
        start = time.perf_counter()
        results = self._executable.run(values)
        middle = time.perf_counter()
        others = self._native(values)
        end = time.perf_counter()
        if not same(results, others):
            self.is_wrong("it gave other bits")
            return results
        self._compared.append((middle - start, end - middle))
        if len(self._compared) >= _COMPARED:
            in_numpy, natively = map(min, zip(*self._compared, strict=True))
            if natively < in_numpy or in_numpy < _TINY:
                gained = f"{in_numpy / natively:.3g} times as fast as NumPy"
                self.use.native = f"native, {gained}, {self.use.native}"
                self.seconds, self._step = natively, Way._native
            else:
                self.use.native = f"not native, since it is no faster, {self.use.native}"
                self._step = Way._in_numpy
        return results

    def _native(self, values: Sequence[np.ndarray]) -> list[Any]:
        return as_xla(self.code.run, values)

    def _forced(self, values: Sequence[np.ndarray]) -> list[Any]:
        if self.code is None:
            self._compile()
            if self.code is None:
                self._step = Way._in_numpy
                return self._in_numpy(values)
            self.use.native = f"native, {self.use.native}"
        results, others = self._in_numpy(values), self._native(values)
        if not same(results, others):
            raise NativeError(f"native code of {self.use.function} gave other bits than NumPy")
        return others


class Meter:
    """Tells what XLA has called since it was last asked: the calls, and their seconds."""

    def __init__(self, code: Any):
        self._code, self._told = code, code.counts()

    def __call__(self) -> tuple[int, float]:
        calls, seconds = self._code.counts()
        before, self._told = self._told, (calls, seconds)
        return calls - before[0], seconds - before[1]


def same(results: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether all bits are equal, but those of NaNs."""
    return all(map(_same_array, results, others))


def _same_array(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    if a.tobytes() == b.tobytes():
        return True
    if a.dtype != b.dtype or a.shape != b.shape or a.dtype.kind in "iub":
        return False
    bits = f"V{a.dtype.itemsize}"
    differ = np.ascontiguousarray(a).view(bits) != np.ascontiguousarray(b).view(bits)
    return bool((a != a)[differ].all() and (b != b)[differ].all())


@functools.cache
def _is_installed() -> bool:
    return importlib.util.find_spec("llvmlite") is not None


# -- in the background ----------------------------------------------------------------------------

_pool: ThreadPoolExecutor | None = None
_is_compiling = False
_is_usable = True  # not in a process forked while LLVM was at work


def later(work: Callable[[], None]) -> None:
    """Runs this when nothing else is being compiled, on a thread of low priority.

    When Python ends, it waits for the work under way, since LLVM can't be stopped, and drops what
    hasn't begun.
    """
    global _pool
    if not _is_usable:
        return
    if _pool is None:
        _pool = ThreadPoolExecutor(1, "pallas_shim_native", initializer=_with_low_priority)
    with contextlib.suppress(RuntimeError):  # Python is ending
        _pool.submit(_work, work)


def _work(work: Callable[[], None]) -> None:
    global _is_compiling
    if not threading.main_thread().is_alive():
        return
    _is_compiling = True
    try:
        work()
    finally:
        _is_compiling = False


def _with_low_priority() -> None:
    if hasattr(os, "setpriority") and os.uname().sysname == "Linux":  # where threads have their own
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _start_over() -> None:
    """Runs in a forked process, which has no such thread."""
    global _pool, _is_usable, _is_compiling
    _is_usable = _is_usable and not _is_compiling
    _pool, _is_compiling = None, False


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_over)
