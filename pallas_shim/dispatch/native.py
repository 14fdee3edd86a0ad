"""Native code for programs that have earned it.

A program starts in NumPy. When its runs have taken several times what compiling it takes, one
thread in the background makes native code of it. Its next runs are done by both, and compared bit
by bit. From then on it is native, if that is faster. A user's call never waits for this.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim import settings
from pallas_shim.dispatch import background
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
    return Way(executable, use, asked.native_force)


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
        self._left = _EARNS * _PROGRAM  # seconds until it has earned its code
        self._is_sized = False  # whether that includes the instructions
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
        self._left -= time.perf_counter() - start
        if self._left < 0:
            self._earned()
        return results

    def _earned(self) -> None:
        # Counting instructions and looking for a package take time, so the first call doesn't.
        if not self._is_sized:
            count = sum(1 for _ in self._executable.program.top.walk())
            self._left += _EARNS * count * _INSTRUCTION
            self._is_sized = True
        if self._left < 0:
            self._step = Way._in_numpy
            if _is_installed() or settings.current().report is not None:
                background.later(self._compile_and_compare)

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
            if self.code.called:
                rest = ", ".join(f"{count} {name}" for name, count in self.code.called.items())
                self.use.native += f", NumPy does the rest: {rest}"
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
    a, b = np.atleast_1d(a), np.atleast_1d(b)
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
