"""DMAs that gather from or scatter to rows that an array of indices names, as on a SparseCore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.program import ArrayType, Effects, RefType, Value
from pallas_shim.evaluator.rules import state as state_rules
from pallas_shim.evaluator.rules.registry import Unsupported
from pallas_shim.jax_compat import state


class Rows(NamedTuple):
    """What one side of a DMA leads to: ``view``, and of its dimension ``axis`` the ``indices``,
    an array or a view of a ref that holds one; of all of it if they are None."""

    view: state.RefView
    axis: int
    indices: Any


def rows(view: state.RefView) -> Rows:
    """Splits an array of indices in the last step off a view.

    Raises:
      Unsupported: there are several, or indices beside it that are no slices.
    """
    before, last = view.steps[:-1], view.steps[-1] if view.steps else None
    if not isinstance(last, state.Index):
        return Rows(view, 0, None)
    dims = last.dims
    places = [place for place, dim in enumerate(dims) if _is_array(dim)]
    if not places:
        return Rows(view, 0, None)
    (place, *others) = places
    if others or not all(isinstance(d, state.Slice) for d in (*dims[:place], *dims[place + 1 :])):
        raise Unsupported("dma_start", "array indices beside others in its ref")
    shape, _ = memory.viewed_type(view.ref.type.shape, view.ref.type.dtype, before)
    whole = state.Index((*dims[:place], state.Slice(0, shape[place], 1), *dims[place + 1 :]))
    return Rows(view._replace(steps=(*before, whole)), place, dims[place])


def _path(view: state.RefView) -> tuple[memory.Path, list[Value]]:
    try:
        return state_rules.path_of(view)
    except state_rules.NotBasic:
        raise Unsupported("dma_start", "array indices beside others in its ref") from None


def _is_array(index: Any) -> bool:
    return isinstance(index, state.RefView) or isinstance(index, Value) and bool(index.type.shape)


def type_of(chosen: Rows) -> ArrayType:
    """The type of what one side leads to."""
    view, axis, indices = chosen
    path, _ = _path(view)
    shape, dtype = memory.viewed_type(view.ref.type.shape, view.ref.type.dtype, path)
    if indices is not None:
        count, _ = _indices_type(indices)
        if len(count) != 1:
            raise Unsupported("dma_start", "array indices of several dimensions in its ref")
        shape = (*shape[:axis], *count, *shape[axis + 1 :])
    return ArrayType(shape, dtype)


def _indices_type(indices: Value | state.RefView) -> tuple[tuple[int, ...], np.dtype]:
    if isinstance(indices, Value):
        return indices.type.shape, indices.type.dtype
    path, _ = _path(indices)
    return memory.viewed_type(indices.ref.type.shape, indices.ref.type.dtype, path)


def copy(lowering, dma: state.Dma) -> ArrayType:
    """Emits the copying; returns the type of what is copied.

    An index outside is moved inside, a negative one to the start.
    """
    if lowering.checked is not None:
        raise Unsupported("dma_start", "array indices in checked memory")
    from_, to = _operands(lowering, dma.src), _operands(lowering, dma.dst)
    if from_.type != to.type:
        raise Unsupported("dma_start", f"a DMA from {from_.type} to {to.type}")
    source, target, count, add = from_.side, to.side, len(from_.leaves), dma.add

    def run(src, dst, *leaves):
        given = source.gather(src, leaves[:count])
        target.scatter(dst, leaves[count:], given, add)
        return ()

    lowering.memory(
        "dma_start", [from_.ref, to.ref, *from_.leaves, *to.leaves], [], run,
        Effects(reads=(0, 1) if add else (0,), writes=(1,)), key=(from_.key, to.key, add),
    )
    return from_.type


class _Operands(NamedTuple):
    """One side of the DMA as operands, of which the indices are the last leaf, and what is done
    with them; equal by ``key``."""

    side: _Side
    key: tuple[Any, ...]
    type: ArrayType
    ref: Value
    leaves: list[Value]


def _operands(lowering, view: state.RefView) -> _Operands:
    chosen = rows(view)
    type, (view, axis, indices) = type_of(chosen), chosen
    path, leaves = _path(view)
    if indices is not None:
        leaves = [*leaves, _loaded(lowering, indices)]
    cut = memory.Cut(view.ref.type.shape, view.ref.type.dtype, path)
    side = _Side(cut, axis, indices is not None)
    return _Operands(side, (path, axis, side.indirect), type, view.ref, leaves)


class _Side(NamedTuple):
    """How one side of the DMA is read or written to."""

    cut: memory.Cut
    axis: int
    indirect: bool

    def gather(self, ref: np.ndarray, leaves: Sequence[Any]) -> np.ndarray:
        whole = self.cut.read(ref, leaves)
        return np.take(whole, leaves[-1], self.axis, mode="clip") if self.indirect else whole

    def scatter(
        self, ref: np.ndarray, leaves: Sequence[Any], value: np.ndarray, add: bool
    ) -> None:
        def change(whole):
            if not self.indirect:
                whole[...] = whole + value if add else value
                return
            at = np.clip(leaves[-1], 0, whole.shape[self.axis] - 1)
            into, value_rows = (np.moveaxis(a, self.axis, 0) for a in (whole, value))
            if not add:
                into[at] = value_rows
                return
            for row, addend in zip(at, value_rows, strict=True):
                into[row] = into[row] + addend

        self.cut.change(ref, leaves, change)


def _loaded(lowering, indices: Value | state.RefView) -> Value:
    if isinstance(indices, Value):
        if not isinstance(indices.type, RefType):
            return indices
        indices = state.RefView(indices, ())
    path, leaves = _path(indices)
    type = ArrayType(*_indices_type(indices))
    return state_rules.load(lowering, indices.ref, path, leaves, type)
