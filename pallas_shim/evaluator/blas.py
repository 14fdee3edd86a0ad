"""Matrix products by BLAS, with the number of threads that pays.

OpenBLAS shares even products of some microseconds among its threads, and each thread waits for the
others actively. If other work keeps the cores busy (tests in parallel, a second benchmark), a
thread waits until the system's scheduler gets to the others: up to 700 times as long. So the
calling thread computes products whose share would be small.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

# Numbers of multiplications: below the first OpenBLAS itself uses one thread (the lower one is
# that for vectors), above the last, a fifth of a millisecond, the others earn what they cost.
_SHARED_FROM = (9_216, 1 << 18)
_WORTH_SHARING = 1 << 23
# The same for products that a kernel has as many smaller ones: on a busy machine, threads that wait
# for one another may take tens of times as long, so these must be longer.
_JOINED_WORTH_SHARING = 1 << 24
# Stacks of products of so many multiplications in all are worth the calls that join them.
_WORTH_JOINING = 1 << 18


def product(
    rows: int, terms: int, columns: int, worth_sharing: int = _WORTH_SHARING
) -> Callable[..., Any]:
    """np.matmul for stacks of matrices [rows, terms] by [terms, columns], of (x, y, out=None)."""
    count = rows * terms * columns
    is_shared = count >= _SHARED_FROM[min(rows, columns) > 1]
    return _by_this_thread if is_shared and count <= worth_sharing else np.matmul


def product_of_stacks(
    lhs: tuple[int, ...], rhs: tuple[int, ...]
) -> Callable[..., Any] | None:
    """np.matmul for stacks of matrices of these shapes, of (x, y, out=None), as fewer and larger
    products. None if there are none.

    Where only the left matrices differ along an axis of the stacks, they are rows of one matrix.
    Where only the right ones do, they are columns of one. Neither is copied if it lies so in
    memory, as blocks of an array do. The result lies in memory like a result of these products.
    """
    rank = len(lhs) - 2
    rows = [d for d in range(rank) if lhs[d] > 1 and rhs[d] == 1]
    columns = [d for d in range(rank) if lhs[d] == 1 and rhs[d] > 1]
    rest = [d for d in range(rank) if d not in rows and d not in columns]
    stack = [max(lhs[d], rhs[d]) for d in range(rank)]
    m, k, n = lhs[-2], lhs[-1], rhs[-1]
    if not (rows or columns) or math.prod((*stack, m, k, n)) < _WORTH_JOINING:
        return None
    count, many, wide = ([stack[d] for d in dims] for dims in (rest, rows, columns))
    left_order = (*rest, *columns, *rows, rank, rank + 1)
    left_shape = (*count, math.prod(many) * m, k)
    right_order = (*rest, *rows, rank, *columns, rank + 1)
    right_shape = (*count, k, math.prod(wide) * n)
    worth = _WORTH_SHARING if m * k * n > _WORTH_SHARING else _JOINED_WORTH_SHARING
    multiply = product(left_shape[-2], k, right_shape[-1], worth)
    made_shape = (*count, *many, m, *wide, n)
    # The places of the axes of the stacks, and of rows and columns, in what is made.
    made_order = (*rest, *rows, rank, *columns, rank + 1)
    back = tuple(map(made_order.index, range(rank + 2)))
    joined = (*count, left_shape[-2], right_shape[-1])
    rows_at, columns_at = len(count), len(count) + len(many) + 1

    def run(x: np.ndarray, y: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        x = x.transpose(left_order).reshape(left_shape)
        y = y.transpose(right_order).reshape(right_shape)
        if out is not None:
            to = out.transpose(made_order)
            if _is_one(to, rows_at, columns_at) and _is_one(to, columns_at, rank + 2):
                multiply(x, y, out=to.reshape(joined))
                return out
        made = multiply(x, y).reshape(made_shape).transpose(back)
        if out is None:
            return made
        out[...] = made
        return out

    return run


def _is_one(array: np.ndarray, start: int, stop: int) -> bool:
    """Whether dimensions, each of which steps over the next, are one with an even stride."""
    inner = stop - 1
    for d in reversed(range(start, stop - 1)):
        if array.shape[d] == 1:
            continue
        if array.strides[d] != array.strides[inner] * math.prod(array.shape[d + 1 : stop]):
            return False
    return array.shape[inner] > 1 or start == inner


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
