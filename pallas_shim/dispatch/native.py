"""Native code for programs that have earned it.

A program starts in NumPy. When its runs have taken as long as that takes, one thread in the
background looks for code that another process has left on disk. When they have taken several times
what compiling it takes, the thread makes native code of it. The program's next runs are done by
both, and compared bit by bit. From then on it is native, if that is faster. A user's call never
waits for this.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim import settings
from pallas_shim.cache.objects import Objects
from pallas_shim.cache.store import Refused, store
from pallas_shim.dispatch import background
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.floating import as_xla
from pallas_shim.reports.uses import Use

log = logging.getLogger("pallas_shim")

# By which both are timed: that of the thread, if it is exact, since other work may go on meanwhile.
_clock = time.perf_counter
if time.get_clock_info("thread_time").resolution <= 1e-6:
    _clock = time.thread_time

Run = Callable[[Sequence[np.ndarray]], list[Any]]

# Seconds to compile a program: for any, and for each instruction.
_PROGRAM, _INSTRUCTION = 0.05, 0.001
# Seconds to find a program's code on disk, in the same way, and to load LLVM.
_FILE, _WRITTEN_INSTRUCTION, _LLVM = 0.005, 0.0004, 0.1
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
    if asked.native_force and not settings.llvm_is_installed():
        raise NativeError(f"PALLAS_NUMPY_NATIVE=force needs llvmlite: {_EXTRA}")
    return Way(executable, use, asked.native_force, None if asked.native_force else _objects())


def _objects() -> Objects | None:
    """Where code is kept for other processes."""
    setting = settings.current().cache
    if setting is None:
        return None
    try:
        return Objects(store(setting))
    except Refused:
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

    def __init__(
        self, executable: Executable, use: Use, forced: bool, objects: Objects | None = None
    ):
        self._step: Callable[[Way, Sequence[np.ndarray]], list[Any]]
        self._step = Way._forced if forced else Way._counted
        self._executable, self.use = executable, use
        self._objects = objects
        self._may_be_kept = objects is not None  # nobody has looked yet
        self._ran, self._due = 0.0, 0.0  # seconds: until now, and when it has earned the next step
        self.code: Any = None
        self._compared: list[tuple[float, float]] = []  # the seconds of NumPy and of native code
        self.seconds: float | None = None
        self.entry: Any = None

    def call(self, values: Sequence[np.ndarray]) -> list[Any]:
        return self._step(self, values)

    def _in_numpy(self, values: Sequence[np.ndarray]) -> list[Any]:
        return self._executable.run(values)

    def _waiting(self, values: Sequence[np.ndarray]) -> list[Any]:
        """A step of its own, by which a forked process knows that work on it was lost."""
        return self._executable.run(values)

    def _counted(self, values: Sequence[np.ndarray]) -> list[Any]:
        start = time.perf_counter()
        results = self._executable.run(values)
        self._ran += time.perf_counter() - start
        if self._ran > self._due:
            self._earned()
        return results

    def _earned(self) -> None:
        due = self._price(0)
        if self._ran > due:
            # Counting instructions and looking for a package take time, so the first call doesn't.
            due = self._price(sum(1 for _ in self._executable.program.top.walk()))
        self._due = due
        if self._ran > due:
            self._step = Way._in_numpy
            if settings.llvm_is_installed() or settings.current().report is not None:
                self._step = Way._waiting
                background.later(self._work, self._lost)

    def _price(self, instructions: int) -> float:
        """The seconds for which a program runs until it has earned the next step."""
        if self._may_be_kept:
            llvm = 0.0 if "llvmlite" in sys.modules else _LLVM
            return llvm + _FILE + instructions * _WRITTEN_INSTRUCTION
        return _EARNS * (_PROGRAM + instructions * _INSTRUCTION)

    def _lost(self) -> None:
        """In a forked process: nobody is compiling it here."""
        if self._step is Way._waiting:
            self._step = Way._counted

    def _find(self) -> None:
        """Looks for code that is kept. Without it, the program goes on earning some."""
        assert self._objects is not None
        self._may_be_kept = False
        if not settings.llvm_is_installed() or not self._objects.are_there():
            return
        from pallas_shim.evaluator.codegen import native

        start = time.perf_counter()
        with contextlib.suppress(native.NotNative):  # to be told when it has earned that
            threads = settings.current().threads
            self.code = native.loaded(self._executable.program, self._objects, threads)
        if self.code is not None:
            self.use.native = f"read from disk in {time.perf_counter() - start:.3f} s{self._rest()}"

    def _rest(self) -> str:
        """What of the program isn't native."""
        called = [f"{count} {name}" for name, count in self.code.called.items()]
        return f", NumPy does the rest: {', '.join(called)}" if called else ""

    def _compile(self, quietly: bool) -> None:
        """Makes the code. Without it, the report says why."""
        # Slow imports, so not before a program has earned them.
        from pallas_shim.evaluator.codegen import native

        start = time.perf_counter()
        try:
            if not settings.llvm_is_installed():
                native.source(self._executable.program)
                self.use.native = f"would be native: {_EXTRA}"
                return
            compiler = native.object_code
            if quietly:
                compiler = functools.partial(background.quietly, compiler)
            program, threads = self._executable.program, settings.current().threads
            self.code = native.compiled(program, self._objects, compiler, threads)
            self.use.native = f"compiled in {time.perf_counter() - start:.3f} s{self._rest()}"
        except native.NotNative as error:
            self.use.native = f"not native: {error}"

    def _work(self) -> None:
        finds = self._may_be_kept
        try:
            if finds:
                self._find()
            else:
                self._compile(quietly=True)
        except background.PythonEnds:
            return
        except Exception as error:
            # The program runs in NumPy as before, but a bug must be visible.
            self.is_wrong(f"{type(error).__name__}: {error}")
            return
        if self.code is not None:
            self._step = Way._both
        else:
            self._step = Way._counted if finds else Way._in_numpy

    def is_wrong(self, what: str) -> None:
        """Stays in NumPy, because of a bug."""
        self._step, self.seconds = Way._in_numpy, None
        self.use.native = f"not native, which is a bug in pallas_shim: {what}"
        log.warning("%s: %s", self.use.function, self.use.native)

    def _both(self, values: Sequence[np.ndarray]) -> list[Any]:
        start = _clock()
        results = self._executable.run(values)
        middle = _clock()
        others = self._native(values)
        end = _clock()
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
            self._compile(quietly=False)
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
