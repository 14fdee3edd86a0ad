"""Rules that read and write parts of an array at computed positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.program import Array, Types
from pallas_shim.evaluator.registry import Stack, Unsupported, batch_rule, impl_rule
from pallas_shim.evaluator.rules.sort import order_bits, sortable

Shape = tuple[int, ...]

_UNSIGNED = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}


# -- one window --------------------------------------------------------------------------------


def _window_at(shape: Shape, sizes: Shape, axes: Sequence[int]) -> Callable[..., Any]:
    """A callable that takes start positions along ``axes``, clamps them, and returns the index of a
    window."""
    index = [slice(size) for size in sizes]
    moving = [
        (i, axis, shape[axis] - sizes[axis], sizes[axis])
        for i, axis in enumerate(axes)
        if sizes[axis] != shape[axis]
    ]

    def at(starts: Sequence[Any]) -> tuple[slice, ...]:
        result = index.copy()
        for i, axis, last, size in moving:
            start = min(max(int(starts[i]), 0), last)
            result[axis] = slice(start, start + size)
        return tuple(result)

    return at


@impl_rule("dynamic_slice", view=True, keys=True)
def _dynamic_slice(ins: Types, outs: Types, *, slice_sizes: Any, **_: Any) -> Callable[..., Any]:
    at = _window_at(ins[0].shape, outs[0].shape, range(len(slice_sizes)))
    return lambda x, *starts: x[at(starts)]


@impl_rule("dynamic_update_slice", keys=True)
def _dynamic_update_slice(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    at = _window_at(ins[0].shape, ins[1].shape, range(len(ins) - 2))

    def update(x: Array, window: Array, *starts: Array) -> Array:
        out = np.array(x)
        out[at(starts)] = window
        return out

    return update


# -- a window for each of many index vectors ---------------------------------------------------


class _Windows:
    """The windows of an operand that a gather reads, or that a scatter writes.

    The operand is seen as (planes, rows, row). Every window covers the leading dimensions (planes)
    and the trailing dimensions (row) whole. Windows differ along the dimensions between (rows). A
    window is a set of rows, the same in each plane. The gather's result and the scatter's updates
    are seen as (planes, windows, rows of a window x row).
    """

    def __init__(
        self,
        shape: Shape,
        batch: Shape,
        sizes: Shape,
        window_dims: Sequence[int],
        dropped: Sequence[int],
        index_map: Sequence[int],
        batching: Sequence[tuple[int, int]],
    ) -> None:
        """
        Args:
          shape: the operand's shape.
          batch: the shape of the array of index vectors.
          sizes: a window's size along each of the operand's dimensions.
          window_dims: the dimensions of the result that belong to a window.
          dropped: the operand's dimensions, of window size 1, that the result does not have.
          index_map: the operand's dimension for each component of an index vector.
          batching: pairs of a dimension of the operand and the same dimension of ``batch``.
        """
        partial = [d for d, length in enumerate(shape) if sizes[d] != length]
        first, end = (partial[0], partial[-1] + 1) if partial else (0, 0)
        stride = {d: _product(shape[d + 1 : end]) for d in range(first, end)}
        self.planes = _product(shape[:first])
        self.rows = _product(shape[first:end])
        self.row = _product(shape[end:])
        self.number = _product(batch)
        self.single = self.number == 1 and not batching
        self.components = len(index_map)
        self.lasts = [shape[d] - sizes[d] for d in index_map]
        self.last = np.array(self.lasts, np.int64)
        self.strides = np.array([stride.get(d, 0) for d in index_map], np.int64)

        kept = [d for d in range(len(shape)) if d not in dropped]
        grid = _grid(batch, ((of, stride.get(d, 0)) for d, of in batching))
        inner = [d for d in kept if d in stride]
        window = _grid([sizes[d] for d in inner], enumerate(stride[d] for d in inner))
        # The positions of a window's rows, relative to the position that its index vector gives.
        self.offsets = window.reshape(1, -1)
        if batching:
            self.offsets = self.offsets + grid.reshape(-1, 1)

        # The result's dimensions in the order (planes, windows, rows of a window, row).
        dim_of = dict(zip(kept, window_dims, strict=True))
        batch_dims = [d for d in range(len(batch) + len(kept)) if d not in window_dims]
        planes, rest = [d for d in kept if d < first], [d for d in kept if d >= first]
        self.order = (*(dim_of[d] for d in planes), *batch_dims, *(dim_of[d] for d in rest))
        self.inverse = tuple(map(int, np.argsort(self.order)))
        self.ordered = (*(sizes[d] for d in planes), *batch, *(sizes[d] for d in rest))

    def starts(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The index vectors, (windows, components), and a mask of the windows inside the operand.
        The mask is None if all windows are inside."""
        if indices.dtype != np.uint64 and self.are_inside(indices):
            return indices.reshape(self.number, self.components), None
        starts = _as_int64(indices).reshape(self.number, self.components)
        inside: np.ndarray = starts.view(np.uint64) <= self.last.view(np.uint64)
        return starts, None if inside.all() else np.all(inside, axis=1)

    def are_inside(self, indices: np.ndarray) -> bool:
        """Whether all windows are inside. It takes one pass, since as unsigned numbers, negative
        ones are too large."""
        unsigned = indices.view(_UNSIGNED[indices.dtype.itemsize])
        return all(
            np.maximum.reduce(unsigned[..., component], axis=None) <= last
            for component, last in enumerate(self.lasts)
        )

    def all_inside(self, starts: Sequence[int]) -> bool:
        return all(0 <= start <= last for start, last in zip(starts, self.lasts, strict=True))

    def clamp(self, starts: np.ndarray) -> np.ndarray:
        return np.minimum(np.maximum(starts, 0), self.last)

    def positions(self, starts: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """The positions of the windows' rows, (windows * rows of a window)."""
        if self.components == 1 and self.strides[0] == 1:
            return (starts + offsets).reshape(-1)
        # In a narrow type, if that holds them all. (NumPy has no fast product of integer matrices.)
        narrow = self.rows <= np.iinfo(starts.dtype).max
        of = starts.dtype if narrow else self.strides.dtype
        at = np.zeros(len(starts), of)
        for component, stride in enumerate(self.strides.tolist()):
            at += starts[:, component] * of.type(stride)
        return (at[:, None] + offsets).reshape(-1)

    def to_result(self, rows: np.ndarray) -> np.ndarray:
        return rows.reshape(self.ordered).transpose(self.inverse)

    def from_updates(self, updates: np.ndarray) -> np.ndarray:
        return updates.transpose(self.order).reshape(self.planes, self.number, -1)


def _grid(shape: Sequence[int], strides: Iterable[tuple[int, int]]) -> np.ndarray:
    """An array of sums of positions times strides. They are given for some of its dimensions."""
    total = np.zeros(shape, np.int64)
    for dim, stride in strides:
        line = np.arange(shape[dim]) * stride
        total += line.reshape([-1 if d == dim else 1 for d in range(len(shape))])
    return total


def _as_int64(indices: np.ndarray) -> np.ndarray:
    if indices.dtype == np.uint64:
        indices = np.minimum(indices, np.uint64(np.iinfo(np.int64).max))
    return indices.astype(np.int64)


def _product(sizes: Sequence[int]) -> int:
    return int(np.prod(sizes, dtype=np.int64))


def _mode(primitive: str, mode: Any) -> str:
    if mode.name not in ("CLIP", "FILL_OR_DROP", "PROMISE_IN_BOUNDS"):
        raise Unsupported(primitive, f"the mode {mode.name} is not one of XLA's on CPUs")
    return mode.name


# -- gather ------------------------------------------------------------------------------------


@impl_rule("gather", keys=True)
def _gather(
    ins: Types,
    outs: Types,
    *,
    dimension_numbers: Any,
    slice_sizes: Any,
    mode: Any,
    fill_value: Any,
    from_end: bool = False,
    **_: Any,
) -> Callable[..., Any]:
    dnums, operand = dimension_numbers, ins[0]
    shape, dtype = outs[0]
    fills = _mode("gather", mode) == "FILL_OR_DROP"
    if not outs[0].size:
        return lambda x, indices: np.empty(shape, dtype)
    # Every window has all dimensions of a PRNG key. The parameters don't count these dimensions.
    hidden = operand.ndim - len(slice_sizes)
    sizes = (*slice_sizes, *operand.shape[len(slice_sizes) :])
    windows = _Windows(
        operand.shape,
        ins[1].shape[:-1],
        sizes,
        (*dnums.offset_dims, *range(len(shape) - hidden, len(shape))),
        (*dnums.collapsed_slice_dims, *dnums.operand_batching_dims),
        dnums.start_index_map,
        tuple(zip(dnums.operand_batching_dims, dnums.start_indices_batching_dims, strict=True)),
    )
    fill = np.asarray(fill_value).astype(dtype) if fills else None
    # JAX narrows indices before it decides what to fill. Narrowing brings some indices into bounds.
    narrows = fills and ins[1].dtype.itemsize == 8 and max(operand.shape, default=0) < 1 << 31

    if windows.single:
        at = _window_at(operand.shape, sizes, dnums.start_index_map)

        def gather_one(x: Array, indices: Array) -> Array:
            if narrows:
                indices = indices.astype(np.int32)
            starts = _as_int64(indices).reshape(-1).tolist()
            if fills and not windows.all_inside(starts):
                return np.full(shape, fill)
            return np.array(x[at(starts)]).reshape(shape)

        return gather_one

    size = operand.shape[dnums.start_index_map[0]] if from_end else 0

    def gather(x: Array, indices: Array) -> Array:
        if narrows:
            indices = indices.astype(np.int32)
        starts, inside = windows.starts(indices)
        if from_end and inside is not None:
            indices = np.where(indices < 0, indices + indices.dtype.type(size), indices)
            starts, inside = windows.starts(indices)
        if inside is not None:
            starts = windows.clamp(starts)
        at = windows.positions(starts, windows.offsets)
        rows = x.reshape(windows.planes, windows.rows, windows.row).take(at, 1)
        if fills and inside is not None:
            rows.reshape(windows.planes, windows.number, -1)[:, ~inside] = fill
        return windows.to_result(rows)

    return gather


@impl_rule("gather_from_end")  # a pass makes it
def _gather_from_end(ins: Types, outs: Types, **params: Any) -> Callable[..., Any]:
    """A gather by single indices, where negative ones count from the end."""
    return _gather(ins, outs, from_end=True, **params)


# Joining more slices than this costs more than taking each index.
_FEW_RUNS = 4


@impl_rule("take")  # passes make it where positions are known
def _take(ins: Types, outs: Types, *, indices: Any, axis: Any, **_: Any) -> Callable[..., Any]:
    shape, size = ins[0].shape, ins[0].shape[axis]
    before = (slice(None),) * axis
    breaks = np.flatnonzero(np.diff(indices) != 1) + 1
    if len(breaks) <= _FEW_RUNS:
        runs = [
            (*before, slice(int(run[0]), int(run[-1]) + 1)) for run in np.split(indices, breaks)
        ]
        return lambda x: np.concatenate([x[run] for run in runs], axis)
    # Whole runs are taken if all begin and end at multiples of one length.
    length = math.gcd(size, len(indices), *breaks.tolist(), *indices[[0, *breaks]].tolist())
    if length == 1:
        first, last = int(indices.min()), int(indices.max())
        window, moved = (*before, slice(first, last + 1)), indices - first

        def take(x: Array) -> Array:
            if x.flags.c_contiguous:
                return x.take(indices, axis)
            return x[window].take(moved, axis)  # NumPy takes from a copy

        return take
    rows = indices[::length] // length
    parted = (*shape[:axis], size // length, length, *shape[axis + 1 :])
    return lambda x: x.reshape(parted).take(rows, axis).reshape(outs[0].shape)


@batch_rule("take")
def _take_batch(stack: Stack, *, indices: Any, axis: int, **_: Any) -> Mapping[str, Any] | None:
    return {"indices": indices, "axis": axis + 1}


@batch_rule("gather", unstacked=(1,))
def _gather_batch(
    stack: Stack, *, dimension_numbers: Any, slice_sizes: Any, **params: Any
) -> Mapping[str, Any] | None:
    dnums = dimension_numbers
    shifted = dnums._replace(
        collapsed_slice_dims=_behind(dnums.collapsed_slice_dims),
        start_index_map=_behind(dnums.start_index_map),
        operand_batching_dims=_behind(dnums.operand_batching_dims),
        offset_dims=_behind(dnums.offset_dims),
    )
    if stack.shared[1]:  # each window reaches through the stack
        shifted = shifted._replace(offset_dims=(0, *shifted.offset_dims))
        return {"dimension_numbers": shifted, "slice_sizes": (stack.size, *slice_sizes), **params}
    index_dims = (0, *_behind(dnums.start_indices_batching_dims))
    shifted = shifted._replace(
        operand_batching_dims=(0, *shifted.operand_batching_dims),
        start_indices_batching_dims=index_dims,
    )
    return {"dimension_numbers": shifted, "slice_sizes": (1, *slice_sizes), **params}


# -- scatter -----------------------------------------------------------------------------------


class _Update:
    """The function of lax.scatter_apply, with an ``at`` method like that of a ufunc."""

    def __init__(self, jaxpr: Any, consts: Sequence[Any]) -> None:
        self.run = Executable(lower(jaxpr, consts, "scatter_apply"))

    def at(self, out: np.ndarray, positions: np.ndarray, updates: np.ndarray) -> None:
        for i, update in zip(positions.tolist(), updates, strict=True):
            (out[i],) = self.run(out[i], update)


def _scatter(
    combine: np.ufunc | _Update | None,
    ins: Types,
    outs: Types,
    *,
    primitive: Any,
    dimension_numbers: Any,
    mode: Any,
) -> Callable[..., Any]:
    """A callable that scatters. It assigns if ``combine`` is None. Updates apply in order."""
    dnums, (operand, indices, updates) = dimension_numbers, ins
    clips = _mode(primitive, mode) == "CLIP"
    if not updates.size:
        return lambda x, indices, updates: np.array(x)
    dropped = (*dnums.inserted_window_dims, *dnums.operand_batching_dims)
    # As in gather, every window has all dimensions of a PRNG key.
    hidden = operand.ndim - len(dropped) - len(dnums.update_window_dims)
    window_dims = (*dnums.update_window_dims, *range(updates.ndim - hidden, updates.ndim))
    kept = iter(window_dims)
    sizes = tuple(1 if d in dropped else updates.shape[next(kept)] for d in range(operand.ndim))
    windows = _Windows(
        operand.shape,
        indices.shape[:-1],
        sizes,
        window_dims,
        dropped,
        dnums.scatter_dims_to_operand_dims,
        tuple(zip(dnums.operand_batching_dims, dnums.scatter_indices_batching_dims, strict=True)),
    )
    if windows.single and max(windows.lasts, default=0) > np.iinfo(indices.dtype).max:
        raise Unsupported(
            primitive,
            f"XLA compares an index of type {indices.dtype.name} with a length that this type "
            "can't hold; use int32 indices",
        )
    if windows.single and not isinstance(combine, _Update):
        window_at = _window_at(operand.shape, sizes, dnums.scatter_dims_to_operand_dims)

        def scatter_one(x: Array, indices: Array, updates: Array) -> Array:
            out = np.array(x, order="C")
            starts = _as_int64(indices).reshape(-1).tolist()
            if clips or windows.all_inside(starts):
                window, values = window_at(starts), updates.reshape(sizes)
                out[window] = values if combine is None else combine(out[window], values)
            return out

        return scatter_one
    planes, row = windows.planes, windows.row
    elements = np.arange(planes).reshape(-1, 1, 1) * windows.rows * row + np.arange(row)

    def scatter(x: Array, indices: Array, updates: Array) -> Array:
        out = np.array(x, order="C")
        starts, inside = windows.starts(indices)
        values, offsets = windows.from_updates(updates), windows.offsets
        if inside is not None:
            if clips:
                starts = windows.clamp(starts)
            else:
                starts, values = starts[inside], values[:, inside]
                offsets = offsets[inside] if len(offsets) > 1 else offsets
        at = windows.positions(starts, offsets)
        if combine is None:
            out.reshape(planes, -1, row)[:, at] = values.reshape(planes, -1, row)
        else:
            flat = (at.reshape(-1, 1) * row + elements).reshape(-1)
            combine.at(out.reshape(-1), flat, values.reshape(-1))
        return out

    return scatter


@impl_rule("scatter", keys=True)
def _scatter_set(
    ins: Types,
    outs: Types,
    *,
    update_jaxpr: Any,
    update_consts: Any,
    dimension_numbers: Any,
    mode: Any,
    **_: Any,
) -> Callable[..., Any]:
    combine = None if update_jaxpr is None else _Update(update_jaxpr, update_consts)
    return _scatter(
        combine, ins, outs, primitive="scatter", dimension_numbers=dimension_numbers, mode=mode
    )


def _scatter_ufunc(primitive: str, ufunc: np.ufunc) -> Callable[..., Any]:
    @impl_rule(primitive)
    def make(
        ins: Types, outs: Types, *, dimension_numbers: Any, mode: Any, **_: Any
    ) -> Callable[..., Any]:
        return _scatter(
            ufunc, ins, outs, primitive=primitive, dimension_numbers=dimension_numbers, mode=mode
        )

    return make


_scatter_ufunc("scatter-add", np.add)
_scatter_ufunc("scatter-sub", np.subtract)
_scatter_ufunc("scatter-mul", np.multiply)


def _scatter_extremum(primitive: str, ufunc: np.ufunc, nan: str) -> Callable[..., Any]:
    @impl_rule(primitive)
    def make(
        ins: Types, outs: Types, *, dimension_numbers: Any, mode: Any, **_: Any
    ) -> Callable[..., Any]:
        dtype, wide = outs[0].dtype, sortable(outs[0].dtype)
        if wide.kind == "c":
            raise Unsupported(primitive, "complex numbers have no order")
        scatter = _scatter(
            ufunc, ins, outs, primitive=primitive, dimension_numbers=dimension_numbers, mode=mode
        )
        if wide.kind != "f":
            return scatter
        # XLA orders -0.0 before 0.0. NumPy doesn't, so it gets integers in XLA's order.
        bits = np.dtype(f"i{wide.itemsize}")
        nan_bits = getattr(np.iinfo(bits), nan)

        def encode(x: Array) -> Array:
            x = x.astype(wide, copy=False)
            return np.where(x != x, nan_bits, order_bits(x))

        return lambda x, indices, updates: (
            order_bits(scatter(encode(x), indices, encode(updates))).view(wide).astype(dtype)
        )

    return make


_scatter_extremum("scatter-max", np.maximum, "max")
_scatter_extremum("scatter-min", np.minimum, "min")


@batch_rule(
    "scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-max", "scatter-min",
    unstacked=(1,),
)
def _scatter_batch(
    stack: Stack, *, dimension_numbers: Any, **params: Any
) -> Mapping[str, Any] | None:
    dnums = dimension_numbers
    shifted = dnums._replace(
        update_window_dims=_behind(dnums.update_window_dims),
        inserted_window_dims=_behind(dnums.inserted_window_dims),
        scatter_dims_to_operand_dims=_behind(dnums.scatter_dims_to_operand_dims),
        operand_batching_dims=_behind(dnums.operand_batching_dims),
    )
    if stack.shared[1]:  # each window reaches through the stack
        shifted = shifted._replace(update_window_dims=(0, *shifted.update_window_dims))
    else:
        shifted = shifted._replace(
            operand_batching_dims=(0, *shifted.operand_batching_dims),
            scatter_indices_batching_dims=(0, *_behind(dnums.scatter_indices_batching_dims)),
        )
    return {"dimension_numbers": shifted, **params}


def _behind(dims: Iterable[int]) -> tuple[int, ...]:
    return tuple([d + 1 for d in dims])
