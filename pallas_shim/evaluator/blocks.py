"""Where the blocks of an array start, and views of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.program import Array


def block_viewer(fixed: Sequence[Any]) -> Callable[..., np.ndarray]:
    """The function ``(buffer, *leaves)`` -> the view of a block. ``fixed`` has for each
    dimension of the buffer a slice, an index, or for a start that is a leaf: the leaf's position,
    by what it is multiplied, the sizes of dimension and block, and whether it is an index."""
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
    """`memory.clamped` of ``start * scale`` for each of many starts of any integer type."""
    starts = from_the_start(starts, scale, dim)
    return np.minimum(np.maximum(starts, 0), dim - size)


def from_the_start(starts: np.ndarray, scale: int, dim: int) -> np.ndarray:
    """The starts of blocks, counted from the start. JAX counts negative ones from the end."""
    if dim < 1 << 31:
        starts = starts.astype(np.int32, copy=False)
        if scale != 1:
            starts = (starts.astype(np.int64) * scale).astype(np.int32)
    else:
        starts = starts.astype(np.int64) * scale
    return starts + (starts < 0) * starts.dtype.type(dim)
