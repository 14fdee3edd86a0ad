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
_EXTRA = "pip install 'pallas_shim[native]'"


class NativeError(RuntimeError):
    """Under PALLAS_NUMPY_NATIVE=force: native code gave other bits than NumPy, or llvmlite, which
    makes it, isn't installed."""


def runner(executable: Executable, use: Use) -> Run:
    """The function that runs a program: in NumPy, and natively when it has earned that."""
    asked = settings.current()
    # A subclass also does what its program doesn't say: it checks, repeats, or records.
    if not asked.native or asked.verify or type(executable) is not Executable:
        return executable.run
    if asked.native_force:
        if not _is_installed():
            raise NativeError(f"PALLAS_NUMPY_NATIVE=force needs llvmlite: {_EXTRA}")
        return _Forced(executable, use).call
    return _Promotion(executable, use).call


class _Promotion:
    """The way of one program from NumPy to native code. ``_way`` is where it is: one of the methods
    below, not bound, since a cycle of references would keep a dead function's arrays."""

    def __init__(self, executable: Executable, use: Use):
        self._way: Callable[[_Promotion, Sequence[np.ndarray]], list[Any]] = _Promotion._counted
        self._executable, self._use = executable, use
        self._left = _EARNS * _PROGRAM  # seconds until it has earned its code
        self._is_sized = False  # whether that includes the instructions
        self._code: Any = None
        self._compared: list[tuple[float, float]] = []  # the seconds of NumPy and of native code

    def call(self, values: Sequence[np.ndarray]) -> list[Any]:
        return self._way(self, values)

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
            self._way = _Promotion._in_numpy
            if _is_installed() or settings.current().report is not None:
                background.later(self._compile)

    def _compile(self) -> None:
        # Slow imports, so not before a program has earned them.
        from pallas_shim.evaluator.codegen import native

        start = time.perf_counter()
        try:
            if not _is_installed():
                native.source(self._executable.program)
                self._use.native = f"would be native: {_EXTRA}"
                return
            self._code = native.compiled(self._executable.program)
        except native.NotNative as error:
            self._use.native = f"not native: {error}"
            return
        except Exception as error:
            # The program runs in NumPy as before, but a bug must be visible.
            kind = type(error).__name__
            self._use.native = f"not native, which is a bug in pallas_shim: {kind}: {error}"
            log.warning("%s: %s", self._use.function, self._use.native)
            return
        self._use.native = f"compiled in {time.perf_counter() - start:.3f} s"
        self._way = _Promotion._both

    def _both(self, values: Sequence[np.ndarray]) -> list[Any]:
        start = time.perf_counter()
        results = self._executable.run(values)
        middle = time.perf_counter()
        others = self._native(values)
        end = time.perf_counter()
        if not same(results, others):
            self._way = _Promotion._in_numpy
            self._use.native = "not native, which is a bug in pallas_shim: it gave other bits"
            log.warning("%s: %s", self._use.function, self._use.native)
            return results
        self._compared.append((middle - start, end - middle))
        if len(self._compared) >= _COMPARED:
            in_numpy, natively = map(min, zip(*self._compared, strict=True))
            if natively < in_numpy:
                self._use.native = f"native, {in_numpy / natively:.3g} times as fast as NumPy"
                self._way = _Promotion._native
            else:
                self._use.native = "not native, since it is no faster"
                self._way = _Promotion._in_numpy
        return results

    def _native(self, values: Sequence[np.ndarray]) -> list[Any]:
        return as_xla(self._code.run, values)


class _Forced:
    """Native code from the first call on, if the program can have it. Each run is done in NumPy
    too, and compared."""

    def __init__(self, executable: Executable, use: Use):
        self._executable, self._use = executable, use
        self._code: Any = None

    def call(self, values: Sequence[np.ndarray]) -> list[Any]:
        from pallas_shim.evaluator.codegen import native

        if self._code is None:
            try:
                self._code = native.compiled(self._executable.program)
                self._use.native = "native"
            except native.NotNative as error:
                self._code, self._use.native = False, f"not native: {error}"
        results = self._executable.run(values)
        if self._code:
            others = as_xla(self._code.run, values)
            if not same(results, others):
                raise NativeError(f"native code of {self._use.function} gave other bits than NumPy")
            return others
        return results


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
