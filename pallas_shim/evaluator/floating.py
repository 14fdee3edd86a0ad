"""The floating-point environment of programs: XLA's on a CPU.

XLA treats subnormal numbers as zeros, both operands and results. NumPy computes with them, unless
the thread's control register says otherwise. C's ``fesetenv`` sets that register.
"""

from __future__ import annotations

import ctypes
import operator
import platform
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any, TypeVar

import numpy as np

R = TypeVar("R")

# Elements in NumPy's buffers, see broadcasting.py. For shorter rows, calls of NumPy's inner loops
# cost as much as copies.
ROW_BUFFER = 256

_Environment = ctypes.c_uint32 * 16  # no platform's fenv_t is larger

# (word of fenv_t that is the control register, the bits in it that flush)
_FLUSH = {
    ("Linux", "x86_64"): (7, 0x8040),
    ("Linux", "aarch64"): (0, 1 << 24),
    ("Darwin", "x86_64"): (1, 0x8040),
    ("Darwin", "arm64"): (2, 1 << 24),
}


def as_xla(call: Callable[..., R], *args: object) -> R:
    """Returns the result of a call, made while this thread computes as XLA's threads do: subnormals
    are zeros, and overflow and division by zero have results instead of warnings.

    On a machine that `_FLUSH` doesn't know, subnormals stay as they are.

    However the call ends, the thread then computes as before, even if a signal raises on the way in
    or out. Python handles signals after a call has returned, and where a function begins. The
    methods of a context manager are functions, so this is none, and each change or restoration is
    one call into C. If an exception skips a restoration, the outer block starts with it.
    """
    outer, errors = _Environment(), _errors.get()
    restored = False
    _read(outer)
    try:
        try:
            _errors.set(_IGNORED)
            _write(_flushing)
            return call(*args)
        finally:
            _write(outer)
            _errors.set(errors)
            restored = True
    finally:
        if not restored:
            _errors.set(errors)
            _write(outer)


def with_row_buffers(fn: Callable[..., R]) -> Callable[..., R]:
    """The same function, to be called in `as_xla`, for which NumPy's iterators have buffers of
    ``ROW_BUFFER`` elements."""

    def call(*args: Any, **options: Any) -> R:
        before = _errors.get()
        _errors.set(_IGNORED_IN_ROWS)
        try:
            return fn(*args, **options)
        finally:
            _errors.set(before)

    return call


def _ignored_errors() -> tuple[ContextVar[Any], Any, Any]:
    """The place of NumPy's handling of floating-point errors, the value that ignores them, and the
    same with another size of buffers, which has the same place."""
    context = Context()
    context.run(np.seterr, all="ignore")
    ((variable, value),) = context.items()
    context.run(np.setbufsize, ROW_BUFFER)
    return variable, value, context[variable]


def _flushing_environment() -> ctypes.Array[Any] | None:
    known = _FLUSH.get((platform.system(), platform.machine()))
    if known is None:
        return None
    word, bits = known
    environment = _Environment()
    _libc.fegetenv(environment)
    environment[word] |= bits
    return environment


_libc: Any = ctypes.PyDLL(None) if platform.system() != "Windows" else None
_flushing = _flushing_environment()
_read: Any = operator.truth  # which does nothing
_write: Any = operator.truth
if _flushing is not None:
    _read, _write = _libc.fegetenv, _libc.fesetenv
    _read.restype = _write.restype = None  # a result would be made a Python integer
_errors, _IGNORED, _IGNORED_IN_ROWS = _ignored_errors()
