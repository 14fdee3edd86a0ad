"""Matrix products by BLAS, with the number of threads that pays.

OpenBLAS shares even products of some microseconds among its threads, and each thread waits for the
others actively. If other work keeps the cores busy (tests in parallel, a second benchmark), a
thread waits until the system's scheduler gets to the others: up to 700 times as long. So the
calling thread computes products whose share would be small.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import inspect
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# Numbers of multiplications: below the first OpenBLAS itself uses one thread (the lower one is
# that for vectors), above the last, a fifth of a millisecond, the others earn what they cost.
_SHARED_FROM = (9_216, 1 << 18)
WORTH_SHARING = 1 << 23
# CBLAS's numbers for a matrix that lies row by row or column by column, beside one that lies row by
# row.
BY_ROWS, _BY_COLUMNS, ROW_MAJOR = 111, 112, 101
_GEMMS = ("sgemm", "dgemm")
# How many terms `adds_exactly` asks about at most, and about how many multiplications it does.
_MOST_TERMS, _CHECKED = 1024, 1 << 21


def product(
    rows: int, terms: int, columns: int, worth_sharing: int = WORTH_SHARING
) -> Callable[..., Any]:
    """np.matmul for stacks of matrices [rows, terms] by [terms, columns], of (x, y, out=None)."""
    count = rows * terms * columns
    is_shared = count >= _SHARED_FROM[min(rows, columns) > 1]
    return _by_this_thread if is_shared and count <= worth_sharing else np.matmul


def takes_out(function: Any, operands: int) -> bool:
    """Whether a function of so many operands writes to ``out``, if it gets that, as a ufunc does.
    Functions of rules say so by a last parameter ``out=None``, by keyword if the number of operands
    varies."""
    if isinstance(function, np.ufunc):
        return True
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    if code.co_flags & inspect.CO_VARARGS:
        return code.co_argcount == 0 and function.__kwdefaults__ == {"out": None}
    if code.co_argcount != operands + 1:
        return False
    return code.co_varnames[operands] == "out" and function.__defaults__ == (None,)


class MatrixPlace(NamedTuple):
    """Where a matrix lies: row by row (``BY_ROWS``) or column by column (``_BY_COLUMNS``), and how
    many elements lie from one row or column to the next."""

    order: int
    step: int
    address: int


def can_add(dtype: np.dtype) -> bool:
    """Whether there is an `add_product` for a dtype."""
    return dtype.char in _gemms


def adds_exactly(dtype: np.dtype, terms: int) -> bool:
    """Whether `add_product` gives the bits of a product of so many terms and a sum after it."""
    return terms <= _MOST_TERMS and _adds_exactly(dtype.char, terms)


@functools.cache
def _adds_exactly(kind: str, terms: int) -> bool:
    """OpenBLAS sums up to some number of terms, which depends on the processor, in registers. It
    adds that to what is there. It adds longer products part by part. And where it starts anew, it
    adds to zeros, so a product that is -0 becomes 0."""
    if kind not in _gemms:
        return False
    side = math.isqrt(_CHECKED // terms) + 3
    words = np.arange(2 * side * terms, dtype=np.uint32) * np.uint32(2_654_435_761)
    left, right = (words.astype(kind) / 2**31 - 1).reshape(2, side, terms)
    tiny = np.finfo(kind).tiny
    left[0], right[0] = -tiny, tiny  # whose product is -0
    # OpenBLAS has other code for small matrices, unless one is transposed.
    x, y = left, right.T
    with np.errstate(all="ignore"):
        product = _by_this_thread(x, y)
    start = product[::-1].copy()
    apart, anew, added = start + product, np.full_like(product, np.nan), start
    for to, keeps in ((anew, False), (added, True)):
        add_product(x, y, place(to), keeps, is_shared=False)
    return anew.tobytes() == (product + 0).tobytes() and added.tobytes() == apart.tobytes()


def place(matrix: np.ndarray) -> MatrixPlace | None:
    """Where a matrix that is no vector lies, as BLAS is told it. None if BLAS doesn't take it so.
    The conditions are those of np.matmul."""
    size, (rows, columns), (down, right) = matrix.itemsize, matrix.shape, matrix.strides
    if not matrix.flags.aligned:
        return None
    if right == size and down % size == 0 and down >= size * columns:
        return MatrixPlace(BY_ROWS, down // size, matrix.ctypes.data)
    if down == size and right % size == 0 and right >= size * rows:
        return MatrixPlace(_BY_COLUMNS, right // size, matrix.ctypes.data)
    return None


def add_product(
    x: np.ndarray, y: np.ndarray, to: MatrixPlace | None, keeps: bool, is_shared: bool
) -> bool:
    """Adds the product of two matrices to what is at a place if that is kept, or else to zeros.
    Returns False, and does nothing, if BLAS can't do that, or not with the bits of np.matmul.

    The calling thread takes subnormal numbers for zeros, BLAS's other threads don't.
    ``is_shared``: whether they share the product.
    """
    left, right = place(x), place(y)
    if left is None or right is None or to is None or to.order != BY_ROWS:
        return False
    if left.address == right.address:
        return False  # for a matrix by its transpose, np.matmul calls another function of BLAS
    multiply = _gemms[x.dtype.char]
    arguments = (
        ROW_MAJOR, left.order, right.order, x.shape[0], y.shape[1], x.shape[1], 1.0, left.address,
        left.step, right.address, right.step, float(keeps), to.address, to.step,
    )  # fmt: skip
    if is_shared:
        multiply(*arguments)
    else:
        _alone(multiply, *arguments)
    return True


def gemm(dtype: np.dtype) -> tuple[int, int]:
    """The address of CBLAS's product of matrices, and the number of bytes of its integers."""
    function = _gemms[dtype.char]
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address, ctypes.sizeof(function.argtypes[3])


_inside: dict[object, None] = {}  # one mark for each call of `_alone` under way
_before = 0  # how many threads BLAS had before the first of them


def _by_this_thread(
    x: np.ndarray, y: np.ndarray, out: np.ndarray | None = None
) -> np.ndarray:
    """np.matmul, while BLAS uses one thread."""
    return _alone(np.matmul, x, y, out)


def _alone(call: Callable[..., Any], *args: Any) -> Any:
    """Returns the result of a call, while BLAS uses one thread. That is a setting of the process.
    It gets its old value back when the last such call ends.

    There is no lock, since a signal could keep the end from taking it. Python runs another thread
    or a signal's handler only after a call has returned. So the lines below before a call, and that
    call itself, are one step.
    """
    global _before
    if _threads is None:
        return call(*args)
    get, set_ = _threads
    mark = object()
    try:
        if not _inside:
            _before = get()
        _inside[mark] = None
        set_(1)
        result = call(*args)
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


# OpenBLAS's names for its own functions, for those of CBLAS, and the end of both.
_NAMES = [
    (f"{own}openblas_", f"{own}cblas_", suffix)
    for own in ("scipy_", "") for suffix in ("64_", "")
]  # fmt: skip


def _library(kind: Callable[[str], Any]) -> Any:
    """The library through which NumPy's BLAS is found, None if there is none."""
    try:
        return kind(str(importlib.import_module("numpy._core._multiarray_umath").__file__))
    except (ImportError, OSError):
        return None


def _find_threads() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """Functions that get and set the number of threads of NumPy's BLAS, None if it isn't
    OpenBLAS."""
    library = _library(ctypes.PyDLL)
    for prefix, _, suffix in _NAMES:
        get = getattr(library, f"{prefix}get_num_threads{suffix}", None)
        set_ = getattr(library, f"{prefix}set_num_threads{suffix}", None)
        if get is not None and set_ is not None:
            set_.restype = None
            return get, set_
    return None


def _find_gemms() -> dict[str, Any]:
    """The products of matrices of NumPy's BLAS by the character of their dtype, none if it isn't
    OpenBLAS. They run without the GIL."""
    library = _library(ctypes.CDLL)
    for prefix, of_cblas, suffix in _NAMES:
        config = getattr(library, f"{prefix}get_config{suffix}", None)
        found: list[Any] = [getattr(library, f"{of_cblas}{gemm}{suffix}", None) for gemm in _GEMMS]
        if config is None or None in found:
            continue
        config.restype = ctypes.c_char_p
        size = ctypes.c_int64 if b"USE64BITINT" in config() else ctypes.c_int32
        order, matrix = ctypes.c_int, (ctypes.c_void_p, size)
        for gemm, number in zip(found, (ctypes.c_float, ctypes.c_double), strict=True):
            gemm.restype = None
            gemm.argtypes = [
                order, order, order, size, size, size, number, *matrix, *matrix, number, *matrix
            ]  # fmt: skip
        return dict(zip("fd", found, strict=True))
    return {}


_threads = _find_threads()
_gemms = _find_gemms()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_over)
