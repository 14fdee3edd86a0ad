"""DMAs that gather from, or scatter to, the rows named by an array, as on a SparseCore."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator import memory, refs
from pallas_shim.evaluator.dynamic_slices import DynamicSlices
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.program import PURE, Array, ArrayType, Effects, RefType, Value
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.jax_compat import state


class Rows(NamedTuple):
    """One side of a DMA: the part of ``view`` that the ``indices`` choose along its dimensions
    ``axes``. Each index is an array, or a view of a ref that holds one. Without indices, the side
    is the whole view. Places with the index ``ignored`` are left out, unless it is None."""

    view: state.RefView
    axes: tuple[int, ...]
    indices: tuple[Any, ...]
    ignored: int | None


def rows(view: state.RefView) -> Rows:
    """Splits arrays of indices in the last step off a view.

    Raises:
      Unsupported: there are scalars beside the arrays of indices.
    """
    before, last = view.steps[:-1], view.steps[-1] if view.steps else None
    if not isinstance(last, state.Index) or not any(map(_is_array, last.dims)):
        return Rows(view, (), (), None)
    axes = tuple(i for i, dim in enumerate(last.dims) if not isinstance(dim, state.Slice))
    chosen = [last.dims[axis] for axis in axes]
    if not all(map(_is_array, chosen)):
        raise Unsupported("dma_start", "array indices beside scalars in its ref")
    shape, _ = memory.viewed_type(view.ref.type.shape, view.ref.type.dtype, before)
    whole = tuple(
        state.Slice(0, shape[axis], 1) if axis in axes else dim
        for axis, dim in enumerate(last.dims)
    )
    marked = {index.ignored for index in chosen if isinstance(index, state.Marked)}
    if marked and len(chosen) > 1:
        raise Unsupported("dma_start", "ignored indices beside others in its ref")
    values = tuple(index.values if isinstance(index, state.Marked) else index for index in chosen)
    whole_view = view._replace(steps=(*before, state.Index(whole)))
    return Rows(whole_view, axes, values, marked.pop() if marked else None)


class ArrayView(NamedTuple):
    """A side of a DMA with its indices loaded. ``mask``: the elements that are copied, if not
    all."""

    view: state.RefView
    mask: Value | None


def with_arrays(lowering: Lowering, view: state.RefView) -> ArrayView:
    """A side of a DMA in the form that checks take."""
    chosen = rows(view)
    if not chosen.indices:
        return ArrayView(view, None)
    last = chosen.view.steps[-1]
    assert isinstance(last, state.Index)
    dims = list(last.dims)
    for axis, index in zip(chosen.axes, chosen.indices, strict=True):
        dims[axis] = _loaded(lowering, index)
    exact = chosen.view._replace(steps=(*chosen.view.steps[:-1], state.Index(tuple(dims))))
    if chosen.ignored is None:
        return ArrayView(exact, None)
    (index,) = (dims[axis] for axis in chosen.axes)
    behind = len(type_of(chosen).shape) - _place(chosen.axes) - len(index.type.shape)
    type = ArrayType((*index.type.shape, *[1] * behind), np.dtype(np.bool_))
    ignored = chosen.ignored

    def kept(indices: Array) -> Array:
        return (np.asarray(indices) != ignored).reshape(type.shape)

    (mask,) = lowering.memory("check_mask", [index], [type], kept, PURE)
    return ArrayView(exact, mask)


def _is_array(index: Any) -> bool:
    if isinstance(index, (state.RefView, state.Marked)):
        return True
    return isinstance(index, Value) and bool(index.type.shape)


def type_of(chosen: Rows) -> ArrayType:
    """The type of one side of a DMA."""
    view, axes, indices, _ = chosen
    path, _ = refs.path_of(view)
    shape, dtype = memory.viewed_type(view.ref.type.shape, view.ref.type.dtype, path)
    if indices:
        counts = {_indices_type(index)[0] for index in indices}
        place = _place(axes)
        kept = [dim for axis, dim in enumerate(shape) if axis not in axes]
        shape = (*kept[:place], *np.broadcast_shapes(*counts), *kept[place:])
    return ArrayType(shape, dtype)


def _place(axes: tuple[int, ...]) -> int:
    """The place of the indices' dimensions in the chosen part. As in NumPy, they stand at the first
    of ``axes`` if these are adjacent, else in front."""
    return axes[0] if axes[-1] - axes[0] == len(axes) - 1 else 0


def _indices_type(indices: Value | state.RefView) -> tuple[tuple[int, ...], np.dtype]:
    if isinstance(indices, Value):
        return indices.type.shape, indices.type.dtype
    path, _ = refs.path_of(indices)
    return memory.viewed_type(indices.ref.type.shape, indices.ref.type.dtype, path)


def copy(lowering: Lowering, dma: state.Dma) -> ArrayType:
    """Emits the copy; returns the type of the copied part."""
    if lowering.checked is not None:
        raise Unsupported("dma_start", "array indices in checked memory")
    from_, to = _operands(lowering, dma.src), _operands(lowering, dma.dst)
    if from_.type != to.type:
        raise Unsupported("dma_start", f"a DMA from {from_.type} to {to.type}")
    if from_.side.ignored is not None and to.side.arrays:
        raise Unsupported("dma_start", "ignored indices of a source, and indices of a target")
    source, target, count, add = from_.side, to.side, len(from_.leaves), dma.add

    def run(src: Array, dst: Array, *leaves: Array) -> tuple[()]:
        given = source.cut.read(src, leaves[:count])
        target.put(dst, leaves[count:], given, add, source.kept(leaves[:count], given.ndim))
        return ()

    lowering.memory(
        "dma_start", [from_.ref, to.ref, *from_.leaves, *to.leaves], [], run,
        Effects(reads=(0, 1) if add else (0,), writes=(1,)), key=(from_.key, to.key, add),
    )
    return from_.type


class _Operands(NamedTuple):
    """The operands of one side of the DMA, and the operation on them. The indices are the last
    leaves. Instances are equal if their ``key`` is."""

    side: _Side
    key: tuple[Any, ...]
    type: ArrayType
    ref: Value
    leaves: list[Value]


def _operands(lowering: Lowering, view: state.RefView) -> _Operands:
    chosen = rows(view)
    type, (view, axes, indices, ignored) = type_of(chosen), chosen
    path, leaves = refs.path_of(view)
    if indices:
        (*before, last) = path
        assert isinstance(last, state.Index)
        dims = list(last.dims)
        for leaf, axis in enumerate(axes, len(leaves)):
            dims[axis] = memory.Chosen(leaf)
        path = (*before, state.Index(tuple(dims)))
    leaves = [*leaves, *(_loaded(lowering, index) for index in indices)]
    cut = DynamicSlices(view.ref.type.shape, view.ref.type.dtype, path)
    rank = len(_indices_type(indices[0])[0]) if indices else 0
    side = _Side(cut, len(indices), rank, _place(axes) if axes else 0, ignored)
    return _Operands(side, (path, ignored), type, view.ref, leaves)


class _Side(NamedTuple):
    """Describes the writes to one side of the DMA. The last ``arrays`` leaves are indices of
    ``rank`` dimensions, which stand at ``place`` in the chosen part."""

    cut: DynamicSlices
    arrays: int
    rank: int
    place: int
    ignored: int | None

    def kept(self, leaves: Sequence[Any], ndim: int) -> Any:
        """The mask of the places to copy. It broadcasts over the copied part of the source."""
        if self.ignored is None:
            return True
        kept = np.asarray(leaves[-1]) != self.ignored
        return kept.reshape(kept.shape + (1,) * (ndim - self.place - self.rank))

    def put(
        self, ref: np.ndarray, leaves: Sequence[Any], value: np.ndarray, add: bool, kept: Any
    ) -> None:
        if not self.arrays:
            self.cut.change(ref, leaves, _put(value, add, kept))
            return
        basic, indices = leaves[: -self.arrays], [np.ravel(i) for i in leaves[-self.arrays :]]
        before, after = value.shape[: self.place], value.shape[self.place + self.rank :]
        value = value.reshape(*before, -1, *after)
        if self.ignored is not None:
            valid = indices[0] != self.ignored
            indices, value = [indices[0][valid]], value.compress(valid, self.place)
        number = indices[0].size
        # If two additions go to one place, both count, so each is made by itself.
        for part in [slice(i, i + 1) for i in range(number)] if add else [slice(number)]:
            given = value[(slice(None),) * self.place + (part,)]
            chosen = [index[part] for index in indices]
            self.cut.change(ref, (*basic, *chosen), _put(given, add, True))


def _put(value: np.ndarray, add: bool, kept: Any) -> Callable[[np.ndarray], None]:
    return lambda into: np.copyto(into, into + value if add else value, where=kept)


def _loaded(lowering: Lowering, indices: Value | state.RefView) -> Value:
    if isinstance(indices, Value):
        if not isinstance(indices.type, RefType):
            return indices
        indices = state.RefView(indices, ())
    path, leaves = refs.path_of(indices)
    type = ArrayType(*_indices_type(indices))
    value = refs.load(lowering, indices.ref, path, leaves, type)
    return value if lowering.checker is None else lowering.checker.read(indices, value)
