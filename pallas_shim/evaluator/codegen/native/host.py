"""Functions of Python and the C library that native code calls.

Their addresses are in a list that is filled in when code is loaded, so the text of the code is the
same in each process.
"""

from __future__ import annotations

import ctypes
import functools

from pallas_shim.evaluator.codegen.native.source import address

LIST = "@host"
_OF_PYTHON = ("PyEval_SaveThread", "PyEval_RestoreThread", "PyErr_CheckSignals")
_NAMES = (*_OF_PYTHON, "clock_gettime")


def declaration() -> str:
    """The text of the list."""
    return f"{LIST} = global [{len(_NAMES)} x ptr] zeroinitializer"


def load(name: str) -> str:
    """The text that loads the address of a function."""
    return address(LIST, _NAMES.index(name))


@functools.cache
def addresses() -> tuple[int, ...]:
    """What the list is filled with."""
    functions = [getattr(ctypes.pythonapi, name) for name in _OF_PYTHON]
    functions.append(ctypes.CDLL(None).clock_gettime)
    return tuple(ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions)
