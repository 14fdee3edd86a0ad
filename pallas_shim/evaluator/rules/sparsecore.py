"""Pallas TPU: the vector units of SparseCore, as JAX documents them.

JAX has no interpreter for these. Its documentation leaves some elements undefined; they are
uninitialised here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator import memory, refs
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.machine import programs
from pallas_shim.evaluator.program import (
    PURE,
    Array,
    ArrayType,
    Type,
    Types,
    Value,
    array_type,
)
from pallas_shim.evaluator.registry import Unsupported, impl_rule, lowering_rule
from pallas_shim.evaluator.rules import remote
from pallas_shim.evaluator.scalar_types import is_integer
from pallas_shim.jax_compat import state

# -- scans and sorts under a mask -------------------------------------------------------------


@impl_rule("masked_cumsum")
def _masked_cumsum(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    dtype = outs[0].dtype
    return lambda x, mask: np.cumsum(np.where(mask, x, dtype.type(0)), -1, dtype)


def _running(pick: np.ufunc, lowest: bool) -> Callable[..., Any]:
    def make(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
        dtype = outs[0].dtype
        if is_integer(dtype):
            neutral = dtype.type(np.iinfo(dtype).min if lowest else np.iinfo(dtype).max)
        else:
            neutral = dtype.type(-np.inf if lowest else np.inf)

        def scan(x: Array, mask: Array) -> Array:
            result = pick.accumulate(np.where(mask, x, neutral), -1)
            # Elements before the first unmasked one stay as they are.
            return np.where(np.logical_or.accumulate(mask, -1), result, x)

        return scan

    return make


impl_rule("masked_cummax")(_running(np.maximum, lowest=True))
impl_rule("masked_cummin")(_running(np.minimum, lowest=False))


@impl_rule("scan_count", "unique")
def _scan_count(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    """For each element the number of equal elements up to it, and whether it is the last of
    these."""
    before = np.tri(ins[0].size, dtype=bool)

    def count(x: Array, mask: Array) -> tuple[Array, ...]:
        equal = (x[:, None] == x) & mask
        counts = (equal & before).sum(1, dtype=np.int32)
        return counts, mask & ~(equal & ~before).any(1)

    return count


@impl_rule("masked_sort")
def _masked_sort(ins: Types, outs: Types, *, descending: Any, **_: Any) -> Callable[..., Any]:
    """A stable sort. Masked-out elements come last, in their old order."""
    wide = np.int64 if is_integer(ins[0].dtype) else np.float64

    def sort(keys: Array, values: Array, *masks: Array) -> Array:
        by = -keys.astype(wide) if descending else keys.astype(wide)
        for mask in masks:
            by[~mask] = 0
        order = np.lexsort((by, *(~mask for mask in masks)))
        return tuple(x[order] for x in (keys, values, *masks))

    return sort


@impl_rule("all_reduce_population_count")
def _count(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    return lambda x: np.full(outs[0].shape, np.count_nonzero(x), np.int32)


@impl_rule("all_reduce_ffs")
def _first(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    size = ins[0].size
    return lambda x: np.full(outs[0].shape, x.argmax() if x.any() else size, np.int32)


# -- two halves in one -------------------------------------------------------------------------


def _axis(format: Any) -> int:
    """The axis of the stack of two halves along which their elements alternate."""
    return 1 if format.name == "INTERLEAVED" else 0


def _require_same_kind(primitive: str, narrow: np.dtype, wide: np.dtype) -> None:
    if is_integer(narrow) != is_integer(wide):
        raise Unsupported(primitive, f"between {narrow.name} and {wide.name}")


@impl_rule("pack")
def _pack(ins: Types, outs: Types, *, format: Any, **_: Any) -> Callable[..., Any]:
    (out,), axis = outs, _axis(format)
    _require_same_kind("pack", out.dtype, ins[0].dtype)
    return lambda a, b: np.stack((a, b), axis).astype(out.dtype).reshape(out.shape)


@impl_rule("unpack")
def _unpack(ins: Types, outs: Types, *, format: Any, **_: Any) -> Callable[..., Any]:
    out, axis = outs[0], _axis(format)
    _require_same_kind("unpack", ins[0].dtype, out.dtype)
    shape = (out.size, 2) if axis else (2, out.size)

    def unpack(ab: Array) -> tuple[Array, ...]:
        halves = ab.reshape(shape).astype(out.dtype)
        return halves.take(0, axis), halves.take(1, axis)

    return unpack


# -- memory -----------------------------------------------------------------------------------


@impl_rule("expand")
def _expand(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    """Puts the array's elements, in order, at the places where the mask is true."""
    (out,) = outs
    fill = memory.filler(out.dtype)

    def expand(x: Array, mask: Array) -> Array:
        result = np.full(out.shape, fill, out.dtype)
        result[mask] = x.reshape(-1)[: np.count_nonzero(mask)]
        return result

    return expand


@impl_rule("compress")
def _compress(ins: Types, outs: Types, *, add: Any) -> Callable[..., Any]:
    """An array whose first elements are replaced by the unmasked ones, or have them added."""

    def compress(before: Array, x: Array, mask: Array) -> Array:
        result, chosen = before.copy(), x[mask]
        first = result.reshape(-1)[: chosen.size]
        first[...] = first + chosen if add else chosen
        return result

    return compress


@impl_rule("gather_elements")
def _gather_elements(ins: Types, outs: Types, *, masked: Any) -> Callable[..., Any]:
    (out,) = outs
    fill = memory.filler(out.dtype)
    if not masked:
        return lambda x, *indices: x[indices]

    def gather(x: Array, *operands: Array) -> Array:
        *indices, mask = operands
        result = np.full(out.shape, fill, out.dtype)
        result[mask] = x[tuple(index[mask] for index in indices)]
        return result

    return gather


@impl_rule("scatter_elements")
def _scatter_elements(ins: Types, outs: Types, *, masked: Any, add: Any) -> Callable[..., Any]:
    """Scatters elements. If several go to one place, the last one stays, or all are added."""

    def scatter(before: Array, x: Array, *operands: Array) -> Array:
        indices = operands[: before.ndim]
        if masked:
            mask = operands[-1]
            x, indices = x[mask], tuple(index[mask] for index in indices)
        result = before.copy()
        if add:
            np.add.at(result, indices, x)
        else:
            result[indices] = x
        return result

    return scatter


class _LanePlace(NamedTuple):
    """The place of an access, and the type of its contents."""

    ref: Value
    path: memory.Path
    leaves: list[Value]
    type: ArrayType

    def load(self, lowering: Lowering) -> Value:
        return refs.load(lowering, self.ref, self.path, self.leaves, self.type)

    def store(self, lowering: Lowering, value: Value) -> None:
        refs.store(lowering, self.ref, self.path, self.leaves, value)


def _access(
    lowering: Lowering, eqn: Any, ins: Sequence[Value]
) -> tuple[state.SparseAccess, _LanePlace]:
    access = state.sparse_access(eqn, ins)
    path, leaves = refs.path_of(access.view)
    ref = access.view.ref
    type = ArrayType(*memory.viewed_type(ref.type.shape, ref.type.dtype, path))
    return access, _LanePlace(ref, path, leaves, type)


def _apply(
    lowering: Lowering, name: str, ins: Sequence[Value | None], out: Type, **params: Any
) -> Value:
    return lowering.apply(name, [v for v in ins if v is not None], [out], params)[0]


@lowering_rule("sparsecore_load")
def _load(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    access, place = _access(lowering, eqn, ins)
    with lowering.touching(access.view, _packed(lowering, access.mask), False):
        value = place.load(lowering)
    if lowering.checker is not None:
        value = lowering.checker.read(access.view, value, _packed(lowering, access.mask))
    if access.mask is None:
        return [value]
    return [_apply(lowering, "expand", (value, access.mask), place.type)]


@lowering_rule("sparsecore_swap")
def _swap(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    access, place = _access(lowering, eqn, ins)
    value, add = access.value, eqn.params["add"]
    if access.mask is not None and not eqn.params.get("compress", True):
        raise Unsupported("swap", "with a mask that doesn't compress")
    with lowering.touching(access.view, _packed(lowering, access.mask), True):
        before = place.load(lowering)
    if lowering.checker is not None:
        packed = _packed(lowering, access.mask)
        if add or lowering.checker.is_used(eqn.outvars[0]):
            before = lowering.checker.read(access.view, before, packed)
        lowering.checker.write(access.view, packed)
    if access.mask is not None:
        value = _apply(lowering, "compress", (before, value, access.mask), place.type, add=add)
    elif add:
        value = _apply(lowering, "add", (before, value), place.type)
    with lowering.unnoted():
        place.store(lowering, value)
    return [before]


@lowering_rule("sparsecore_gather")
def _gather(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    access, place = _access(lowering, eqn, ins)
    with lowering.touching(_elements(access), access.mask, False):
        whole = place.load(lowering)
    operands = (whole, *access.indices, access.mask)
    out = lowering.type(eqn.outvars[0].aval)
    masked = access.mask is not None
    value = _apply(lowering, "gather_elements", operands, out, masked=masked)
    if lowering.checker is None:
        return [value]
    return [lowering.checker.read(_elements(access), value, access.mask, "gathers from")]


@lowering_rule("sparsecore_scatter")
def _scatter(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    access, place = _access(lowering, eqn, ins)
    params = {"masked": access.mask is not None, "add": eqn.params["add"]}
    if lowering.checker is not None:
        lowering.checker.write(_elements(access), access.mask, "scatters to")
    with lowering.touching(_elements(access), access.mask, True):
        operands = (place.load(lowering), access.value, *access.indices, access.mask)
        changed = _apply(lowering, "scatter_elements", operands, place.type, **params)
        place.store(lowering, changed)
    return []


def _elements(access: state.SparseAccess) -> state.RefView:
    """The elements that a gather or scatter touches."""
    return access.view._replace(steps=(*access.view.steps, state.Index(access.indices)))


def _packed(lowering: Lowering, mask: Value | None) -> Value | None:
    """The places in memory of the elements that a mask chooses: one after the other, from the
    start."""
    if mask is None:
        return None
    type = array_type(mask.type)

    def packed(mask: Array) -> Array:
        return (np.arange(mask.size) < np.count_nonzero(mask)).reshape(mask.shape)

    return lowering.memory("check_mask", [mask], [type], packed, PURE, key="packed")[0]


# -- loops and barriers ------------------------------------------------------------------------


@lowering_rule("parallel_loop")
def _parallel_loop(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    """The rounds may run in any order. Here they run in the order of the index."""
    loop = state.parallel_loop(eqn, ins)
    start, end, step = (_int32(lowering, v) for v in loop.bounds)
    types = [start.type, *(v.type for v in loop.carry)]
    boolean = ArrayType((), np.dtype(np.bool_))

    def going(args: Sequence[Value]) -> list[Value]:
        return [_apply(lowering, "lt", (args[0], end), boolean)]

    def body(args: Sequence[Value]) -> list[Value]:
        index, *carried = args
        new = lowering.inline(loop.jaxpr, [*loop.leading, index, *carried], loop.consts)
        return [_apply(lowering, "add", (index, step), index.type), *new]

    regions = [lowering.region(types, going), lowering.region(types, body)]
    return lowering.structured("while", [start, *loop.carry], types, regions, {})[1:]


def _int32(lowering: Lowering, value: Value) -> Value:
    if not isinstance(value.type, ArrayType) or value.type.dtype != np.int32:
        raise Unsupported("parallel_loop", f"over numbers of type {value.type}")
    return value


def _subcores(lowering: Lowering) -> Any:
    """The axis of the subcores that run as programs. None if there is only one subcore."""
    levels = lowering.machine.levels
    if not levels or levels[-1].kind != "core":
        return None
    return list(lowering.kernels[-1].names)[-1]


@lowering_rule("barrier")
def _barrier(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    axis = _subcores(lowering)
    if axis is not None:
        name = "the barrier of the subcores"
        programs.emit_meeting(lowering, name, (axis,), (), (), lambda brought: brought)
    return []


@lowering_rule("sc_fetch_and_add")
def _fetch_and_add(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    ref, value, *indices, subcore = ins
    axis = _subcores(lowering)
    if axis is not None:
        ref = remote.of_core(lowering, ref, axis, subcore)
    elif not remote.is_zero(subcore):
        raise Unsupported("sc_fetch_and_add", "it reaches the memory of another subcore")
    view = state.RefView(ref, (state.Index(tuple(indices)),) if indices else ())
    path, leaves = refs.path_of(view)
    type = array_type(value.type)
    programs.emit_place(lowering)
    with lowering.unnoted():
        before = refs.load(lowering, ref, path, leaves, type)
        if lowering.checker is not None:
            before = lowering.checker.read(view, before, None, "fetches and adds to", atomic=True)
            lowering.checker.write(view, None, "fetches and adds to", atomic=True)
        refs.store(lowering, ref, path, leaves, _apply(lowering, "add", (before, value), type))
    return [before]
