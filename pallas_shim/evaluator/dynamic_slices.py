"""Views of dynamic size. They end where their refs end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.program import Array
from pallas_shim.jax_compat.state import Bitcast, Index, Slice


class DynamicSlices:
    """The part that a path with slices of dynamic size leads to. It is cut off where the ref ends.
    On a TPU, an array is padded to whole tiles. The path may have any steps before these slices,
    but only indices after them. The last step may have arrays of indices. An index outside is moved
    to the nearest end, a negative one to the start.

    Attributes:
      dtype: the dtype of the elements.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, path: memory.Path) -> None:
        _, self.dtype = memory.viewed_type(shape, dtype, path)
        steps = list(memory.copying_late(shape, dtype, path))
        last = steps[-1] if steps else None
        pack = last if isinstance(last, memory.Pack) else None
        steps = steps[:-1] if pack else steps
        forms = [i for i, step in enumerate(steps) if not isinstance(step, Index)]
        sized = forms[-1] + 1 if forms else 0
        self._stages = memory.stages_of(shape, dtype, steps[:sized])
        narrow = _dtype_after(dtype, steps[:sized])
        self._pack = memory.packing(narrow, *pack) if pack else None
        self._indices = [step.dims for step in steps[sized:] if isinstance(step, Index)]

    def read(self, ref: np.ndarray, leaves: Sequence[Any]) -> np.ndarray:
        for stage in self._stages:
            ref = stage.forward(ref, *leaves)
        whole, chosen = self._cut(ref, leaves)
        return self._packed(whole[chosen])

    def change(
        self, ref: np.ndarray, leaves: Sequence[Any], write: Callable[[np.ndarray], None]
    ) -> None:
        """Calls ``write`` to change the part."""

        def change_part(array: Array) -> None:
            whole, chosen = self._cut(array, leaves)
            part = whole[chosen]
            packed = self._packed(part)
            write(packed)
            if self._pack is not None and self._pack.back is not None:
                part = self._pack.back(packed)
            if not np.may_share_memory(part, whole):
                whole[chosen] = part

        memory.change(ref, self._stages, leaves, change_part)

    def _packed(self, array: np.ndarray) -> np.ndarray:
        return self._pack.forward(array) if self._pack else array

    def _cut(self, array: np.ndarray, leaves: Sequence[Any]) -> tuple[np.ndarray, Any]:
        """The array after all slices, and the arrays of indices into it."""

        def known(number: Any) -> int:
            return int(leaves[number.leaf]) if isinstance(number, memory.Dynamic) else number

        def key(dim: int, index: Any) -> Any:
            if isinstance(index, memory.Chosen):
                return slice(None)
            if not isinstance(index, Slice):
                return memory.clamped(known(index), dim, 1)
            start = memory.clamped(known(index.start), dim, 0)
            return slice(start, start + known(index.size) * index.stride, index.stride)

        chosen: Any = ...
        for dims in self._indices:
            array = array[(*map(key, array.shape, dims), ...)]
            if any(isinstance(index, memory.Chosen) for index in dims):
                chosen = tuple(
                    np.minimum(np.maximum(leaves[index.leaf], 0), dim - 1)
                    if isinstance(index, memory.Chosen)
                    else slice(None)
                    for dim, index in zip(array.shape, dims, strict=True)
                )
        return array, chosen


def _dtype_after(dtype: np.dtype, steps: Sequence[memory.CopyingLate]) -> np.dtype:
    recasts = (Bitcast, memory.Pack, memory.Unpack)
    forms = [step.dtype for step in steps if isinstance(step, recasts)]
    return forms[-1] if forms else dtype
