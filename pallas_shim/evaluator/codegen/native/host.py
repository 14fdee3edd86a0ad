"""Functions of Python, NumPy and the C library that native code calls.

Their addresses are in a list that is filled in when code is loaded, so the text of the code is the
same in each process.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np

from pallas_shim.evaluator.codegen.native.source import address

LIST = "@host"
_OF_PYTHON = (
    "PyEval_SaveThread", "PyEval_RestoreThread", "PyErr_CheckSignals", "PyObject_Vectorcall",
    "Py_IncRef", "Py_DecRef",
)  # fmt: skip
# Their places in NumPy's table of what it offers to C. One is a type.
_OF_NUMPY = {"PyArray_Type": 2, "PyArray_Return": 76, "PyArray_NewFromDescr": 94}
# Not all of them are there on other systems than Linux.
_OF_C = (
    "clock_gettime", "malloc", "free", "pthread_create", "pthread_join", "pthread_detach",
    "sched_getaffinity",
)  # fmt: skip
_NAMES = (*_OF_PYTHON, *_OF_NUMPY, *_OF_C)


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
    library, table = ctypes.CDLL(None), _of_numpy()
    of_c = [getattr(library, name, ctypes.c_void_p()) for name in _OF_C]
    return (
        *[_address(function) for function in functions],
        *[table[place] or 0 for place in _OF_NUMPY.values()],
        *[_address(function) for function in of_c],
    )


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _of_numpy() -> Any:
    kind = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    get = kind(("PyCapsule_GetPointer", ctypes.pythonapi))
    at = get(np._core._multiarray_umath._ARRAY_API, None)  # type: ignore[attr-defined]
    return (ctypes.c_void_p * (max(_OF_NUMPY.values()) + 1)).from_address(at)
