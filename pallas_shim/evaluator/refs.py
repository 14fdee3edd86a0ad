"""Instructions that rules emit for a ref: its allocation, and loads and stores by a path into it.

checked_memory.py handles checked memory. In other memory indices are clamped, as in XLA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pallas_shim.evaluator import checked_memory, memory
from pallas_shim.evaluator.program import (
    Array,
    ArrayType,
    Effects,
    KeyType,
    Operation,
    RefType,
    Type,
    Value,
)
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.jax_compat import state
from pallas_shim.refusal import Refusal

if TYPE_CHECKING:  # lower is in a higher layer
    from pallas_shim.evaluator.lower import Lowering

READS_FIRST = Effects(reads=(0,))
WRITES_FIRST = Effects(writes=(0,))
UPDATES_FIRST = Effects(reads=(0,), writes=(0,))


# -- paths ------------------------------------------------------------------------------------


class NotBasic(Refusal):
    """A path that NumPy's basic indexing can't express."""


def path_of(view: state.RefView, *, sized: bool = True) -> tuple[memory.Path, list[Value]]:
    """A path with its constant indices as ints, and the leaves that stay dynamic.

    Raises:
      NotBasic: some index is an array, or a strided slice starts at a dynamic place or
        sticks out. JAX clamps each element of such a slice.
      Unsupported: ``sized`` is true and a slice has a dynamic size.
    """
    leaves: list[Value] = []

    def resolve(index: Any, stride: int = 1) -> Any:
        if isinstance(index, (state.RefView, state.Marked)):
            raise NotBasic("array indices in its ref")
        if not isinstance(index, Value):
            return index
        if index.type.shape:
            raise NotBasic("array indices in its ref")
        if index.const is not None:
            return int(index.const)
        if stride not in (0, 1):
            raise NotBasic("a strided slice of its ref from a place that only the run knows")
        leaves.append(index)
        return memory.Dynamic(len(leaves) - 1)

    shape, dtype, key_ndim = view.ref.type.shape, view.ref.type.dtype, view.ref.type.key_ndim
    key = tuple(state.Slice(0, dim, 1) for dim in shape[len(shape) - key_ndim :])
    path: list[state.Step] = []
    for step in view.steps:
        if isinstance(step, state.Index):
            step = state.Index(
                tuple(
                    d._replace(start=resolve(d.start, d.stride), size=resolve(d.size, d.stride))
                    if isinstance(d, state.Slice)
                    else resolve(d)
                    for d in (*step.dims, *key)
                )
            )
            if any(map(_sticks_out, shape, step.dims)):
                raise NotBasic("a strided slice that leaves its ref")
            if sized and has_dynamic_size((step,)):
                raise Unsupported("ref", "a slice of dynamic size")
        elif key_ndim:
            raise Unsupported("ref", f"{type(step).__name__.lower()} of an array of PRNG keys")
        elif has_dynamic_size(tuple(path)):
            raise Unsupported("ref", f"{type(step).__name__.lower()} of a slice of dynamic size")
        path.append(step)
        shape, dtype = memory.viewed_type(shape, dtype, (step,))
    return tuple(path), leaves


def _sticks_out(dim: int, index: Any) -> bool:
    """Whether a strided slice with a known start has elements outside."""
    if not isinstance(index, state.Slice) or index.stride in (0, 1) or index.size == 0:
        return False
    return not 0 <= index.start <= dim - 1 - (index.size - 1) * index.stride


def _slices(path: memory.Path) -> Iterator[state.Slice]:
    for step in path:
        if isinstance(step, state.Index):
            yield from (dim for dim in step.dims if isinstance(dim, state.Slice))


def has_dynamic_size(path: memory.Path) -> bool:
    return any(isinstance(dim.size, memory.Dynamic) for dim in _slices(path))


def normalised(ref: RefType, path: memory.Path) -> memory.Path:
    """The path in a normal form. Constant indices are clamped as in XLA, and whole-array indices
    are left out. An index of an index becomes a single index if that means the same."""
    shape, dtype = ref.shape, ref.dtype
    steps: list[state.Step] = []
    shapes = [shape]  # before each step
    for step in path:
        before = shape
        if isinstance(step, state.Index):
            step = state.Index(tuple(map(_inside, before, step.dims)))
        shape, dtype = memory.viewed_type(shape, dtype, (step,))
        if step == state.Index(tuple(state.Slice(0, dim, 1) for dim in before)):
            continue
        both = _of_index(shapes[-2], steps[-1], step) if steps else None
        if both is not None:
            steps[-1], shapes[-1] = both, shape
        else:
            steps.append(step)
            shapes.append(shape)
    return tuple(steps)


def _of_index(shape: tuple[int, ...], first: state.Step, then: state.Step) -> state.Index | None:
    """One index of an array of this shape with the effect of two. None if there is none."""
    if not isinstance(first, state.Index) or not isinstance(then, state.Index):
        return None
    following = iter(then.dims)
    dims = []
    for dim, outer in zip(shape, first.dims, strict=True):
        one = _of_slice(dim, outer, next(following)) if isinstance(outer, state.Slice) else outer
        if one is None:
            return None
        dims.append(one)
    return state.Index(tuple(dims))


def _of_slice(dim: int, outer: state.Slice, index: Any) -> Any:
    if index == state.Slice(0, outer.size, 1):
        return outer
    if outer == state.Slice(0, dim, 1):
        return index
    start = index.start if isinstance(index, state.Slice) else index
    if not isinstance(outer.start, int) or not isinstance(start, int):
        return None  # each of the two starts is clamped by itself
    start = outer.start + start * outer.stride
    if isinstance(index, state.Slice):
        return index._replace(start=start, stride=index.stride * outer.stride)
    return start


class TooLarge(Unsupported):
    """A slice is larger than its dimension."""


def _inside(dim: int, index: Any) -> Any:
    if isinstance(index, int):
        return memory.clamped(index, dim, 1)
    if isinstance(index, state.Slice) and index.stride and index.size > dim:
        raise TooLarge("ref", f"a slice of {index.size} elements of a dimension of {dim}")
    if isinstance(index, state.Slice) and index.stride == 1 and isinstance(index.start, int):
        return index._replace(start=memory.clamped(index.start, dim, index.size))
    return index


# -- loads and stores -------------------------------------------------------------------------


def load(
    lowering: Lowering,
    ref: Value,
    path: memory.Path,
    leaves: Sequence[Value],
    out: ArrayType | KeyType,
) -> Value:
    """Emits a load. It raises IndexError if memory is checked and an index leaves the ref.

    If a slice is larger than its dimension, the elements outside the ref are uninitialised.
    """
    checked = lowering.checked
    if checked is None or checked.raises:
        guard(lowering, ref, path, leaves, "read", IndexError)
    if checked is not None and (checked.padded or not checked.raises):
        if checked_memory.unproven(ref.type.shape, ref.type.dtype, path):
            return _load_padded(lowering, ref, path, leaves, out)
    try:
        return load_inside(lowering, ref, path, leaves, out)
    except TooLarge:
        return _load_padded(lowering, ref, path, leaves, out)


def load_inside(
    lowering: Lowering, ref: Value, path: memory.Path, leaves: Sequence[Value], out: Type
) -> Value:
    """Emits a load without a check. Its parameter ``as_view`` is the load without the copy. A pass
    uses it after proving that nothing overwrites the memory."""
    path = normalised(ref.ref, path)
    lowering.touch(ref, path, leaves, False)
    view = memory.viewer(ref.type.shape, ref.type.dtype, path)

    def copy(*args: Array) -> Array:
        return view(*args).copy()

    element = memory.element_reader(ref.type.shape, path)
    read, as_view = (copy, view) if element is None else (element, element)
    (value,) = lowering.memory(
        "get", [ref, *leaves], [out], read, READS_FIRST,
        params={"path": path, "as_view": as_view}, key=path,
    )  # fmt: skip
    return value


def _load_padded(
    lowering: Lowering, ref: Value, path: memory.Path, leaves: Sequence[Value], out: Type
) -> Value:
    """Emits a load whose elements outside the ref are uninitialised."""
    fill = memory.filler(ref.type.dtype, lowering.checked)
    read = checked_memory.reader(ref.type.shape, ref.type.dtype, path, fill)
    (value,) = lowering.memory(
        "get_padded", [ref, *leaves], [out], read, READS_FIRST, params={"path": path}, key=path
    )
    return value


def guard(
    lowering: Lowering,
    ref: Value,
    path: memory.Path,
    leaves: Sequence[Value],
    access: str,
    error: type[Exception],
) -> None:
    """Emits the check that a path stays inside its ref, if memory is checked."""
    if lowering.checked is None:
        return
    spans = checked_memory.unproven(ref.type.shape, ref.type.dtype, path)
    if spans and lowering.checked.padded:
        limits = checked_memory.bounds(lowering.checked, ref.ref)
        spans = checked_memory.unproven(ref.type.shape, ref.type.dtype, path, limits)
    if spans:
        check = checked_memory.check(spans, outside(access, ref), error)
        lowering.memory(
            "check_bounds", leaves, [], check, Effects(io=True), key=(access, ref.type, path)
        )


def reaches_beside(lowering: Lowering, ref: Value, path: memory.Path) -> bool:
    """Whether a path may lead to the part of a buffer's tiles beside the buffer."""
    if lowering.checked is None or not lowering.checked.padded:
        return False
    return bool(checked_memory.unproven(ref.type.shape, ref.type.dtype, path))


def masked_swap(
    lowering: Lowering,
    ref: Value,
    path: memory.Path,
    leaves: Sequence[Value],
    value: Value,
    mask: Value | None,
) -> Value:
    """Emits a store of the elements where ``mask`` is set, in checked memory. Returns the elements
    before where it is set, and ``value`` elsewhere. It raises ValueError if an element leaves the
    ref.

    Raises:
      NotBasic: some step of the path isn't an index, or there are several.
    """
    checked = lowering.checked
    assert checked is not None
    dims: Sequence[Any] = tuple(state.Slice(0, dim, 1) for dim in ref.type.shape)
    match path:
        case ():
            pass
        case (state.Index(dims),):
            pass
        case _:
            raise NotBasic("a mask, or a slice that may leave its ref")
    if mask is None:
        mask = lowering.const(np.ones(value.type.shape, bool))
    limits = checked_memory.bounds(checked, ref.ref)
    fill = memory.filler(ref.type.dtype, checked)
    swap = checked_memory.masked_swap(
        ref.type.shape, limits, dims, outside("masked swap", ref), fill
    )
    (before,) = lowering.memory(
        "masked_swap", [ref, value, mask, *leaves], [value.type], swap,
        Effects(reads=(0,), writes=(0,), io=True), key=(path, limits),
    )  # fmt: skip
    return before


def outside(access: str, ref: Value) -> str:
    type = ref.ref
    return f"Out-of-bounds {access} of a ref of shape {type.shape} in {type.space}"


def store(
    lowering: Lowering, ref: Value, path: memory.Path, leaves: Sequence[Value], value: Value
) -> None:
    """Emits a store. It raises ValueError if memory is checked and an index leaves the ref."""
    guard(lowering, ref, path, leaves, "write", ValueError)
    if reaches_beside(lowering, ref, path):
        masked_swap(lowering, ref, path, leaves, value, None)
        return
    store_inside(lowering, ref, path, leaves, value)


def store_inside(
    lowering: Lowering, ref: Value, path: memory.Path, leaves: Sequence[Value], value: Value
) -> None:
    """Emits a store without a check. Its operands are ref, value, leaves."""
    path = normalised(ref.ref, path)
    if any(dim.stride == 0 for dim in _slices(path)):
        raise Unsupported("ref", "a store to a slice of stride 0")
    lowering.touch(ref, path, leaves, True)
    write = memory.writer(ref.type.shape, ref.type.dtype, path)
    lowering.memory(
        "store", [ref, value, *leaves], [], _nothing(write), WRITES_FIRST, params={"path": path},
        key=path,
    )


def _nothing(fn: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Array) -> tuple[()]:
        fn(*args)
        return ()

    return run


# -- allocations ------------------------------------------------------------------------------


def allocate(lowering: Lowering, type: RefType, fill: Any = None) -> Value:
    """Emits a new buffer with the initial contents of such memory."""
    if fill is None:
        fill = memory.initial(type.space, type.dtype, lowering.checked)
    (ref,) = lowering.emit(allocation(type, fill), ())
    return ref


def allocation(type: RefType, fill: Any) -> Operation:
    """The operation that makes a new buffer and sets each element to ``fill``."""
    shape, dtype = type.shape, type.dtype
    effects = Effects(allocates=True)
    return Operation(
        "allocate", {"fill": fill}, (), (type,), lambda: np.full(shape, fill, dtype), effects
    )


def unfilled(type: RefType) -> Operation:
    """The operation that makes a new buffer, all of which is stored to before it is read."""
    shape, dtype = type.shape, type.dtype
    return Operation(
        "unfilled", {}, (), (type,), lambda: memory.aligned(shape, dtype), Effects(allocates=True)
    )
