"""Places in memory: where a ref, or an array that has been computed, lies."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator.codegen.native.source import ALIGNMENT
from pallas_shim.evaluator.program import ArrayType, RefType


@dataclasses.dataclass(eq=False)
class Buffer:
    """Memory that no other buffer overlaps. ``users``: how many values lie in it; when there is
    none left, its part of the workspace is used again."""

    base: str
    start: int | None = None  # in the workspace, if it lies there
    nbytes: int = 0
    users: int = 0


@dataclasses.dataclass(frozen=True)
class BufferPlace:
    """Elements in a buffer. ``offset``, a register or a literal, and ``strides`` count bytes."""

    buffer: Buffer
    offset: str
    strides: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: np.dtype


def strides_of(shape: Sequence[int], dtype: np.dtype) -> tuple[int, ...]:
    """Those of a contiguous array."""
    strides = [dtype.itemsize] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return tuple(strides)


class Workspace:
    """Hands out parts of one allocation. A part that was given back is handed out again."""

    def __init__(self, base: str = "%workspace") -> None:
        self.base, self.nbytes = base, 0
        self._free: list[tuple[int, int]] = []  # start and size

    def take(self, shape: Sequence[int], dtype: np.dtype) -> Buffer:
        size = max(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, 1)
        size += -size % ALIGNMENT
        fitting = [part for part in self._free if part[1] >= size]
        best = min(fitting, key=lambda part: part[1], default=None)
        if best is None:
            start, self.nbytes = self.nbytes, self.nbytes + size
        else:
            self._free.remove(best)
            start = best[0]
            if best[1] > size:
                self._free.append((start + size, best[1] - size))
        return Buffer(self.base, start, size)

    def give_back(self, buffer: Buffer) -> None:
        assert buffer.start is not None and buffer.base == self.base
        start, size = buffer.start, buffer.nbytes
        for part in list(self._free):  # joins its neighbours
            if part[0] + part[1] == start or start + size == part[0]:
                self._free.remove(part)
                start, size = min(start, part[0]), size + part[1]
        self._free.append((start, size))


def reach(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, int]:
    """The lowest and the highest offset of an element."""
    ends = [(n - 1) * s for n, s in zip(shape, strides, strict=True) if n > 0]
    return sum(end for end in ends if end < 0), sum(end for end in ends if end > 0)


def contiguous(buffer: Buffer, shape: tuple[int, ...], dtype: np.dtype) -> BufferPlace:
    return BufferPlace(buffer, str(buffer.start or 0), strides_of(shape, dtype), shape, dtype)


def dummy(place: BufferPlace) -> np.ndarray:
    """An array that is laid out as a place is, to learn what a view of it is. Nobody reads it."""
    low, high = reach(place.shape, place.strides)
    memory = np.empty(high - low + place.dtype.itemsize, np.uint8)
    return np.ndarray(place.shape, place.dtype, memory, -low, place.strides)


def viewed(seen: np.ndarray, of: np.ndarray) -> tuple[int, tuple[int, ...]] | None:
    """The offset, in bytes from that of the place, and strides of a view ``seen`` of its dummy.
    None if it isn't a view."""
    base: Any = seen
    while isinstance(base, np.ndarray) and base is not of.base:
        base = base.base
    if base is None or base is not of.base:
        return None
    return seen.ctypes.data - of.ctypes.data, seen.strides


def part(
    place: BufferPlace, offset: str, strides: Sequence[int], type: ArrayType | RefType
) -> BufferPlace:
    return BufferPlace(place.buffer, offset, tuple(strides), type.shape, type.dtype)


def broadcast(strides: Sequence[int], shape: Sequence[int], to: Sequence[int]) -> tuple[int, ...]:
    """The strides along the dimensions of a shape that an array broadcasts to."""
    lead = len(to) - len(shape)
    own = [0 if n == 1 and m != 1 else s for s, n, m in zip(strides, shape, to[lead:], strict=True)]
    return (*[0] * lead, *own)
