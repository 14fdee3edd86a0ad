"""Matrix products by BLAS, with the number of threads that pays.

OpenBLAS shares even products of some microseconds among its threads, and each thread waits for the
others actively. If other work keeps the cores busy (tests in parallel, a second benchmark), a
thread waits until the system's scheduler gets to the others: up to 700 times as long. So the
calling thread computes products whose share would be small.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np

# Numbers of multiplications: below the first OpenBLAS itself uses one thread (the lower one is
# that for vectors), above the last, a fifth of a millisecond, the others earn what they cost.
_SHARED_FROM = (9_216, 1 << 18)
_WORTH_SHARING = 1 << 23


def product(rows: int, terms: int, columns: int) -> Callable[..., Any]:
    """np.matmul for stacks of matrices [rows, terms] by [terms, columns], of (x, y, out=None)."""
    count = rows * terms * columns
    is_shared = count >= _SHARED_FROM[min(rows, columns) > 1]
    return _by_this_thread if is_shared and count <= _WORTH_SHARING else np.matmul


def takes_out(function: Any, operands: int) -> bool:
    """Whether a function of so many operands writes to ``out``, if it gets that, as a ufunc does.
    Functions of rules say so by a last parameter ``out=None``."""
    if isinstance(function, np.ufunc):
        return True
    code = getattr(function, "__code__", None)
    if code is None or code.co_argcount != operands + 1:
        return False
    return code.co_varnames[operands] == "out" and function.__defaults__ == (None,)


_inside: dict[object, None] = {}  # one mark for each call of `_by_this_thread` under way
_before = 0  # how many threads BLAS had before the first of them


def _by_this_thread(
    x: np.ndarray, y: np.ndarray, out: np.ndarray | None = None
) -> np.ndarray:
    """np.matmul, while BLAS uses one thread. That is a setting of the process. It gets its old
    value back when the last such call ends.

    There is no lock, since a signal could keep the end from taking it. Python runs another thread
    or a signal's handler only after a call has returned. So the lines below before a call, and that
    call itself, are one step.
    """
    global _before
    if _threads is None:
        return np.matmul(x, y, out=out)
    get, set_ = _threads
    mark = object()
    try:
        if not _inside:
            _before = get()
        _inside[mark] = None
        set_(1)
        result = np.matmul(x, y, out=out)
    finally:
        if mark in _inside:
            del _inside[mark]
            if not _inside:
                set_(_before)
    return result


def _start_over() -> None:
    """Starts over in a forked process, where the threads inside are gone."""
    if _inside and _threads is not None:
        _threads[1](_before)
    _inside.clear()


def _find() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Functions that get and set the number of threads of NumPy's BLAS, None if it isn't
    OpenBLAS."""
    try:
        library = ctypes.PyDLL(importlib.import_module("numpy._core._multiarray_umath").__file__)
    except (ImportError, OSError):
        return None
    for prefix in ("scipy_openblas", "openblas"):
        for suffix in ("64_", ""):
            get = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
            set_ = getattr(library, f"{prefix}_set_num_threads{suffix}", None)
            if get is not None and set_ is not None:
                set_.restype = None
                return get, set_
    return None


_threads = _find()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_over)
