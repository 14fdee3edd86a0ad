"""Products of stacks of matrices as fewer and larger ones, and sums of such products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator import blas

# From how many multiplications on threads share a product that a kernel has as many smaller ones:
# on a busy machine, threads that wait for one another may take tens of times as long, so these must
# be longer.
_JOINED_WORTH_SHARING = 1 << 24
# Stacks of products of so many multiplications in all are worth the calls that join them.
_WORTH_JOINING = 1 << 18
# Sums of products of so many multiplications each are worth another way to add them up.
_WORTH_ADDING = 1 << 23

Matrices = Callable[[np.ndarray], np.ndarray]


def stacks(
    lhs: tuple[int, ...], rhs: tuple[int, ...], dimension_numbers: Any
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the stacks of matrices that `dot_general` multiplies."""
    (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch) = dimension_numbers
    terms = math.prod(lhs[d] for d in lhs_contracting)
    rows = math.prod(lhs[d] for d in others(len(lhs), lhs_contracting, lhs_batch))
    columns = math.prod(rhs[d] for d in others(len(rhs), rhs_contracting, rhs_batch))
    return (
        (*[lhs[d] for d in lhs_batch], rows, terms),
        (*[rhs[d] for d in rhs_batch], terms, columns),
    )


def orders(
    lhs_rank: int, rhs_rank: int, dimension_numbers: Any
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The dimensions of the operands of `dot_general` in the order of those stacks."""
    (lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch) = dimension_numbers
    return (
        (*lhs_batch, *others(lhs_rank, lhs_contracting, lhs_batch), *lhs_contracting),
        (*rhs_batch, *rhs_contracting, *others(rhs_rank, rhs_contracting, rhs_batch)),
    )


def others(rank: int, *used: Sequence[int]) -> list[int]:
    """The dimensions that are in none of ``used``."""
    return [d for d in range(rank) if not any(d in dims for dims in used)]


class Joined(NamedTuple):
    """How the products of stacks of matrices are those of fewer and larger ones.

    Where only the left matrices differ along an axis of the stacks, they are rows of one matrix.
    Where only the right ones do, they are columns of one. Neither is copied if it lies so in
    memory, as blocks of an array do.

    Attributes:
      sizes: of one product: rows, terms, columns.
      shape: of the results, a stack of matrices.
      is_larger: whether anything is joined.
      worth_sharing: from how many multiplications on threads share one product.
      left, right: turn a stack of operands into one of the larger ones.
      within: the view of the larger results on a stack of the smaller ones, None if there is none.
      apart: the view of the smaller results on a stack of the larger ones.
    """

    sizes: tuple[int, int, int]
    shape: tuple[int, ...]
    is_larger: bool
    worth_sharing: int
    left: Matrices
    right: Matrices
    within: Callable[[np.ndarray], np.ndarray | None]
    apart: Matrices

    @property
    def is_shared(self) -> bool:
        """Whether threads share one product of the larger matrices."""
        return math.prod(self.sizes) > self.worth_sharing


def join(lhs: tuple[int, ...], rhs: tuple[int, ...]) -> Joined:
    rank = len(lhs) - 2
    rows = [d for d in range(rank) if lhs[d] > 1 and rhs[d] == 1]
    columns = [d for d in range(rank) if lhs[d] == 1 and rhs[d] > 1]
    rest = [d for d in range(rank) if d not in rows and d not in columns]
    stack = [max(lhs[d], rhs[d]) for d in range(rank)]
    m, k, n = lhs[-2], lhs[-1], rhs[-1]
    count, many, wide = ([stack[d] for d in dims] for dims in (rest, rows, columns))
    left_order = (*rest, *columns, *rows, rank, rank + 1)
    left_shape = (*count, math.prod(many) * m, k)
    right_order = (*rest, *rows, rank, *columns, rank + 1)
    right_shape = (*count, k, math.prod(wide) * n)
    made_shape = (*count, *many, m, *wide, n)
    # The places of the axes of the stacks, and of rows and columns, in what is made.
    made_order = (*rest, *rows, rank, *columns, rank + 1)
    back = tuple(map(made_order.index, range(rank + 2)))
    shape = (*count, left_shape[-2], right_shape[-1])
    rows_at, columns_at = len(count), len(count) + len(many) + 1

    def left(x: np.ndarray) -> np.ndarray:
        return x.transpose(left_order).reshape(left_shape)

    def right(y: np.ndarray) -> np.ndarray:
        return y.transpose(right_order).reshape(right_shape)

    def within(out: np.ndarray) -> np.ndarray | None:
        to = out.transpose(made_order)
        if _is_one(to, rows_at, columns_at) and _is_one(to, columns_at, rank + 2):
            return to.reshape(shape)
        return None

    def apart(made: np.ndarray) -> np.ndarray:
        return made.reshape(made_shape).transpose(back)

    is_larger = bool(rows or columns)
    is_joined = is_larger and m * k * n <= blas.WORTH_SHARING
    worth = _JOINED_WORTH_SHARING if is_joined else blas.WORTH_SHARING
    sizes = (left_shape[-2], k, right_shape[-1])
    return Joined(sizes, shape, is_larger, worth, left, right, within, apart)


def product_of_stacks(
    lhs: tuple[int, ...], rhs: tuple[int, ...]
) -> Callable[..., Any] | None:
    """np.matmul for stacks of matrices of these shapes, of (x, y, out=None), as fewer and larger
    products. None if there are none. The result lies in memory like a result of these products."""
    joined = join(lhs, rhs)
    if not joined.is_larger or _multiplications(joined) < _WORTH_JOINING:
        return None
    multiply = blas.product(*joined.sizes, joined.worth_sharing)
    _, _, _, _, left, right, within, apart = joined

    def run(x: np.ndarray, y: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        x, y = left(x), right(y)
        if out is None:
            return apart(multiply(x, y))
        to = within(out)
        if to is None:
            out[...] = apart(multiply(x, y))
        else:
            multiply(x, y, out=to)
        return out

    return run


def _multiplications(joined: Joined) -> int:
    return math.prod(joined.shape) * joined.sizes[1]


def _is_one(array: np.ndarray, start: int, stop: int) -> bool:
    """Whether dimensions, each of which steps over the next, are one with an even stride."""
    inner = stop - 1
    for d in reversed(range(start, stop - 1)):
        if array.shape[d] == 1:
            continue
        if array.strides[d] != array.strides[inner] * math.prod(array.shape[d + 1 : stop]):
            return False
    return array.shape[inner] > 1 or start == inner


def pays_to_add(lhs: tuple[int, ...], rhs: tuple[int, ...]) -> bool:
    """Whether sums of products of stacks of these shapes are better made by `sum_of_products`."""
    rows, terms, columns = join(lhs, rhs).sizes
    return min(rows, terms, columns) > 1 and rows * terms * columns >= _WORTH_ADDING


def sum_of_products(
    lhs: tuple[int, ...], rhs: tuple[int, ...], dtype: np.dtype, left: Matrices, right: Matrices
) -> Callable[..., np.ndarray]:
    """A function of (start, pairs, out=None): ``start``, or zeros if it is None, plus the products
    of the pairs, one after the other. ``left`` and ``right`` make stacks of matrices of these
    shapes of the pairs' members. ``out`` may share memory with operands.

    BLAS adds a product to the sum, if it rounds as it does when NumPy adds it.
    """
    joined = join(lhs, rhs)
    multiply = blas.product(*joined.sizes, joined.worth_sharing)
    is_shared = joined.is_shared
    terms, shape, within, apart = joined.sizes[1], joined.shape, joined.within, joined.apart
    join_left, join_right = joined.left, joined.right
    zero, one = dtype.type(0), dtype.type(1)

    def run(
        start: np.ndarray | None, pairs: Sequence[tuple[np.ndarray, np.ndarray]],
        out: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        to = None if out is None or _overlaps(out, start, pairs) else within(out)
        if to is None:
            to = np.empty(shape, dtype)
            made = apart(to)
        else:
            assert out is not None
            made = out
        if start is not None and not _is_same(made, start):
            made[...] = start
        exact = blas.adds_exactly(dtype, terms)
        targets = [(at, to[at], blas.place(to[at])) for at in np.ndindex(shape[:-2])]
        keeps, by_threads, product = start is not None, False, None
        for left_one, right_one in pairs:
            x, y = join_left(left(left_one)), join_right(right(right_one))
            for at, sums, place in targets:
                if exact and blas.add_product(x[at], y[at], place, keeps, is_shared):
                    by_threads = is_shared
                elif keeps:
                    product = multiply(x[at], y[at], out=product)
                    np.add(sums, product, out=sums)
                else:
                    multiply(x[at], y[at], out=sums)
                    np.add(zero, sums, out=sums)
            keeps = True
        if by_threads:
            np.multiply(to, one, out=to)  # without subnormals
        if out is None or made is out:
            return made
        out[...] = made
        return out

    return run


def _overlaps(
    out: np.ndarray, start: np.ndarray | None, pairs: Sequence[tuple[np.ndarray, np.ndarray]]
) -> bool:
    """Whether an array that is written to has memory of one that is read after that."""
    if start is not None and not _is_same(out, start) and np.may_share_memory(out, start):
        return True
    return any(np.may_share_memory(out, array) for pair in pairs for array in pair)


def _is_same(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two arrays of one shape are the same memory."""
    return x.ctypes.data == y.ctypes.data and x.strides == y.strides
