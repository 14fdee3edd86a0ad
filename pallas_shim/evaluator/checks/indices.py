"""Basic indices, of slices and numbers: where they lead outside, and NumPy's form of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator.memory import Dynamic
from pallas_shim.jax_compat.state import Slice


class Outside(NamedTuple):
    """An index that leaves its dimension. ``first`` and ``last`` are the places of the elements
    that are farthest out, along dimension ``axis``, which has ``size`` elements."""

    axis: int
    first: int
    last: int
    size: int

    def __str__(self) -> str:
        places = f"{self.first}" if self.first == self.last else f"{self.first} to {self.last}"
        return f"{places} along dimension {self.axis}, which has {self.size} elements"


def span(dim: Slice) -> int:
    """How many elements a slice spans."""
    return (dim.size - 1) * dim.stride + 1 if dim.size else 0


class _Start(NamedTuple):
    """A start that only the run knows. ``most``: the largest one that is inside, negative if none
    is. ``stride``: of the slice, None for a single index."""

    axis: int
    leaf: int
    extent: int
    most: int
    stride: int | None


class BasicIndex:
    """An index of slices and numbers. What is known of it before the run is looked at once."""

    def __init__(self, shape: Sequence[int], dims: Sequence[Any]) -> None:
        self._shape = shape
        self._starts: list[_Start] = []
        self._known: Outside | None = None
        key: list[Any] = []
        for axis, (size, dim) in enumerate(zip(shape, dims, strict=True)):
            stride = max(dim.stride, 1) if isinstance(dim, Slice) else None
            index = dim.start if isinstance(dim, Slice) else dim
            extent = span(dim) if isinstance(dim, Slice) else 1
            if isinstance(index, Dynamic):
                self._starts.append(_Start(axis, index.leaf, extent, size - extent, stride))
                index = 0
            elif extent and not 0 <= index <= size - extent and self._known is None:
                self._known = Outside(axis, int(index), int(index) + extent - 1, size)
            key.append(_inside(int(index), size - extent, extent, stride))
        self._key = (*key, ...)

    def outside(self, leaves: Sequence[Any]) -> Outside | None:
        for axis, leaf, extent, most, _ in self._starts:
            start = int(leaves[leaf])
            if extent and not 0 <= start <= most:
                return Outside(axis, start, start + extent - 1, self._shape[axis])
        return self._known

    def key(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """The index of NumPy. Each start is moved inside, as when the access runs."""
        if not self._starts:
            return self._key
        key = list(self._key)
        for axis, leaf, extent, most, stride in self._starts:
            key[axis] = _inside(int(leaves[leaf]), most, extent, stride)
        return tuple(key)

    def __call__(self, array: np.ndarray, leaves: Sequence[Any]) -> np.ndarray:
        view: np.ndarray = array[self.key(leaves)]
        return view


def _inside(start: int, most: int, extent: int, stride: int | None) -> Any:
    start = min(max(start, 0), max(most, 0))
    return start if stride is None else slice(start, start + extent, stride)
