"""Refs indexed by arrays: the same results as JAX's discharge.

Discharging would take JAX milliseconds of tracing for each load or store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import lax

from pallas_shim.evaluator import refs
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.program import ArrayType, KeyType, Value
from pallas_shim.jax_compat import state

_INT32, _BOOL = np.dtype(np.int32), np.dtype(np.bool_)


class Along(NamedTuple):
    """The places along one dimension of a ref. ``axes``: the axes of the result along which the
    array's axes lie. ``known``: no place counts from the end."""

    array: Value
    axes: tuple[int, ...]
    known: bool


Indices = Sequence[Along]


def indices(lowering: Lowering, view: state.RefView, shape: tuple[int, ...]) -> Indices | None:
    """The places along each dimension of a ref. The view must have one array of the result's
    ``shape`` for each dimension, or one vector beside slices. None for any other view."""
    type = view.ref.type
    if lowering.checked is not None or type.key_ndim or 0 in type.shape or not shape:
        return None
    if len(view.steps) != 1 or not isinstance(view.steps[0], state.Index):
        return None
    dims = view.steps[0].dims
    if all(_is_array(dim, shape) for dim in dims):
        return [Along(dim, tuple(range(len(shape))), False) for dim in dims]
    vectors = [axis for axis, dim in enumerate(dims) if not isinstance(dim, state.Slice)]
    if len(vectors) != 1 or len(dims) != len(shape):
        return None
    found = []
    for axis, (dim, size) in enumerate(zip(dims, type.shape, strict=True)):
        if isinstance(dim, state.Slice):
            inside = _in_slice(dim, size)
            if inside is None:
                return None
            found.append(Along(lowering.const(inside), (axis,), True))
        elif _is_array(dim, (shape[axis],)):
            found.append(Along(dim, (axis,), False))
        else:
            return None
    return found


def of_slices(lowering: Lowering, view: state.RefView) -> Indices | None:
    """The places of slices with any strides, and of single indices; None for any other view."""
    type = view.ref.type
    if len(view.steps) != 1 or not isinstance(view.steps[0], state.Index) or 0 in type.shape:
        return None
    found, axis = [], 0
    axes: tuple[int, ...]
    for dim in view.steps[0].dims:
        if isinstance(dim, state.Slice):
            steps = lowering.const(dim.stride * np.arange(dim.size, dtype=np.int32))
            start, axes = dim.start, (axis,)
            axis += 1
        else:
            steps, start, axes = lowering.const(np.int32(0)), dim, ()
        start = lowering.const(np.int32(start)) if isinstance(start, int) else start
        if start.type != ArrayType((), _INT32):
            return None
        (place,) = lowering.apply("add", [steps, start], [steps.type], {})
        found.append(Along(place, axes, True))
    return found


def masked(lowering: Lowering, indices: Indices, dims: Sequence[int], mask: Value) -> Indices:
    """The places, with masked-out ones moved outside the array. Nothing is stored there."""
    (index, axes, known), *others = indices
    shape = mask.type.shape
    spread = {"shape": shape, "broadcast_dimensions": axes, "sharding": None}
    full = ArrayType(shape, _INT32)
    (index,) = lowering.apply("broadcast_in_dim", [index], [full], spread)
    outside = {"shape": shape, "broadcast_dimensions": (), "sharding": None}
    size = lowering.const(np.int32(dims[0]))
    (nowhere,) = lowering.apply("broadcast_in_dim", [size], [full], outside)
    (index,) = lowering.apply("select_n", [mask, nowhere, index], [full], {})
    return [Along(index, tuple(range(len(shape))), known), *others]


def _is_array(dim: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(dim, Value) and dim.type == ArrayType(shape, _INT32)


def _in_slice(dim: state.Slice, size: int) -> np.ndarray | None:
    """The indices in a slice. None if they aren't known or leave the dimension."""
    if not isinstance(dim.start, int):
        return None
    places = dim.start + dim.stride * np.arange(dim.size, dtype=np.int32)
    return places if not places.size or 0 <= places[0] and places[-1] < size else None


def load(
    lowering: Lowering, ref: Value, indices: Indices, out: ArrayType | KeyType
) -> Value:
    """Emits a load of the elements at these places."""
    whole = refs.load(lowering, ref, (), (), ref.ref.contents)
    return _gathered(lowering, whole, indices, out)


def store(lowering: Lowering, ref: Value, indices: Indices, value: Value) -> None:
    """Emits a store of ``value`` to these places. Places outside are skipped."""
    whole = refs.load(lowering, ref, (), (), ref.ref.contents)
    refs.store(lowering, ref, (), (), _scattered(lowering, whole, indices, value))


def _gathered(
    lowering: Lowering, array: Value, indices: Indices, out: ArrayType | KeyType
) -> Value:
    axes = tuple(range(len(indices)))
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(), collapsed_slice_dims=axes, start_index_map=axes
    )
    params = {
        "dimension_numbers": numbers, "slice_sizes": (1,) * len(axes), "fill_value": None,
        "mode": lax.GatherScatterMode.PROMISE_IN_BOUNDS,
        "indices_are_sorted": False, "unique_indices": False,
    }  # fmt: skip
    places = _places(lowering, indices, array.type.shape, out.shape)
    (elements,) = lowering.apply("gather", [array, places], [out], params)
    return elements


def _scattered(lowering: Lowering, array: Value, indices: Indices, value: Value) -> Value:
    axes = tuple(range(len(indices)))
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=(), inserted_window_dims=axes, scatter_dims_to_operand_dims=axes
    )
    params = {
        "dimension_numbers": numbers, "update_jaxpr": None, "update_consts": (),
        "mode": lax.GatherScatterMode.FILL_OR_DROP,
        "indices_are_sorted": False, "unique_indices": False,
    }  # fmt: skip
    places = _places(lowering, indices, array.type.shape, value.type.shape)
    (changed,) = lowering.apply("scatter", [array, places, value], [array.type], params)
    return changed


def _places(
    lowering: Lowering, indices: Indices, dims: Sequence[int], shape: tuple[int, ...]
) -> Value:
    """Coordinates along a last axis, negative ones counted from the end."""
    column = ArrayType((*shape, 1), _INT32)
    zero = lowering.const(np.int32(0))
    columns: list[Value] = []
    for (index, axes, known), dim in zip(indices, dims, strict=True):
        if not known:
            is_negative = ArrayType(index.type.shape, _BOOL)
            (from_end,) = lowering.apply("lt", [index, zero], [is_negative], {})
            size = lowering.const(np.int32(dim))
            (moved,) = lowering.apply("add", [index, size], [index.type], {})
            (index,) = lowering.apply("select_n", [from_end, index, moved], [index.type], {})
        spread = {"shape": column.shape, "broadcast_dimensions": axes, "sharding": None}
        columns += lowering.apply("broadcast_in_dim", [index], [column], spread)
    if len(columns) == 1:
        return columns[0]
    together = ArrayType((*shape, len(columns)), _INT32)
    (places,) = lowering.apply("concatenate", columns, [together], {"dimension": len(shape)})
    return places
