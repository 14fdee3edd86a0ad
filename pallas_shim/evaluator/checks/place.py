"""Which elements of a ref an access touches, exactly: slices, strides, arrays of indices, masks.

The same place is read and written in arrays that have an entry for each element of the ref: codes,
numbers of accesses. Bitcasts are followed, too. An element of a wider type stands for several
entries, and an entry for several elements of a narrower type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.checks.indices import BasicIndex, Outside, span
from pallas_shim.evaluator.memory import Chosen, Dynamic
from pallas_shim.evaluator.program import Value
from pallas_shim.evaluator.scalar_types import bit_width
from pallas_shim.jax_compat import state
from pallas_shim.jax_compat.state import Bitcast, Index, Reshape, Slice, Transpose


class UnknownPlace(Exception):
    """The elements of an access can't be told. The text says why."""


def resolved(steps: Sequence[state.Step]) -> tuple[memory.Path, list[Value]]:
    """The steps of a view with constant indices as ints, and the leaves that stay.

    Raises:
      Unknown: a ref holds the indices.
    """
    leaves: list[Value] = []

    def resolve(index: Any) -> Any:
        if isinstance(index, (state.RefView, state.Marked)):
            raise UnknownPlace("a ref holds its indices")
        if not isinstance(index, Value):
            return index
        if index.const is not None and not index.type.shape:
            return int(index.const)
        leaves.append(index)
        return Chosen(len(leaves) - 1) if index.type.shape else Dynamic(len(leaves) - 1)

    def resolve_dim(dim: Any) -> Any:
        if not isinstance(dim, Slice):
            return resolve(dim)
        if isinstance(dim.size, Value):
            dim = dim._replace(size=resolve(dim.size))
        return dim._replace(start=resolve(dim.start))

    path = tuple(
        Index(tuple(map(resolve_dim, step.dims))) if isinstance(step, Index) else step
        for step in steps
    )
    return path, leaves


def place_of(
    shape: tuple[int, ...],
    dtype: np.dtype,
    path: memory.Path,
    counts: Sequence[tuple[int, ...]],
    masked: bool = False,
) -> RefElements | SizedPlace:
    """The elements of a ref that a path leads to. Arguments and errors: see `RefElements`."""
    for step in path:
        for dim in step.dims if isinstance(step, Index) else ():
            if isinstance(dim, Slice) and isinstance(dim.size, Dynamic):
                return SizedPlace(shape, dtype, path, counts, masked)
    return RefElements(shape, dtype, path, counts, masked)


def located(
    view: state.RefView, mask: Value | None
) -> tuple[RefElements | SizedPlace, list[Value]]:
    """The elements that an access touches, and the operands that they depend on.

    Raises:
      Unknown: they can't be told.
    """
    type = view.ref.ref
    path, leaves = resolved(view.steps)
    counts = [leaf.type.shape for leaf in leaves]
    place = place_of(type.shape, type.dtype, path, counts, mask is not None)
    return place, leaves if mask is None else [*leaves, mask]


class RefElements:
    """The elements of a ref that a path leads to.

    Args:
      path, counts: as of `resolved`; ``counts`` has the shape of each leaf.
      masked: a mask follows the leaves. It broadcasts over the elements.

    Attributes:
      whole: whether it is all of the ref, without a mask.
      proven: whether all elements are known to be inside the ref.
      shape: the shape of the accessed part, without a wider type's entries.

    Raises:
      Unknown: some step has no such form.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype,
        path: memory.Path,
        counts: Sequence[tuple[int, ...]],
        masked: bool = False,
    ) -> None:
        self._root = shape
        self._masked = masked
        last = path[-1] if path and isinstance(path[-1], Index) else None
        before = path if last is None else path[:-1]
        self._before: list[Callable[[np.ndarray, Sequence[Any]], np.ndarray]] = []
        self._inner: list[tuple[tuple[int, ...], tuple[Any, ...]]] = []
        self._indices: list[BasicIndex] = []  # those of ``_inner``
        self._views = True  # whether each step gives a view of the array of codes
        self._ratio = 1.0  # how many entries an element has
        self.packed = 0  # how many axes behind hold the entries of one element
        indexed = False
        for step in before:
            match step:
                case Index(dims):
                    if any(isinstance(dim, Chosen) for dim in dims):
                        raise UnknownPlace("arrays of indices come before another index")
                    inner = BasicIndex(shape, dims)
                    self._inner.append((shape, dims))
                    self._indices.append(inner)
                    self._before.append(inner)
                    indexed = True
                case Reshape(new):
                    self._views = self._views and not indexed and not self.packed
                    self._before.append(_reshape(new, self.packed))
                case Transpose(permutation):
                    self._before.append(_transpose(permutation, self.packed))
                    indexed = True
                case Bitcast(new):
                    self._bitcast(shape, dtype, new)
            shape, dtype = memory.viewed_type(shape, dtype, (step,))
        self._shape = shape
        dims = tuple(Slice(0, n, 1) for n in shape) if last is None else last.dims
        self._dims = dims
        self._arrays = any(isinstance(dim, Chosen) for dim in dims)
        self.shape, self._axes = _result(dims, counts)
        self._last = BasicIndex(shape, dims) if not self._arrays else None
        self.proven = (
            not self._arrays
            and all(_unproven(s, d) is None for s, d in self._inner)
            and _unproven(shape, dims) is None
        )
        self._simple = not masked and not self._arrays and self._views
        full = all(dim == Slice(0, n, 1) for n, dim in zip(shape, dims, strict=True))
        self.whole = full and not masked and not self._inner

    def _bitcast(self, shape: tuple[int, ...], old: np.dtype, new: np.dtype) -> None:
        before, after = bit_width(old), bit_width(new)
        if before == after:
            return
        self._ratio = after / before
        if self.packed:
            raise UnknownPlace("its type is changed twice")
        if before < after:
            ratio = after // before
            self._before.append(lambda a, _: _grouped(a, ratio))
            self.packed = 1
        else:
            ratio = before // after
            self._before.append(lambda a, _: np.repeat(a, ratio, -2))
            self._views = False

    # -- what is outside ------------------------------------------------------------------------

    def outside(self, leaves: Sequence[Any]) -> Outside | None:
        """An index that leaves the ref; None if all elements are inside. Elements that the mask
        leaves out aren't looked at."""
        for inner in self._indices:
            found = inner.outside(leaves)
            if found is not None:
                return found
        if self._last is not None:
            found = self._last.outside(leaves)
            if found is None or not self._masked:
                return found
        chosen, (places, _) = self._chosen(leaves), self._places(leaves)
        for axis, (place, size) in enumerate(zip(places, self._shape, strict=True)):
            wrong = np.broadcast_to((place < 0) | (place >= size), self.shape) & chosen
            if wrong.any():
                at = np.broadcast_to(place, self.shape)[wrong]
                return Outside(axis, int(at.min()), int(at.max()), size)
        return None

    def spans(self) -> list[tuple[int, int]] | None:
        """For each leaf that is a start, the largest one that is inside, if these alone decide
        whether the access is; else None."""
        found = []
        for shape, dims in (*self._inner, (self._shape, self._dims)):
            for size, dim in zip(shape, dims, strict=True):
                index = dim.start if isinstance(dim, Slice) else dim
                extent = span(dim) if isinstance(dim, Slice) else 1
                if isinstance(index, Chosen):
                    return None
                if isinstance(index, Dynamic) and extent:
                    found.append((index.leaf, size - extent))
                elif extent and not 0 <= index <= size - extent:
                    return None
        return found

    def _chosen(self, leaves: Sequence[Any]) -> np.ndarray:
        if not self._masked:
            return np.ones(self.shape, bool)
        return np.broadcast_to(np.asarray(leaves[-1], bool), self.shape)

    def _places(self, leaves: Sequence[Any]) -> tuple[list[np.ndarray], np.ndarray]:
        """The places along each dimension, which broadcast over the part, and whether they are
        inside."""
        places, inside = [], np.ones((), bool)
        for size, dim, axes in zip(self._shape, self._dims, self._axes, strict=True):
            if isinstance(dim, Chosen):
                place = np.asarray(leaves[dim.leaf]).astype(np.int64)
            elif isinstance(dim, Slice):
                place = _start(dim.start, leaves) + dim.stride * np.arange(dim.size)
            else:
                place = np.asarray(_start(dim, leaves))
            behind = len(self.shape) - 1 - axes[-1] if axes else 0
            place = place.reshape(place.shape + (1,) * behind)
            places.append(place)
            inside = inside & (place >= 0) & (place < size)
        return places, inside

    # -- the elements ---------------------------------------------------------------------------

    def read(self, entries: np.ndarray, leaves: Sequence[Any]) -> np.ndarray:
        """The entries of the elements, and 0 for elements that are masked out or outside. There is
        an axis more behind if `packed`."""
        if self._is_view(leaves):
            return self._view(entries, leaves)
        array = entries
        for step in self._before:
            array = step(array, leaves)
        if self._is_slice(leaves):
            assert self._last is not None
            return self._last(array, leaves)
        places, inside = self._places(leaves)
        chosen = self._chosen(leaves) & inside
        clipped = tuple(
            np.clip(place, 0, max(size - 1, 0))
            for place, size in zip(places, self._shape, strict=True)
        )
        found = array[clipped] if math.prod(self._shape) else np.zeros(self.shape, entries.dtype)
        found = np.broadcast_to(found, self.shape + found.shape[found.ndim - self.packed :])
        return np.where(chosen[(..., *[None] * self.packed)], found, 0)

    def write(self, entries: np.ndarray, leaves: Sequence[Any], value: Any) -> None:
        """Sets the entries of the elements that aren't masked out and are inside."""
        if self._is_view(leaves):
            self._view(entries, leaves)[...] = value
            return
        array = entries
        if not self._views:  # entries are found by their numbers, since some step copies
            array = np.arange(entries.size).reshape(entries.shape)
        for step in self._before:
            array = step(array, leaves)
        if self._is_slice(leaves):
            assert self._last is not None
            key = self._last.key(leaves)
            if self._views:
                array[key] = value
            else:
                entries.reshape(-1)[array[key]] = value
            return
        places, inside = self._places(leaves)
        where = np.broadcast_to(self._chosen(leaves) & inside, self.shape)
        at = tuple(np.broadcast_to(place, self.shape)[where] for place in places)
        given = np.asarray(value)
        if given.ndim:
            full = np.broadcast_to(given, self.shape + given.shape[len(self.shape) :])
            given = full[where]
        if self._views:
            array[at] = given if given.ndim != 1 or not self.packed else given[:, None]
        else:
            entries.reshape(-1)[array[at]] = given

    def view(self, entries: np.ndarray, leaves: Sequence[Any]) -> np.ndarray | None:
        """A view of the entries of the elements. None if there is none."""
        return self._view(entries, leaves) if self._is_view(leaves) else None

    def _is_view(self, leaves: Sequence[Any]) -> bool:
        """Whether NumPy has a view of all elements."""
        return self._simple and self._is_slice(leaves)

    def _is_slice(self, leaves: Sequence[Any]) -> bool:
        """Whether the last index is a basic one that stays inside."""
        if self._masked or self._last is None:
            return False
        return self.proven or self._last.outside(leaves) is None

    def _view(self, array: np.ndarray, leaves: Sequence[Any]) -> np.ndarray:
        for step in self._before:
            array = step(array, leaves)
        assert self._last is not None
        return self._last(array, leaves)

    def count(self, leaves: Sequence[Any]) -> int:
        """The number of its elements, masked ones too, in entries of the ref."""
        return int(math.prod(self.shape) * self._ratio)

    def text(self, leaves: Sequence[Any]) -> str:
        """The indices as the user would write them."""
        parts = []
        for shape, dims in (*self._inner, (self._shape, self._dims)):
            if shape and any(dim != Slice(0, n, 1) for n, dim in zip(shape, dims, strict=True)):
                parts.append(f"[{', '.join(_text(dim, leaves) for dim in dims)}]")
        return "".join(parts) or ("[...]" if self._root else "[()]")


class SizedPlace:
    """A `RefElements` with slices of sizes that only the run knows. They end where their ref ends,
    since a device pads arrays to whole tiles."""

    whole = proven = False
    packed = 0

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype,
        path: memory.Path,
        counts: Sequence[tuple[int, ...]],
        masked: bool,
    ) -> None:
        *before, last = path
        if not isinstance(last, Index) or any(_sized(s) for s in before if isinstance(s, Index)):
            raise UnknownPlace("something follows a slice whose size only the run knows")
        self._shape, self._dtype, self._path = shape, dtype, path
        self._counts, self._masked = counts, masked
        self._sizes, _ = memory.viewed_type(shape, dtype, tuple(before))
        self._known: dict[Any, RefElements] = {}

    def _now(self, leaves: Sequence[Any]) -> RefElements:
        *before, last = self._path
        assert isinstance(last, Index)
        sizes = []
        for size, dim in zip(self._sizes, last.dims, strict=True):
            if isinstance(dim, Slice) and isinstance(dim.size, Dynamic):
                room = -(-(size - max(_start(dim.start, leaves), 0)) // max(dim.stride, 1))
                dim = dim._replace(size=max(min(_start(dim.size, leaves), room), 0))
            sizes.append(dim)
        key = tuple(sizes)
        place = self._known.get(key)
        if place is None:
            path = (*before, Index(key))
            place = RefElements(self._shape, self._dtype, path, self._counts, self._masked)
            self._known[key] = place
        return place

    def outside(self, leaves: Sequence[Any]) -> Outside | None:
        return self._now(leaves).outside(leaves)

    def spans(self) -> None:
        return None

    def read(self, entries: np.ndarray, leaves: Sequence[Any]) -> np.ndarray:
        return self._now(leaves).read(entries, leaves)

    def write(self, entries: np.ndarray, leaves: Sequence[Any], value: Any) -> None:
        """As `Place.write`. Of an array of another shape, the elements that both have are set, and
        the rest becomes 0."""
        place = self._now(leaves)
        given = np.asarray(value)
        if given.ndim and given.shape != place.shape:
            both = tuple(map(slice, map(min, given.shape, place.shape)))
            value = np.zeros(place.shape, given.dtype)
            value[both] = given[both]
        place.write(entries, leaves, value)

    def view(self, entries: np.ndarray, leaves: Sequence[Any]) -> np.ndarray | None:
        return self._now(leaves).view(entries, leaves)

    def count(self, leaves: Sequence[Any]) -> int:
        """The number of its elements, those beyond the ref too."""
        last = self._path[-1]
        assert isinstance(last, Index)
        sizes = [dim.size for dim in last.dims if isinstance(dim, Slice)]
        return math.prod(_start(size, leaves) for size in sizes)

    def text(self, leaves: Sequence[Any]) -> str:
        return self._now(leaves).text(leaves)


def _sized(step: Index) -> bool:
    return any(isinstance(d, Slice) and isinstance(d.size, Dynamic) for d in step.dims)


def _text(dim: Any, leaves: Sequence[Any]) -> str:
    if isinstance(dim, Chosen):
        return "<array>"
    if not isinstance(dim, Slice):
        return str(_start(dim, leaves))
    start = _start(dim.start, leaves)
    stop = start + max(dim.size - 1, 0) * max(dim.stride, 1) + 1 if dim.size else start
    return f"{start}:{stop}" + (f":{dim.stride}" if dim.stride > 1 else "")


def _result(
    dims: Sequence[Any], counts: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The shape of an indexed part, and for each dimension the axes of the part along which its
    places lie. As in NumPy, arrays that aren't adjacent go to the front."""
    arrays = [i for i, dim in enumerate(dims) if isinstance(dim, Chosen)]
    axes: list[tuple[int, ...]] = []
    if not arrays:
        axis = 0
        for dim in dims:
            axes.append((axis,) if isinstance(dim, Slice) else ())
            axis += isinstance(dim, Slice)
        return tuple(dim.size for dim in dims if isinstance(dim, Slice)), axes
    advanced = [i for i, dim in enumerate(dims) if not isinstance(dim, Slice)]
    together = np.broadcast_shapes(*[counts[dims[i].leaf] for i in arrays])
    adjacent = advanced[-1] - advanced[0] == len(advanced) - 1
    at = sum(isinstance(dim, Slice) for dim in dims[: advanced[0]]) if adjacent else 0
    sizes = [dim.size for dim in dims if isinstance(dim, Slice)]
    shape = (*sizes[:at], *together, *sizes[at:])
    number = 0
    for i in range(len(dims)):
        if i in advanced:
            axes.append(tuple(range(at, at + len(together))))
        else:
            axes.append((number if number < at else number + len(together),))
            number += 1
    return shape, axes


# -- indices --------------------------------------------------------------------------------------


def _start(index: Any, leaves: Sequence[Any]) -> int:
    return int(leaves[index.leaf]) if isinstance(index, Dynamic) else int(index)


def _unproven(shape: Sequence[int], dims: Sequence[Any]) -> int | None:
    for axis, (size, dim) in enumerate(zip(shape, dims, strict=True)):
        index = dim.start if isinstance(dim, Slice) else dim
        extent = span(dim) if isinstance(dim, Slice) else 1
        if not extent:
            continue
        if not isinstance(index, int) or not 0 <= index <= size - extent:
            return axis
    return None


def _reshape(
    new: tuple[int, ...], packed: int
) -> Callable[[np.ndarray, Sequence[Any]], np.ndarray]:
    return lambda a, _: a.reshape(new + a.shape[a.ndim - packed :])


def _transpose(
    permutation: tuple[int, ...], packed: int
) -> Callable[[np.ndarray, Sequence[Any]], np.ndarray]:
    full = (*permutation, *range(len(permutation), len(permutation) + packed))
    return lambda a, _: a.transpose(full)


def _grouped(a: np.ndarray, ratio: int) -> np.ndarray:
    """Groups of rows that are one row of a wider type, with the group's axis behind."""
    *outer, rows, columns = a.shape
    return a.reshape(*outer, rows // ratio, ratio, columns).swapaxes(-1, -2)


AnyPlace = RefElements | SizedPlace


def numbers(place: AnyPlace, shape: tuple[int, ...], leaves: Sequence[Any]) -> np.ndarray:
    """The numbers of the elements of a ref of this shape that an access touches, in order, each
    once. The last axis counts fastest."""
    entries = np.arange(1, math.prod(shape) + 1).reshape(shape)
    found = np.unique(place.read(entries, leaves))
    return found[found > 0] - 1
