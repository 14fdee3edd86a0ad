"""The floating-point environment that programs run in: XLA's on CPU.

XLA treats subnormal numbers as zeros, as operands and as results; NumPy computes with them
unless the thread's control register says otherwise. C's ``fesetenv`` sets that register.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import numpy as np

_Environment = ctypes.c_uint32 * 16  # no platform's fenv_t is larger

# (word of fenv_t that is the control register, the bits in it that flush)
_FLUSH = {
    ("Linux", "x86_64"): (7, 0x8040),
    ("Linux", "aarch64"): (0, 1 << 24),
    ("Darwin", "x86_64"): (1, 0x8040),
    ("Darwin", "arm64"): (2, 1 << 24),
}


class as_xla:
    """Inside the with-statement this thread computes as XLA's do: subnormals are zeros, and
    overflow and division by zero have results instead of warnings.

    On a machine that `_FLUSH` doesn't know, subnormals stay what they are.
    """

    __slots__ = ("_errors", "_outer")

    def __enter__(self) -> None:
        self._errors = np.errstate(all="ignore")
        self._errors.__enter__()
        if _flushing is not None:
            self._outer = _Environment()
            _libc.fegetenv(self._outer)
            _libc.fesetenv(_flushing)

    def __exit__(self, *exception: Any) -> None:
        if _flushing is not None:
            _libc.fesetenv(self._outer)
        self._errors.__exit__(*exception)


def _flushing_environment() -> ctypes.Array | None:
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
