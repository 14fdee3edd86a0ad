"""Checked memory, as under pltpu.InterpretParams(): an index that leaves its ref is an error.

Each index of a path is checked against the dimension that it indexes. A read may instead give
uninitialised elements for indices outside. The user may want that only what leaves a buffer's whole
tiles is outside. There is no memory for the rest of the tiles: reads give uninitialised elements,
and writes leave them out. Ordinary kernels don't use checked memory: their indices
are clamped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator import memory
from pallas_shim.evaluator.memory import Dynamic, Path
from pallas_shim.evaluator.program import Array, RefType
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.jax_compat import InterpretOptions
from pallas_shim.jax_compat.state import Index, Slice


class IndexSpan(NamedTuple):
    """The elements that an index spans: ``extent`` elements from ``start`` on, in a dimension of
    size ``size``."""

    start: int | Dynamic
    extent: int
    size: int


def bounds(checked: InterpretOptions, type: RefType) -> tuple[int, ...]:
    """The sizes that indices of a ref must not leave: the ref's, or those of its tiles.

    Raises:
      Unsupported: JAX can't tell the tiles.
    """
    if not checked.padded or type.space == "smem" or type.space.startswith("semaphore"):
        return type.shape
    try:
        return jax_compat.in_whole_tiles(type.shape, type.dtype)
    except Exception as error:
        reason = f"buffer_bounds='padded': JAX can't tell the tiles of {type}"
        raise Unsupported("InterpretParams", f"{reason}: {error!r}") from error


def unproven(
    shape: tuple[int, ...], dtype: np.dtype, path: Path, limits: tuple[int, ...] | None = None
) -> list[IndexSpan]:
    """The indices of a path that aren't known to stay inside. ``limits``: the sizes that the first
    index must not leave, if not the ref's own."""
    found = []
    for position, step in enumerate(path):
        if not isinstance(step, Index):
            continue
        inside, _ = memory.viewed_type(shape, dtype, path[:position])
        if limits is not None and position == 0:
            inside = limits
        for size, index in zip(inside, step.dims, strict=True):
            span = _span(index, size)
            known = not isinstance(span.start, Dynamic)
            if span.extent and not (known and _is_inside(span.start, span)):
                found.append(span)
    return found


def _span(index: Any, size: int) -> IndexSpan:
    if isinstance(index, Slice):
        extent = (index.size - 1) * index.stride + 1 if index.size else 0
        return IndexSpan(index.start, extent, size)
    return IndexSpan(index, 1, size)


def _is_inside(start: Any, span: IndexSpan) -> bool:
    return 0 <= start <= span.size - span.extent


def check(
    spans: Sequence[IndexSpan], message: str, error: type[Exception]
) -> Callable[..., tuple[()]]:
    """Returns a function of a path's leaves. It raises ``error`` if an index leads outside."""

    def run(*leaves: Array) -> tuple[()]:
        for span in spans:
            start = _at(span.start, leaves)
            if not _is_inside(start, span):
                raise error(
                    f"{message}: {span.extent} elements from {start} on of a dimension of "
                    f"{span.size}. Keep its indices inside it"
                )
        return ()

    return run


def _at(index: Any, leaves: Sequence[Any]) -> int:
    return int(leaves[index.leaf]) if isinstance(index, Dynamic) else index


class InsidePart(NamedTuple):
    """The part of an access that is inside: its index in the ref, and its index in the value."""

    inner: tuple[Any, ...]
    outer: tuple[slice, ...]


def window(shape: Sequence[int], dims: Sequence[Any], leaves: Sequence[Any]) -> InsidePart | None:
    """The part of an index that is inside ``shape``. None if no part is."""
    inner: list[Any] = []
    outer: list[slice] = []
    for size, index in zip(shape, dims, strict=True):
        if isinstance(index, Slice):
            start, stride = _at(index.start, leaves), index.stride
            first = max(0, -(start // stride))
            last = min(index.size, -((start - size) // stride))
            if last <= first:
                return None
            begin = start + first * stride
            inner.append(slice(begin, begin + (last - first - 1) * stride + 1, stride))
            outer.append(slice(first, last))
        else:
            at = _at(index, leaves)
            if not 0 <= at < size:
                return None
            inner.append(at)
    return InsidePart(tuple(inner), tuple(outer))


def reader(
    shape: tuple[int, ...], dtype: np.dtype, path: Path, fill: Any
) -> Callable[..., np.ndarray]:
    """The function ``(ref, *leaves)`` that copies the part that the path leads to. Elements outside
    are ``fill``."""
    stages: list[Callable[[np.ndarray, Sequence[Any]], np.ndarray]] = []
    for step in path:
        if isinstance(step, Index):
            stages.append(_padding_index(shape, step.dims, fill))
        else:
            stages.append(_without_leaves(memory.viewer(shape, dtype, (step,))))
        shape, dtype = memory.viewed_type(shape, dtype, (step,))

    def read(ref: Array, *leaves: Array) -> Array:
        array = ref
        for stage in stages:
            array = stage(array, leaves)
        return array.copy()

    return read


def _without_leaves(view: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda array, _: view(array)


def _padding_index(
    shape: tuple[int, ...], dims: Sequence[Any], fill: Any
) -> Callable[[np.ndarray, Sequence[Any]], np.ndarray]:
    result = tuple(dim.size for dim in dims if isinstance(dim, Slice))

    def index(array: Array, leaves: Array) -> Array:
        padded = np.full(result, fill, array.dtype)
        inside = window(shape, dims, leaves)
        if inside is not None:
            padded[inside.outer] = array[inside.inner]
        return padded

    return index


def masked_swap(
    shape: tuple[int, ...], limits: tuple[int, ...], dims: Sequence[Any], message: str, fill: Any
) -> Callable[..., np.ndarray]:
    """The function ``(ref, value, mask, *leaves)`` that stores ``value`` where ``mask`` is set. It
    returns the elements before where ``mask`` is set, and ``value`` elsewhere. ``mask`` must not be
    set outside ``limits``. Elements that the ref lacks there are ``fill`` before."""

    def swap(ref: Array, value: Array, mask: Array, *leaves: Array) -> Array:
        allowed, inside = window(limits, dims, leaves), window(shape, dims, leaves)
        outside = np.array(mask)
        if allowed is not None:
            outside[allowed.outer] = False
        if outside.any():
            raise ValueError(f"{message}. Mask the elements that lie outside it")
        before = np.where(mask, fill, value).astype(value.dtype)
        if inside is not None:
            inner, outer = inside
            chosen = mask[outer]
            before[outer] = np.where(chosen, ref[inner], value[outer])
            ref[inner] = np.where(chosen, value[outer], ref[inner])
        return before

    return swap
