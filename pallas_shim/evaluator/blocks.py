"""The starts of an array's blocks, and views of the blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.program import Array


def block_viewer(fixed: Sequence[Any]) -> Callable[..., np.ndarray]:
    """The function ``(buffer, *leaves)`` that returns the view of a block.

    ``fixed`` has one entry for each dimension of the buffer: a slice, an index, or a tuple if a
    leaf gives the start. The tuple holds the leaf's position, its factor, the sizes of the
    dimension and of the block, and whether the start is an index instead of a slice's start.
    """
    moving = [(position, *f) for position, f in enumerate(fixed) if isinstance(f, tuple)]
    if not moving:
        key = (*fixed, ...)
        return lambda buffer: buffer[key]
    template = [None if isinstance(f, tuple) else f for f in fixed] + [...]

    def view(buffer: Array, *starts: Array) -> Array:
        key = template.copy()
        for position, leaf, scale, dim, size, squeezed in moving:
            at = memory.clamped(int(starts[leaf]) * scale, dim, size)
            key[position] = at if squeezed else slice(at, at + size)
        return buffer[tuple(key)]

    return view


def clamped(starts: np.ndarray, scale: int, dim: int, size: int) -> np.ndarray:
    """`memory.clamped` of ``start * scale`` for many starts at once, of any integer type."""
    if scale == 1 and starts.dtype == np.int32 and starts.ndim and starts.size:
        # As unsigned numbers, negative ones are too large.
        if np.maximum.reduce(starts.view(np.uint32), axis=None) <= dim - size:
            return starts
    starts = from_the_start(starts, scale, dim)
    return np.minimum(np.maximum(starts, 0), dim - size)


def from_the_start(starts: np.ndarray, scale: int, dim: int) -> np.ndarray:
    """The starts of blocks, counted from the array's start. JAX counts negative starts from the
    end."""
    if dim < 1 << 31:
        starts = starts.astype(np.int32, copy=False)
        if scale != 1:
            starts = (starts.astype(np.int64) * scale).astype(np.int32)
    else:
        starts = starts.astype(np.int64) * scale
    return starts + (starts < 0) * starts.dtype.type(dim)
