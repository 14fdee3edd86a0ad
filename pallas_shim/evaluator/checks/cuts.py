"""Describes how arrays are cut into blocks, and where the blocks of all cells are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.jax_compat.pallas import Block

Starts = tuple[int, ...]


class Cut(NamedTuple):
    """How an array is cut into blocks.

    ``shape`` is the array's; ``inner`` is where it lies in the memory in which blocks are counted,
    by element offsets, so that ``padding`` in front comes first. ``sizes`` are those of a block,
    ``squeezed`` says which dimensions the ref doesn't have, and ``scales`` are the factors from
    what the index map returns to offsets.
    """

    shape: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    sizes: tuple[int, ...]
    squeezed: tuple[bool, ...]
    scales: tuple[int, ...]

    def starts(self, numbers: Sequence[Any]) -> Starts:
        return tuple(int(n) * scale for n, scale in zip(numbers, self.scales, strict=True))

    def axis_outside(self, starts: Starts) -> int | None:
        """A dimension along which the block lies wholly outside the array and its padding."""
        for axis, (start, size) in enumerate(zip(starts, self.sizes, strict=True)):
            first, last = -self.before[axis], self.shape[axis] + self.after[axis]
            offset = start - self.before[axis]
            if size and self.shape[axis] and (offset < first or offset >= last):
                return axis
        return None

    def is_inside(self, starts: Starts) -> bool:
        """Whether all of the block lies in the array."""
        return all(
            0 <= start - before <= dim - size
            for start, before, dim, size in zip(
                starts, self.before, self.shape, self.sizes, strict=True
            )
        )

    def inside(self, starts: Starts) -> tuple[tuple[slice, ...], tuple[Any, ...]]:
        """The part of the array that the block has, and the part of the block that the array has,
        as an index of the ref."""
        of_array, of_block = [], []
        for axis, (start, size) in enumerate(zip(starts, self.sizes, strict=True)):
            offset = start - self.before[axis]
            first = max(offset, 0)
            last = max(min(offset + size, self.shape[axis]), first)
            of_array.append(slice(first, last))
            if not self.squeezed[axis]:
                of_block.append(slice(first - offset, last - offset))
        return tuple(of_array), tuple(of_block)

    def spread(self, block: np.ndarray) -> np.ndarray:
        """A part of a block with the dimensions that the ref doesn't have."""
        return np.expand_dims(block, tuple(i for i, s in enumerate(self.squeezed) if s))

    def divides(self) -> bool:
        """Whether blocks that aren't wholly outside are wholly inside."""
        return self.before == self.after == (0,) * len(self.sizes) and all(
            scale == size and size and dim % size == 0
            for dim, size, scale in zip(self.shape, self.sizes, self.scales, strict=True)
        )

    def text(self, starts: Starts) -> str:
        """The elements of a block."""
        return f"[{', '.join(f'{s}:{s + n}' for s, n in zip(starts, self.sizes, strict=True))}]"


def cut_of(block: Block, shape: tuple[int, ...]) -> Cut:
    """The cut of an array of this shape."""
    dims = block.dims
    return Cut(
        tuple(shape[: len(dims)]),
        tuple(dim.padding[0] for dim in dims),
        tuple(dim.padding[1] for dim in dims),
        tuple(dim.size for dim in dims),
        tuple(dim.kind == "squeezed" for dim in dims),
        tuple(dim.size if dim.kind == "blocked" else 1 for dim in dims),
    )


class Shared(NamedTuple):
    """A block of two cells that run in no fixed order."""

    starts: Starts
    one: tuple[int, ...]
    other: tuple[int, ...]


class Visits:
    """The blocks of all cells of a grid.

    Args:
      bounds: the grid's sizes.
      starts: int64 [cells, dimensions], where the block of each cell starts, in elements. The last
        axis of the grid is the fastest.
    """

    def __init__(self, cut: Cut, bounds: tuple[int, ...], starts: np.ndarray) -> None:
        self.cut = cut
        self.bounds = bounds
        self.starts = starts
        self._offsets = starts - np.asarray(cut.before, np.int64)

    def cell(self, number: int) -> tuple[int, ...]:
        return tuple(map(int, np.unravel_index(number, self.bounds))) if self.bounds else ()

    def at(self, number: int) -> Starts:
        return tuple(map(int, self.starts[number]))

    def are_inside(self) -> bool:
        """Whether each block is wholly inside the array."""
        most = np.asarray(self.cut.shape, np.int64) - np.asarray(self.cut.sizes, np.int64)
        return bool(((self._offsets >= 0) & (self._offsets <= most)).all())

    def first_outside(self) -> tuple[int, Starts, tuple[int, ...]] | None:
        """A dimension along which some block is wholly outside, where it starts, and its cell."""
        cut = self.cut
        for axis, size in enumerate(cut.sizes):
            offset = self._offsets[:, axis]
            wrong = (offset < -cut.before[axis]) | (offset >= cut.shape[axis] + cut.after[axis])
            if size and cut.shape[axis] and wrong.any():
                number = int(np.argmax(wrong))
                return axis, self.at(number), self.cell(number)
        return None

    def _blocks(self) -> np.ndarray | None:
        """The number of each cell's block among all blocks of the array. None if blocks may
        overlap, or some is outside."""
        cut = self.cut
        if cut.scales != cut.sizes or not all(cut.sizes):
            return None
        counts = [-(-dim // size) for dim, size in zip(cut.shape, cut.sizes, strict=True)]
        if not counts:
            return np.zeros(len(self.starts), np.int64)
        numbers = self.starts // np.asarray(cut.sizes, np.int64)
        if ((numbers < 0) | (numbers >= np.asarray(counts, np.int64))).any():
            return None
        return np.ravel_multi_index(tuple(numbers.T), counts)

    def cover(self) -> bool:
        """Whether the blocks are known to cover the array."""
        found = self._blocks()
        if found is None:
            return False
        total = math.prod(
            -(-dim // size) for dim, size in zip(self.cut.shape, self.cut.sizes, strict=True)
        )
        return total <= len(found) and len(np.unique(found)) == total

    def turns(self, parallel: Sequence[bool]) -> np.ndarray:
        """For each cell the number of its place along the parallel axes."""
        cells = np.indices(self.bounds).reshape(len(self.bounds), -1)
        turn = np.zeros(cells.shape[1], np.int64)
        for axis, is_parallel in enumerate(parallel):
            if is_parallel:
                turn = turn * self.bounds[axis] + cells[axis]
        return turn

    def two_turns(self, parallel: Sequence[bool]) -> list[Shared]:
        """The blocks that cells at different places along the parallel axes have, each with two of
        these cells. Of blocks that overlap, only some are given."""
        turns = self.turns(parallel)
        found = self._blocks()
        if found is None:
            return self._overlap(turns)
        order = np.lexsort((turns, found))
        same = found[order][1:] == found[order][:-1]
        wrong = np.nonzero(same & (turns[order][1:] != turns[order][:-1]))[0]
        _, first = np.unique(found[order][wrong], return_index=True)
        pairs = [(int(order[at]), int(order[at + 1])) for at in wrong[np.sort(first)]]
        return [Shared(self.at(b), self.cell(a), self.cell(b)) for a, b in pairs]

    def _overlap(self, turns: np.ndarray) -> list[Shared]:
        different, first = np.unique(
            np.concatenate([self.starts, turns[:, None]], 1), axis=0, return_index=True
        )
        starts, turn = different[:, :-1], different[:, -1]
        order = np.argsort(starts[:, 0], kind="stable") if starts.shape[1] else np.arange(len(turn))
        starts, turn, first = starts[order], turn[order], first[order]
        sizes = np.asarray(self.cut.sizes, np.int64)
        for at in range(len(turn)):
            near = at + 1
            while near < len(turn):
                if len(sizes) and starts[near, 0] - starts[at, 0] >= sizes[0]:
                    break
                if turn[near] != turn[at] and (abs(starts[near] - starts[at]) < sizes).all():
                    one, other = sorted((int(first[at]), int(first[near])))
                    return [Shared(self.at(other), self.cell(one), self.cell(other))]
                near += 1
        return []

    def loaded_too_early(
        self, output: Visits
    ) -> tuple[str, tuple[int, ...], tuple[int, ...]] | None:
        """An input's block that is loaded while the block of the output at its place is not yet
        written back: its elements, the cell that it is for, and the cell of the output.

        A device loads the block of a cell while the cell before it runs, and writes a block back
        when the next cell has another.
        """
        if len(self.starts) < 2 or self.starts.shape != output.starts.shape:
            return None
        moved = (self.starts[1:] != self.starts[:-1]).any(1)
        distance = self._offsets[1:] - output._offsets[:-1]
        sizes, others = (np.asarray(v.cut.sizes, np.int64) for v in (self, output))
        overlap = ((distance < others) & (-distance < sizes)).all(1)
        wrong = moved & overlap
        if not wrong.any():
            return None
        at = int(np.argmax(wrong))
        return self.cut.text(self.at(at + 1)), self.cell(at + 1), output.cell(at)
