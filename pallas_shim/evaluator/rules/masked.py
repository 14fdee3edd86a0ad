"""Pallas' own load and store, as GPU kernels use them: with masks, and slices that may stick out.

A ref's own indexing moves a slice inside if it sticks out of the ref. These primitives don't. For
them JAX's interpreter lengthens the array: elements outside are uninitialised when read, and lost
when stored. A slice that starts before the array then wraps to the lengthened end. It doesn't wrap
if there is a mask and the user asked for no interpreter: then it starts where it does on a device,
and masked-out elements touch no memory.

Here these primitives are composed of whole loads and stores, and of slices that may stick out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pallas_shim.evaluator import memory, refs
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.program import (
    Array,
    ArrayType,
    KeyType,
    Type,
    Types,
    Value,
    contents_type,
)
from pallas_shim.evaluator.registry import Stack, batch_rule, impl_rule, lowering_rule
from pallas_shim.evaluator.rules import array_indices, state
from pallas_shim.jax_compat import state as jax_state

# -- slices that may stick out ----------------------------------------------------------------

Starts = tuple[int | memory.Dynamic, ...]


def _overlap(
    shape: Sequence[int], starts: Starts, sizes: Sequence[int], lengthened: bool
) -> Callable[..., tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Returns a function of the dynamic starts. It gives the overlap of the array and the slice,
    first as an index into the array, then as an index into the slice."""

    def overlap(*leaves: Array) -> tuple[Array, ...]:
        inside, within = [], []
        for dim, start, size in zip(shape, starts, sizes, strict=True):
            at = int(leaves[start.leaf]) if isinstance(start, memory.Dynamic) else start
            if 0 <= at <= dim - size:  # nearly always, so it comes first
                inside.append(slice(at, at + size))
                within.append(slice(0, size))
                continue
            if at < 0 and lengthened:
                at = max(at + dim + size, 0)  # JAX lengthens the array by the slice's size
            first, last = min(max(at, 0), dim), min(max(at + size, 0), dim)
            inside.append(slice(first, last))
            within.append(slice(max(first - at, 0), max(last - at, 0)))
        return tuple(inside), tuple(within)

    return overlap


@impl_rule("slice_sticking_out", view=True)
def _slice_sticking_out(
    ins: Types, outs: Types, *, starts: Any, sizes: Any, fill: Any, lengthened: Any, **_: Any
) -> Callable[..., Any]:
    """Operands: an array, the dynamic starts. The slice has the dimensions of the array."""
    overlap, dtype = _overlap(ins[0].shape, starts, sizes, lengthened), outs[0].dtype

    def read(array: Array, *leaves: Array) -> Array:
        inside, within = overlap(*leaves)
        part = array[inside]
        if part.shape == sizes:
            return part
        result = np.full(sizes, fill, dtype)
        result[within] = part
        return result

    return read


@impl_rule("update_sticking_out")
def _update_sticking_out(
    ins: Types, outs: Types, *, starts: Any, sizes: Any, lengthened: Any, **_: Any
) -> Callable[..., Any]:
    """Operands: an array, the new contents of its slice, the dynamic starts."""
    overlap = _overlap(ins[0].shape, starts, sizes, lengthened)

    def write(array: Array, value: Array, *leaves: Array) -> Array:
        inside, within = overlap(*leaves)
        result = array.copy()
        result[inside] = value[within]
        return result

    return write


def _at_shared_starts(
    stack: Stack, first: Any, starts: Any, sizes: Any, **params: Any
) -> Mapping[str, Any] | None:
    if not all(stack.shared[first:]):
        return None
    return {"starts": (0, *starts), "sizes": (stack.size, *sizes), **params}


# There are at most as many starts as an array has dimensions.
_STARTS = tuple(range(1, 33))


@batch_rule("slice_sticking_out", unstacked=_STARTS)
def _slice_batch(stack: Stack, **params: Any) -> Mapping[str, Any] | None:
    return _at_shared_starts(stack, 1, **params)


@batch_rule("update_sticking_out", unstacked=_STARTS[1:])
def _update_batch(stack: Stack, **params: Any) -> Mapping[str, Any] | None:
    return _at_shared_starts(stack, 2, **params)


# -- the primitives ---------------------------------------------------------------------------


class _MaskedPlace(NamedTuple):
    """The place of an access. ``leaves`` are the dynamic starts. ``known``: the access stays
    inside. Otherwise it is a slice of the part that ``around`` leads to, and the first ``outer``
    leaves are the dynamic starts of ``around``. ``lengthened``: a slice that starts before that
    part wraps to the end of the array that JAX lengthened."""

    ref: Value
    starts: Starts
    sizes: tuple[int, ...]
    leaves: list[Value]
    path: memory.Path
    around: memory.Path
    outer: int
    known: bool
    lengthened: bool


class _Elements(NamedTuple):
    """The place of an access with arrays of indices."""

    ref: Value
    indices: array_indices.Indices


def _place(
    lowering: Lowering, access: jax_state.LoadInfo | jax_state.StoreInfo, shape: Any
) -> _MaskedPlace | _Elements | None:
    """The place of an access. None if `state` handles it: arrays of indices beside slices, strides,
    checked memory, keys."""
    ref = access.view.ref
    if lowering.checked is not None or ref.type.key_ndim:
        return None
    if access.mask is not None and not _spreads(access.mask.type.shape, shape):
        return None
    indices = array_indices.indices(lowering, access.view, shape)
    if indices:
        return _Elements(ref, indices)
    try:
        path, leaves = refs.path_of(access.view)
        around, outer = path, leaves
        if path and isinstance(path[-1], jax_state.Index):
            around, outer = refs.path_of(access.view._replace(steps=access.view.steps[:-1]))
    except refs.NotBasic:
        return _of_slices(lowering, access)
    whole, _ = memory.viewed_type(ref.type.shape, ref.type.dtype, around)
    dims = tuple(jax_state.Slice(0, dim, 1) for dim in whole)
    if path != around and isinstance(path[-1], jax_state.Index):
        dims = path[-1].dims
    slices = [d if isinstance(d, jax_state.Slice) else jax_state.Slice(d, 1, 1) for d in dims]
    if any(d.stride != 1 for d in slices):
        return _of_slices(lowering, access)
    starts, sizes = tuple(d.start for d in slices), tuple(d.size for d in slices)
    known = state.inside(access)
    lengthened = access.mask is None or not lowering.for_device
    return _MaskedPlace(ref, starts, sizes, leaves, path, around, len(outer), known, lengthened)


def _of_slices(
    lowering: Lowering, access: jax_state.LoadInfo | jax_state.StoreInfo
) -> _Elements | None:
    """A masked access by arrays of indices. None unless this is more exact than JAX's
    interpreter."""
    if access.mask is None or not lowering.for_device:
        return None
    indices = array_indices.of_slices(lowering, access.view)
    return None if indices is None else _Elements(access.view.ref, indices)


_Read = TypeVar("_Read", jax_state.LoadInfo, jax_state.StoreInfo)


def _read(lowering: Lowering, place: _MaskedPlace | _Elements, out: ArrayType | KeyType) -> Value:
    if isinstance(place, _Elements):
        return array_indices.load(lowering, place.ref, place.indices, out)
    if place.known:
        return refs.load(lowering, place.ref, place.path, place.leaves, out)
    whole = _whole(lowering, place)
    fill = memory.filler(out.dtype)
    params = {
        "starts": place.starts, "sizes": place.sizes, "fill": fill,
        "lengthened": place.lengthened,
    }  # fmt: skip
    full = out._replace(shape=place.sizes)
    (part,) = lowering.apply("slice_sticking_out", [whole, *place.leaves], [full], params)
    return _reshaped(lowering, part, out)


def _write(lowering: Lowering, place: _MaskedPlace | _Elements, value: Value) -> None:
    if isinstance(place, _Elements):
        array_indices.store(lowering, place.ref, place.indices, value)
        return
    if place.known:
        refs.store(lowering, place.ref, place.path, place.leaves, value)
        return
    whole = _whole(lowering, place)
    params = {
        "starts": place.starts, "sizes": place.sizes, "lengthened": place.lengthened
    }  # fmt: skip
    part = _reshaped(lowering, value, value.type._replace(shape=place.sizes))
    (changed,) = lowering.apply(
        "update_sticking_out", [whole, part, *place.leaves], [whole.type], params
    )
    refs.store(lowering, place.ref, place.around, place.leaves[: place.outer], changed)


def _whole(lowering: Lowering, place: _MaskedPlace) -> Value:
    contents = place.ref.ref.contents
    shape, dtype = memory.viewed_type(contents.shape, contents.dtype, place.around)
    type = contents._replace(shape=shape, dtype=dtype)
    return refs.load(lowering, place.ref, place.around, place.leaves[: place.outer], type)


def _reshaped(lowering: Lowering, value: Value, out: Type) -> Value:
    if value.type == out:
        return value
    params = {"new_sizes": out.shape, "dimensions": None}
    (reshaped,) = lowering.apply("reshape", [value], [out], params)
    return reshaped


def _fits(type: Type, out: Type) -> bool:
    return type.dtype == out.dtype and _spreads(type.shape, out.shape)


def _spreads(shape: tuple[int, ...], over: tuple[int, ...]) -> bool:
    """Whether an array broadcasts to a shape."""
    trailing = over[len(over) - len(shape) :]
    return len(shape) <= len(over) and all(
        a in (1, b) for a, b in zip(shape, trailing, strict=True)
    )


def _spread(lowering: Lowering, value: Value, shape: tuple[int, ...]) -> Value:
    if value.type.shape == shape:
        return value
    behind = tuple(range(len(shape) - len(value.type.shape), len(shape)))
    params = {"shape": shape, "broadcast_dimensions": behind, "sharding": None}
    (result,) = lowering.apply(
        "broadcast_in_dim", [value], [value.type._replace(shape=shape)], params
    )
    return result


def _choose(lowering: Lowering, mask: Value, otherwise: Value, value: Value) -> Value:
    (chosen,) = lowering.apply("select_n", [mask, otherwise, value], [value.type], {})
    return chosen


def _access(
    lowering: Lowering, eqn: Any, ins: Sequence[Value], read: Callable[..., _Read]
) -> tuple[_Read, _MaskedPlace | _Elements | None]:
    """The result of ``read`` for the equation, and the access's place. The place is None if `state`
    handles the access."""
    shape = lowering.type(eqn.outvars[0].aval).shape
    access = read(eqn, ins)
    return access, _place(lowering, access, shape)


@lowering_rule("masked_load")
def _masked_load(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    out = contents_type(lowering.type(eqn.outvars[0].aval))
    access, place = _access(lowering, eqn, ins, jax_state.load)
    if place is None or access.other is not None and not _fits(access.other.type, out):
        return state.get(lowering, eqn, ins)
    with lowering.touching(access.view, access.mask, False):
        value = _read(lowering, place, out)
    if access.mask is not None and access.other is not None:
        mask, other = (_spread(lowering, x, out.shape) for x in (access.mask, access.other))
        value = _choose(lowering, mask, other, value)
    if lowering.checker is not None:
        value = lowering.checker.read(access.view, value, access.mask)
    return [value]


def update_slice(
    lowering: Lowering, access: jax_state.StoreInfo, new: Callable[[Value], Value]
) -> Value | None:
    """Emits a masked update of a slice that may stick out, and returns the elements before it.
    ``new`` computes the stored elements from them. Emits nothing and returns None if the access is
    no such slice, or wraps as in JAX."""
    shape = access.value.type.shape
    place = _place(lowering, access, shape)
    if not isinstance(place, _MaskedPlace) or place.lengthened:
        return None
    with lowering.touching(access.view, access.mask, True):
        before = _read(lowering, place, access.value.type)
        mask = _spread(lowering, access.mask, shape)
        _write(lowering, place, _choose(lowering, mask, before, new(before)))
    return before


@lowering_rule("masked_swap")
def _masked_swap(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    out = contents_type(lowering.type(eqn.outvars[0].aval))
    access, place = _access(lowering, eqn, ins, jax_state.store)
    if place is None or access.value.type != out:
        return state.swap(lowering, eqn, ins)
    with lowering.touching(access.view, access.mask, True):
        (before,) = _masked_store(lowering, access, place, out)
    return [before] if lowering.checker is None else state.checked_swap(
        lowering, eqn, ins, [before]
    )


def _masked_store(
    lowering: Lowering,
    access: jax_state.StoreInfo,
    place: _MaskedPlace | _Elements,
    out: ArrayType | KeyType,
) -> list[Value]:
    """Emits a store, and returns the elements before it."""
    before, value = _read(lowering, place, out), access.value
    if access.mask is None:
        _write(lowering, place, value)
        return [before]
    mask = _spread(lowering, access.mask, out.shape)
    if isinstance(place, _Elements) and lowering.for_device:
        # A masked-out index may equal one that counts, so it must not overwrite.
        kept = array_indices.masked(lowering, place.indices, place.ref.type.shape, mask)
        _write(lowering, place._replace(indices=kept), value)
    else:
        _write(lowering, place, _choose(lowering, mask, before, value))
    return [_choose(lowering, mask, value, before)]
