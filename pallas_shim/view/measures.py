"""Measures of blocks and accesses: coverage, heat, and the bytes that a pipeline moves."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from pallas_shim.view.data import Coverage, Heat

Span = tuple[int, int, int]  # start, stop, step
Starts = tuple[int, ...]

# The bins along each side of a heat map. A side of fewer elements has a bin for each.
_MOST_BINS = 64
_BINS_OF_A_LINE = 512
# Coverage is counted on the grid of all edges of blocks, if that has no more boxes than this.
_MOST_BOXES = 1 << 21


# -- coverage -----------------------------------------------------------------------------------


def coverage(
    shape: Sequence[int], block: Sequence[int], blocks: Sequence[Starts], order: Sequence[int]
) -> Coverage:
    """The coverage of an array. ``order`` has the position in ``blocks`` for each cell."""
    inside = [
        all(s < dim and s + b > 0 for s, b, dim in zip(start, block, shape, strict=True))
        for start in blocks
    ]
    partly = [
        within and any(s < 0 or s + b > dim for s, b, dim in zip(start, block, shape, strict=True))
        for start, within in zip(blocks, inside, strict=True)
    ]
    visits = [position for position, _ in itertools.groupby(order)]
    kept = [start for start, within in zip(blocks, inside, strict=True) if within]
    never, overlapped = _covered(shape, block, kept)
    return Coverage(
        never=never, overlapped=overlapped, partly=sum(partly), outside=inside.count(False),
        revisited=int((np.bincount(order, minlength=1) > 1).sum()) if len(order) else 0,
        returning=int((np.bincount(visits, minlength=1) > 1).sum()) if visits else 0,
    )  # fmt: skip


def _covered(
    shape: Sequence[int], block: Sequence[int], blocks: Sequence[Starts]
) -> tuple[int | None, int | None]:
    """The numbers of elements in no block, and in several."""
    if not math.prod(shape):
        return 0, 0
    starts = np.array(blocks, np.int64).reshape(len(blocks), len(shape))
    low = np.clip(starts, 0, shape)
    high = np.clip(starts + np.array(block, np.int64), 0, shape)
    edges = [
        np.unique(np.concatenate([low[:, axis], high[:, axis], [0, dim]]))
        for axis, dim in enumerate(shape)
    ]
    if math.prod(len(e) - 1 for e in edges) > _MOST_BOXES:
        return None, None
    counts = np.zeros([len(e) - 1 for e in edges], np.int32)
    first = np.stack(
        [np.searchsorted(e, low[:, a]) for a, e in enumerate(edges)], -1
    ) if edges else np.zeros((len(blocks), 0), int)  # fmt: skip
    last = np.stack(
        [np.searchsorted(e, high[:, a]) for a, e in enumerate(edges)], -1
    ) if edges else first  # fmt: skip
    for begin, end in zip(first.tolist(), last.tolist(), strict=True):
        counts[tuple(map(slice, begin, end))] += 1
    sizes = functools.reduce(np.multiply.outer, [np.diff(e) for e in edges], np.array(1))
    return int(np.sum(sizes * (counts == 0))), int(np.sum(sizes * (counts > 1)))


# -- bytes --------------------------------------------------------------------------------------


def block_bytes(shape: Sequence[int], block: Sequence[int], start: Starts, itemsize: int) -> int:
    """The bytes of a block's part inside its array."""
    return itemsize * math.prod(
        max(0, min(s + b, dim) - max(s, 0)) for s, b, dim in zip(start, block, shape, strict=True)
    )


def fetched(order: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """The bytes fetched for each cell: those of its block, unless the cell before had the same."""
    before = [-1, *order[:-1]] if order else []
    return [0 if now == old else sizes[now] for now, old in zip(order, before, strict=True)]


def written_back(order: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """The bytes written back after each cell: those of its block, unless the next has the same."""
    after = [*order[1:], -1]
    return [0 if now == new else sizes[now] for now, new in zip(order, after, strict=True)]


# -- heat ---------------------------------------------------------------------------------------


class HeatMap:
    """Counts accesses to an array's elements, in bins."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape) or (1,)
        self.columns = self.shape[-1]
        self.rows = math.prod(self.shape[:-1])
        most = _BINS_OF_A_LINE if self.rows == 1 else _MOST_BINS
        self._bins = _bins(self.rows, _MOST_BINS), _bins(self.columns, most)
        self.counts = {kind: np.zeros(self._bins) for kind in ("reads", "writes")}
        self._weights = functools.lru_cache(4096)(self._weights_of)

    def add(self, kind: str, spans: Sequence[Span]) -> None:
        """Counts one access to the elements that lie in the span of each dimension."""
        if 0 in self._bins:
            return
        rows, columns = self._weights(tuple(spans) or ((0, 1, 1),))
        self.counts[kind] += np.multiply.outer(rows, columns)

    def _weights_of(self, spans: tuple[Span, ...]) -> tuple[np.ndarray, np.ndarray]:
        inside = [_within(span, dim) for span, dim in zip(spans, self.shape, strict=True)]
        rows = np.zeros(1, np.int64)
        for at, dim in zip(inside[:-1], self.shape[:-1], strict=True):
            rows = np.add.outer(rows * dim, at).reshape(-1)
        return (
            np.bincount(_bin(rows, self.rows, self._bins[0]), minlength=self._bins[0]),
            np.bincount(_bin(inside[-1], self.columns, self._bins[1]), minlength=self._bins[1]),
        )

    def result(self, contents: np.ndarray | None) -> Heat:
        """``contents``: the array when the kernel ended, if it was seen."""
        row_sizes, column_sizes = map(_sizes, (self.rows, self.columns), self._bins)
        elements = np.multiply.outer(row_sizes, column_sizes)
        reads, writes = (_rounded(self.counts[k] / elements) for k in ("reads", "writes"))
        heat = Heat(self.rows, self.columns, reads, writes)
        if contents is not None and 0 not in self._bins:
            table = np.asarray(contents).reshape(self.rows, self.columns)
            table = np.abs(table) if table.dtype.kind == "c" else table
            with np.errstate(all="ignore"):
                table = table.astype(np.float64)
            finite = np.isfinite(table)
            heat.not_finite = int(finite.size - finite.sum())
            sums = self._summed(np.where(finite, table, 0))
            counts = self._summed(finite.astype(np.float64))
            with np.errstate(all="ignore"):
                means = np.where(counts > 0, sums / counts, np.nan)
            heat.values = _rounded(means)
        return heat

    def _summed(self, table: np.ndarray) -> np.ndarray:
        for axis, (size, bins) in enumerate(
            zip((self.rows, self.columns), self._bins, strict=True)
        ):
            if bins != size:
                table = np.add.reduceat(table, _edges(size, bins)[:-1], axis)
        return table


def _within(span: Span, dim: int) -> np.ndarray:
    at = np.arange(*span)
    return at[(at >= 0) & (at < dim)]


def _bins(size: int, most: int) -> int:
    return size if size <= most * 3 // 2 else most


def _bin(at: np.ndarray, size: int, bins: int) -> np.ndarray:
    return at * bins // max(size, 1)


def _sizes(size: int, bins: int) -> np.ndarray:
    return np.diff(_edges(size, bins))


def _edges(size: int, bins: int) -> np.ndarray:
    """The first element of each bin, and the size."""
    return -(-np.arange(bins + 1) * size // max(bins, 1))


def _rounded(table: np.ndarray) -> list[list[float | None]]:
    """Rounds to four digits, as many as a colour and a tooltip show. JSON has no NaN."""
    return [
        [
            None if not math.isfinite(x) else int(x) if x.is_integer() else float(f"{x:.4g}")
            for x in row
        ]
        for row in table.astype(np.float64).tolist()
    ]
