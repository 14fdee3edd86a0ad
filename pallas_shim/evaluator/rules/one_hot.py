"""Rules of what the pass `one_hot` makes: elements at the places that masks name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pallas_shim.evaluator.program import Array, Types
from pallas_shim.evaluator.registry import impl_rule


@impl_rule("first_true")
def _first_true(ins: Types, outs: Types, *, axes: Any, none: int, **_: Any) -> Callable[..., Any]:
    """The index of the first true element along an axis; ``none`` where there is none."""
    (axis,), dtype = axes, outs[0].dtype
    first = (slice(None),) * axis + (0,)

    def run(mask: Array) -> Array:
        at = mask.argmax(axis)  # 0 if none is true
        found = np.logical_or(at, mask[first])
        if not np.logical_and.reduce(found, axis=None):
            at = np.where(found, at, none)[()]
        return at.astype(dtype)

    return run


@impl_rule("one_hot_get")
def _one_hot_get(ins: Types, outs: Types, *, axes: Any, **_: Any) -> Callable[..., Any]:
    """The sum along an axis of zeros and the element at a place; of zeros, if it is outside.
    Operands: the array, the places."""
    (axis,), zero = axes, outs[0].dtype.type(0)
    index = _Index(ins[0].shape, axis)

    def run(x: Array, places: Array) -> Array:
        at, inside = index(places)
        found = x[at] + zero  # which a sum makes of -0.0, too
        return found if inside is None else np.where(inside, found, zero)[()]

    return run


@impl_rule("one_hot_set")
def _one_hot_set(ins: Types, outs: Types, *, axis: int, **_: Any) -> Callable[..., Any]:
    """A copy of an array with a number at the place along an axis, unless that is outside.
    Operands: the array, the places, the number."""
    index = _Index(ins[0].shape, axis)

    def run(x: Array, places: Array, number: Array) -> Array:
        result = x.copy(order="K")
        at, inside = index(places)
        result[at] = number if inside is None else np.where(inside, number, x[at])
        return result

    return run


class _Index:
    """Makes the index of one element in each line along an axis."""

    def __init__(self, shape: tuple[int, ...], axis: int) -> None:
        self.axis, self.size = axis, shape[axis]
        self.lines = (*shape[:axis], *shape[axis + 1 :])
        # A place that is the same along all of another axis has size 1 there, or no such axis.
        self.whole = (*shape[:axis], 1, *shape[axis + 1 :])
        self.first = (slice(None),) * axis + (0,)
        self.others = np.ogrid[tuple(map(slice, self.lines))]

    def __call__(self, places: Array) -> tuple[tuple[Array, ...], Array | None]:
        """The index, and which places are inside; None if all are. Outside, the index is 0."""
        if places.shape != self.whole:
            places = np.broadcast_to(places, self.whole)
        at = places[self.first]
        inside = None
        # As unsigned numbers, negative ones are too large.
        if np.maximum.reduce(at.view(f"u{at.dtype.itemsize}"), axis=None) >= self.size:
            inside = (at >= 0) & (at < self.size)
            at = np.where(inside, at, 0)
        return (*self.others[: self.axis], at, *self.others[self.axis :]), inside
