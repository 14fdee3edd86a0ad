"""Memory: buffers, and refs as NumPy views of them.

At run time, a ref is an array that shares its memory with a buffer. A *path* is the list of steps
from a ref to the part that is read or written (index, bitcast, reshape, transpose). Lowering
resolves paths. `viewer` makes a function of a ref and the path's dynamic indices that returns the
view. `writer` makes a function that stores through the path.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from pallas_shim.evaluator.program import Array
from pallas_shim.evaluator.scalar_types import bit_width, recast
from pallas_shim.jax_compat import InterpretOptions
from pallas_shim.jax_compat.state import Bitcast, Index, Reshape, Slice, Step, Transpose


class Dynamic(NamedTuple):
    """A scalar index known only at run time. ``leaf``: its position among the path's leaves."""

    leaf: int


class Chosen(NamedTuple):
    """An array of indices. ``leaf``: its position among the leaves. Only the last step of a `Cut`
    has these, beside slices. ``kind`` makes it unequal to every `Dynamic`."""

    leaf: int
    kind: str = "chosen"


class Pack(NamedTuple):
    """Packs elements along an axis into one element of a wider type, the first in the lowest
    bits."""

    dtype: np.dtype
    axis: int


class Unpack(NamedTuple):
    """Views rows as rows of a narrower type and selects some: a bitcast, then an index."""

    dtype: np.dtype
    dims: tuple[Any, ...]


Path = tuple[Step, ...]
CopyingLate = Step | Pack | Unpack


def initial(space: str, dtype: np.dtype, checked: InterpretOptions | None = None) -> Any:
    """The value of each element of new memory: a `filler`, but zero in memory where a TPU counts or
    sums."""
    return 0 if space.startswith(("semaphore", "acc")) else filler(dtype, checked)


def filler(dtype: np.dtype, checked: InterpretOptions | None = None) -> Any:
    """The value of an uninitialised element."""
    if checked is not None and checked.zero:
        return np.zeros((), dtype)[()]
    if dtype.kind == "b":
        return checked is not None
    if dtype.kind == "c" or _is_float(dtype):
        return np.nan
    if dtype == np.int16 and checked is None:
        return 0  # JAX's interpreter takes all int16 memory for semaphores.
    limits = ml_dtypes.iinfo(dtype)
    return np.asarray(limits.min if checked is None else limits.max).astype(dtype)


def _is_float(dtype: np.dtype) -> bool:
    if dtype.kind == "f":
        return True
    try:
        ml_dtypes.finfo(dtype)
    except (ValueError, TypeError):
        return False
    return True


def clamped(start: Any, dim: int, size: int) -> int:
    """A slice's start as XLA uses it. It is taken as a number of 32 bits. If negative, it counts
    from the end. Then it is moved inside."""
    start, last = int(start), dim - size
    if 0 <= start <= last:
        return start
    if dim < 1 << 31:
        start = (start + (1 << 31)) % (1 << 32) - (1 << 31)
    if start < 0:
        start += dim
    return 0 if start < 0 else last if start > last else start


# XLA uses an array without a copy only if it starts at a multiple of this many bytes. NumPy's
# arrays often don't.
_ALIGNMENT = 64
# For smaller arrays a copy is faster.
_WORTH_ALIGNING = 1 << 13


# Half of the time that an array's own attributes take.
_address: Any = ctypes.addressof
_first_byte: Any = ctypes.c_char.from_buffer


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """New memory with undefined contents. XLA can use it as a result without a copy."""
    size = math.prod(shape) * dtype.itemsize
    if size < _WORTH_ALIGNING:
        return np.empty(shape, dtype)
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -_address(_first_byte(room)) % _ALIGNMENT
    return np.ndarray(shape, dtype, room, start)


def same(array: np.ndarray) -> np.ndarray:
    """Returns the array itself. An instruction with this function only renames a value."""
    return array


# -- paths ------------------------------------------------------------------------------------


class _Stage(NamedTuple):
    """One step for known shapes. ``forward(array, *leaves)`` returns the array after the step.
    ``back(after)`` undoes the step if ``forward`` may copy; else it is None."""

    forward: Callable[..., np.ndarray]
    back: Callable[[np.ndarray], np.ndarray] | None


def _stages(shape: tuple[int, ...], dtype: np.dtype, path: Path) -> list[_Stage]:
    return stages_of(shape, dtype, copying_late(shape, dtype, path))


def stages_of(
    shape: tuple[int, ...], dtype: np.dtype, steps: Iterable[CopyingLate]
) -> list[_Stage]:
    stages = []
    for step in steps:
        match step:
            case Pack(new, axis):
                stages.append(packing(dtype, new, axis))
                shape, dtype = (*shape[:axis], *shape[len(shape) + axis + 1 :]), new
            case Unpack(new, dims):
                stages += _unpacking(shape, dtype, new, dims)
                shape, dtype = _indexed_shape(dims), new
            case Index(dims):
                stages.append(_Stage(_index(shape, dims), None))
                shape = _indexed_shape(dims)
            case Bitcast(new):
                stages.append(_bitcast(dtype, new))
                shape, dtype = _bitcast_shape(shape, dtype, new), new
            case Reshape(new):
                stages.append(_reshape(shape, new))
                shape = new
            case Transpose(permutation):
                stages.append(_transpose(permutation))
                shape = tuple(shape[i] for i in permutation)
    return stages


def copying_late(
    shape: tuple[int, ...], dtype: np.dtype, path: Path
) -> Iterator[CopyingLate]:
    """The same path, but rows that are bitcast and then indexed are indexed first. Packing and
    unpacking copy, and the whole array may be a large table."""
    packed: Pack | None = None
    unpacked: Bitcast | None = None
    ratio = 1
    for step, following in zip_longest(path, path[1:]):
        if packed is not None and not isinstance(step, Index):
            yield packed
            packed = None
        if unpacked is not None and isinstance(step, Index):
            yield Unpack(unpacked.dtype, step.dims)
            unpacked = None
        elif packed is not None and isinstance(step, Index):
            group = Slice(0, ratio, 1)
            if packed.axis == -1:
                yield Index((*step.dims, group))
            else:
                *outer, columns = step.dims
                yield Index((*outer, group, columns))
                if not isinstance(columns, Slice):
                    packed = packed._replace(axis=-1)
        elif (
            isinstance(step, Bitcast)
            and isinstance(following, Index)
            and not isinstance(following.dims[-1], Chosen)
            and bit_width(step.dtype) > bit_width(dtype)
        ):
            *outer, rows, columns = shape
            ratio = bit_width(step.dtype) // bit_width(dtype)
            yield Reshape((*outer, rows // ratio, ratio, columns))
            packed = Pack(step.dtype, -2)
        elif (
            isinstance(step, Bitcast)
            and isinstance(following, Index)
            and all(map(_has_known_size, following.dims))
            and bit_width(step.dtype) < bit_width(dtype)
        ):
            unpacked = step
        else:
            yield step
        shape, dtype = viewed_type(shape, dtype, (step,))
    if packed is not None:
        yield packed


def _has_known_size(index: Any) -> bool:
    if isinstance(index, Slice):
        return index.stride > 0 and not isinstance(index.size, Dynamic) and index.size > 0
    return not isinstance(index, Chosen)


def _reshape(old: tuple[int, ...], new: tuple[int, ...]) -> _Stage:
    return _Stage(lambda a, *_: a.reshape(new), lambda a: a.reshape(old))


def _transpose(permutation: tuple[int, ...]) -> _Stage:
    return _Stage(lambda a, *_: a.transpose(permutation), None)


def viewed_type(
    shape: tuple[int, ...], dtype: np.dtype, path: Path
) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and dtype of the part that a path leads to."""
    for step in path:
        match step:
            case Index(dims):
                shape = _indexed_shape(dims)
            case Bitcast(new):
                shape, dtype = _bitcast_shape(shape, dtype, new), new
            case Reshape(new):
                shape = new
            case Transpose(permutation):
                shape = tuple(shape[i] for i in permutation)
    return shape, dtype


def viewer(
    shape: tuple[int, ...], dtype: np.dtype, path: Path
) -> Callable[..., np.ndarray]:
    """The function ``(ref, *leaves)`` that returns the part that the path leads to. The part is a
    view wherever NumPy has one."""
    stages = _stages(shape, dtype, path)
    if not stages:
        return same
    if len(stages) == 1:
        return stages[0].forward

    def view(ref: Array, *leaves: Array) -> Array:
        for stage in stages:
            ref = stage.forward(ref, *leaves)
        return ref

    return view


def element_reader(shape: tuple[int, ...], path: Path) -> Callable[..., Any] | None:
    """The function ``(ref, *leaves)`` that returns the element that a path leads to, as a scalar.
    NumPy computes far faster with a scalar than with a view. None if the path isn't just an
    element's index."""
    match path:
        case () if not shape:
            return lambda ref: ref[()]
        case (Index(dims),) if not any(isinstance(dim, Slice) for dim in dims):
            key = _key(shape, dims)
            if callable(key):
                return lambda ref, *leaves: ref[key(*leaves)]
            return lambda ref: ref[key]
    return None


def direct_viewer(
    shape: tuple[int, ...], dtype: np.dtype, path: Path
) -> Callable[..., np.ndarray] | None:
    """The `viewer` if its result is always a view. Otherwise None."""
    if any(stage.back is not None for stage in _stages(shape, dtype, path)):
        return None
    return viewer(shape, dtype, path)


def writer(shape: tuple[int, ...], dtype: np.dtype, path: Path) -> Callable[..., None]:
    """The function ``(ref, value, *leaves)`` that stores ``value`` where the path leads."""
    stages = _stages(shape, dtype, path)
    if not stages:

        def write_all(ref: Array, value: Array) -> None:
            ref[...] = value

        return write_all
    match path:
        case (Index(dims),) if all(not isinstance(d, Slice) or d.stride for d in dims):
            key = _key(shape, dims)
            if callable(key):

                def write_at(ref: Array, value: Array, *leaves: Array) -> None:
                    ref[key(*leaves)] = value

                return write_at
    view = direct_viewer(shape, dtype, path)
    if view is not None:

        def write(ref: Array, value: Array, *leaves: Array) -> None:
            view(ref, *leaves)[...] = value

        return write

    # The store replaces all of the last copies. So they aren't made: the value goes back through
    # their steps instead.
    kept, backs = list(stages), []
    while kept and (copied_back := kept[-1].back) is not None:
        backs.append(copied_back)
        kept.pop()

    def write_through_copies(ref: Array, value: Array, *leaves: Array) -> None:
        for back in backs:
            value = back(value)

        def assign(target: Array) -> None:
            target[...] = value

        change(ref, kept, leaves, assign)

    return write_through_copies


def change(
    ref: np.ndarray,
    stages: Sequence[_Stage],
    leaves: Sequence[Any],
    write: Callable[[np.ndarray], None],
) -> None:
    """Calls ``write`` to change the memory that the stages lead to. A reshape or a bitcast of a
    strided block makes a copy. Then ``write`` changes the copy, which is copied back."""
    arrays = [ref]
    for stage in stages:
        arrays.append(stage.forward(arrays[-1], *leaves))
    write(arrays[-1])
    for stage, before, after in zip(reversed(stages), arrays[-2::-1], arrays[:0:-1], strict=True):
        if stage.back is not None and not np.may_share_memory(before, after):
            before[...] = stage.back(after)


# -- indexing ---------------------------------------------------------------------------------


def _indexed_shape(dims: Sequence[Any]) -> tuple[int, ...]:
    return tuple(dim.size for dim in dims if isinstance(dim, Slice))


def _index(shape: tuple[int, ...], dims: Sequence[Any]) -> Callable[..., np.ndarray]:
    """Basic indexing. Dynamic starts are clamped as in XLA, so the view has its full size."""
    if any(isinstance(dim, Slice) and dim.stride == 0 for dim in dims):
        one = [
            Slice(dim.start, 1, 1) if isinstance(dim, Slice) and dim.stride == 0 else dim
            for dim in dims
        ]
        single, result = _index(shape, one), _indexed_shape(dims)
        return lambda a, *leaves: np.broadcast_to(single(a, *leaves), result)
    key = _key(shape, dims, to_view=True)
    if not callable(key):
        return lambda a, *_: a[key]
    return lambda a, *leaves: a[key(*leaves)]


def as_slice(index: Slice) -> slice:
    """The Python slice of a slice with a known start."""
    stop = index.start + (index.size - 1) * index.stride + 1 if index.size else index.start
    return slice(index.start, stop, index.stride)


def _key(shape: tuple[int, ...], dims: Sequence[Any], *, to_view: bool = False) -> Any:
    """The index into an array, or a function of the leaves that returns it. The index of a single
    element gives a scalar, or with ``to_view`` a view."""
    fixed: list[Any] = []
    moving: list[tuple[int, int, int | None, int]] = []  # dimension, leaf, size, limit
    for position, (dim, index) in enumerate(zip(shape, dims, strict=True)):
        if isinstance(index, Dynamic):
            fixed.append(None)
            moving.append((position, index.leaf, None, dim))
        elif isinstance(index, Slice) and isinstance(index.start, Dynamic):
            fixed.append(None)
            moving.append((position, index.start.leaf, index.size, dim))
        elif isinstance(index, Slice):
            fixed.append(as_slice(index))
        else:
            fixed.append(index)
    while fixed and fixed[-1] == slice(0, shape[len(fixed) - 1], 1):
        fixed.pop()  # NumPy takes all of an omitted dimension, and an omitted one is faster
    if to_view and not any(isinstance(dim, Slice) for dim in dims):
        fixed.append(...)
    if not moving:
        return tuple(fixed)
    if len(moving) == 1:
        ((position, leaf, size, dim),) = moving
        head, tail = tuple(fixed[:position]), tuple(fixed[position + 1 :])
        if size is None and not head and not tail:
            return lambda *leaves: clamped(leaves[leaf], dim, 1)
        if size is None:
            return lambda *leaves: (*head, clamped(leaves[leaf], dim, 1), *tail)

        def one_slice(*leaves: Array) -> tuple[Array, ...]:
            start = clamped(leaves[leaf], dim, size)
            return (*head, slice(start, start + size), *tail)

        return one_slice

    def several(*leaves: Array) -> Array:
        key = fixed.copy()
        for position, leaf, size, dim in moving:
            if size is None:
                key[position] = clamped(leaves[leaf], dim, 1)
            else:
                start = clamped(leaves[leaf], dim, size)
                key[position] = slice(start, start + size)
        return tuple(key)

    return several


# -- bitcasts ---------------------------------------------------------------------------------


def _bitcast_shape(shape: tuple[int, ...], old: np.dtype, new: np.dtype) -> tuple[int, ...]:
    if bit_width(old) == bit_width(new):
        return shape
    rows = shape[-2] * bit_width(old) // bit_width(new)
    return (*shape[:-2], rows, shape[-1])


def _bitcast(old: np.dtype, new: np.dtype) -> _Stage:
    """Views a ref as another type. Narrow rows are packed along the second-last dimension, as on a
    TPU: element (i, j) of the wide type holds elements (r*i..r*i+r-1, j) of the narrow type."""
    if bit_width(old) == bit_width(new):
        if bit_width(old) >= 8:
            return _Stage(lambda a, *_: a.view(new), None)
        return _Stage(lambda a, *_: recast(a, new), lambda a: recast(a, old))
    if bit_width(old) < bit_width(new):
        return _Stage(lambda a, *_: pack_rows(a, new), lambda a: unpack_rows(a, old))
    return _Stage(lambda a, *_: unpack_rows(a, new), lambda a: pack_rows(a, old))


def _unpacking(
    shape: tuple[int, ...], old: np.dtype, new: np.dtype, dims: Sequence[Any]
) -> list[_Stage]:
    """A bitcast to a narrower type, and an index. It reads only the wide rows that hold the chosen
    rows."""
    *outer, rows, columns = dims
    ratio = bit_width(old) // bit_width(new)
    start, length = rows, 1
    column = slice(None) if isinstance(columns, Slice) else 0
    if isinstance(rows, Slice):
        start, length = rows.start, (rows.size - 1) * rows.stride + 1
    if not isinstance(columns, Slice):
        columns = Slice(columns, 1, 1)

    def wide(first: int) -> slice:
        return slice(first // ratio, -(-(first + length) // ratio))

    def narrow(first: int) -> tuple[Any, ...]:
        first %= ratio
        chosen = slice(first, first + length, rows.stride) if isinstance(rows, Slice) else first
        return (..., chosen, column)

    choose: Callable[..., np.ndarray]
    if isinstance(start, Dynamic):
        leaf, dim = start.leaf, ratio * shape[-2]
        beside = _index(shape, (*outer, Slice(0, shape[-2], 1), columns))

        def choose(a: Array, *leaves: Array) -> Array:
            return beside(a, *leaves)[..., wide(clamped(leaves[leaf], dim, length)), :]

        def pick(a: Array, *leaves: Array) -> Array:
            return a[narrow(clamped(leaves[leaf], dim, length))]

    else:
        known, key = wide(start), narrow(start)
        choose = _index(shape, (*outer, Slice(known.start, known.stop - known.start, 1), columns))

        def pick(a: Array, *_: Array) -> Array:
            return a[key]

    unpack = _Stage(lambda a, *_: unpack_rows(a, new), lambda a: pack_rows(a, old))
    return [_Stage(choose, None), unpack, _Stage(pick, None)]


def packing(old: np.dtype, new: np.dtype, axis: int) -> _Stage:
    return _Stage(
        lambda a, *_: recast(np.moveaxis(a, axis, -1), new)[..., 0],
        lambda a: np.moveaxis(recast(a[..., None], old), -1, axis),
    )


def pack_rows(a: np.ndarray, wide: np.dtype) -> np.ndarray:
    """Packs groups of rows of a narrow type into rows of a wide type. The first row of a group goes
    to the lowest bits."""
    *outer, rows, columns = a.shape
    ratio = bit_width(wide) // bit_width(a.dtype)
    groups = a.reshape(*outer, rows // ratio, ratio, columns).swapaxes(-1, -2)
    return recast(groups, wide)[..., 0]


def unpack_rows(a: np.ndarray, narrow: np.dtype) -> np.ndarray:
    """The inverse of `pack_rows`."""
    *outer, rows, columns = a.shape
    ratio = bit_width(a.dtype) // bit_width(narrow)
    groups = recast(a[..., None], narrow).swapaxes(-1, -2)
    return groups.reshape((*outer, rows * ratio, columns))
