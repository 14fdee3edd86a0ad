"""Pallas TPU: the vector units of SparseCore, as JAX documents them.

JAX has no interpreter for these. Elements that its documentation leaves undefined are uninitialised
here.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pallas_shim.evaluator import memory, refs
from pallas_shim.evaluator.program import ArrayType, Value
from pallas_shim.evaluator.registry import Unsupported, lowering_rule, rule
from pallas_shim.evaluator.scalar_types import is_integer
from pallas_shim.jax_compat import state

# -- scans and sorts under a mask -------------------------------------------------------------


@rule("masked_cumsum")
def _masked_cumsum(ins, outs, **_):
    dtype = outs[0].dtype
    return lambda x, mask: np.cumsum(np.where(mask, x, dtype.type(0)), -1, dtype)


def _running(pick: np.ufunc, lowest: bool):
    def make(ins, outs, **_):
        dtype = outs[0].dtype
        if is_integer(dtype):
            neutral = dtype.type(np.iinfo(dtype).min if lowest else np.iinfo(dtype).max)
        else:
            neutral = dtype.type(-np.inf if lowest else np.inf)

        def scan(x, mask):
            result = pick.accumulate(np.where(mask, x, neutral), -1)
            # Elements before the first that counts pass.
            return np.where(np.logical_or.accumulate(mask, -1), result, x)

        return scan

    return make


rule("masked_cummax")(_running(np.maximum, lowest=True))
rule("masked_cummin")(_running(np.minimum, lowest=False))


@rule("scan_count", "unique")
def _scan_count(ins, outs, **_):
    """The number of equal elements up to each, and a mask of the last of each kind."""
    before = np.tri(ins[0].size, dtype=bool)

    def count(x, mask):
        equal = (x[:, None] == x) & mask
        counts = (equal & before).sum(1, dtype=np.int32)
        return counts, mask & ~(equal & ~before).any(1)

    return count


@rule("masked_sort")
def _masked_sort(ins, outs, *, descending, **_):
    """A stable sort. Masked-out elements come last, in their old order."""
    wide = np.int64 if is_integer(ins[0].dtype) else np.float64

    def sort(keys, values, *masks):
        by = -keys.astype(wide) if descending else keys.astype(wide)
        for mask in masks:
            by[~mask] = 0
        order = np.lexsort((by, *(~mask for mask in masks)))
        return tuple(x[order] for x in (keys, values, *masks))

    return sort


@rule("all_reduce_population_count")
def _count(ins, outs, **_):
    return lambda x: np.full(outs[0].shape, np.count_nonzero(x), np.int32)


@rule("all_reduce_ffs")
def _first(ins, outs, **_):
    size = ins[0].size
    return lambda x: np.full(outs[0].shape, x.argmax() if x.any() else size, np.int32)


# -- two halves in one -------------------------------------------------------------------------


def _axis(format) -> int:
    """Along which axis of the two halves' stack they alternate."""
    return 1 if format.name == "INTERLEAVED" else 0


def _require_same_kind(primitive: str, narrow: np.dtype, wide: np.dtype) -> None:
    if is_integer(narrow) != is_integer(wide):
        raise Unsupported(primitive, f"between {narrow.name} and {wide.name}")


@rule("pack")
def _pack(ins, outs, *, format, **_):
    (out,), axis = outs, _axis(format)
    _require_same_kind("pack", out.dtype, ins[0].dtype)
    return lambda a, b: np.stack((a, b), axis).astype(out.dtype).reshape(out.shape)


@rule("unpack")
def _unpack(ins, outs, *, format, **_):
    (out, _), axis = outs, _axis(format)
    _require_same_kind("unpack", ins[0].dtype, out.dtype)
    shape = (out.size, 2) if axis else (2, out.size)

    def unpack(ab):
        halves = ab.reshape(shape).astype(out.dtype)
        return halves.take(0, axis), halves.take(1, axis)

    return unpack


# -- memory -----------------------------------------------------------------------------------


@rule("expand")
def _expand(ins, outs, **_):
    """The array's elements in turn, where the mask is true."""
    (out,) = outs
    fill = memory.filler(out.dtype)

    def expand(x, mask):
        result = np.full(out.shape, fill, out.dtype)
        result[mask] = x.reshape(-1)[: np.count_nonzero(mask)]
        return result

    return expand


@rule("compress")
def _compress(ins, outs, *, add):
    """An array whose first elements are replaced by, or get added, the ones that count."""

    def compress(before, x, mask):
        result, chosen = before.copy(), x[mask]
        first = result.reshape(-1)[: chosen.size]
        first[...] = first + chosen if add else chosen
        return result

    return compress


@rule("gather_elements")
def _gather_elements(ins, outs, *, masked):
    (out,) = outs
    fill = memory.filler(out.dtype)
    if not masked:
        return lambda x, *indices: x[indices]

    def gather(x, *operands):
        *indices, mask = operands
        result = np.full(out.shape, fill, out.dtype)
        result[mask] = x[tuple(index[mask] for index in indices)]
        return result

    return gather


@rule("scatter_elements")
def _scatter_elements(ins, outs, *, masked, add):
    """If several elements go to one place, the last one counts, or all are added."""

    def scatter(before, x, *operands):
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

    def load(self, lowering) -> Value:
        return refs.load(lowering, self.ref, self.path, self.leaves, self.type)

    def store(self, lowering, value: Value) -> None:
        refs.store(lowering, self.ref, self.path, self.leaves, value)


def _access(lowering, eqn, ins) -> tuple[state.SparseAccess, _LanePlace]:
    access = state.sparse_access(eqn, ins)
    path, leaves = refs.path_of(access.view)
    ref = access.view.ref
    type = ArrayType(*memory.viewed_type(ref.type.shape, ref.type.dtype, path))
    return access, _LanePlace(ref, path, leaves, type)


def _apply(lowering, name: str, ins, out: ArrayType, **params) -> Value:
    return lowering.apply(name, [v for v in ins if v is not None], [out], params)[0]


@lowering_rule("sparsecore_load")
def _load(lowering, eqn, ins):
    access, place = _access(lowering, eqn, ins)
    value = place.load(lowering)
    if access.mask is None:
        return [value]
    return [_apply(lowering, "expand", (value, access.mask), place.type)]


@lowering_rule("sparsecore_swap")
def _swap(lowering, eqn, ins):
    access, place = _access(lowering, eqn, ins)
    value, add = access.value, eqn.params["add"]
    if access.mask is not None and not eqn.params.get("compress", True):
        raise Unsupported("swap", "with a mask that doesn't compress")
    before = place.load(lowering)
    if access.mask is not None:
        value = _apply(lowering, "compress", (before, value, access.mask), place.type, add=add)
    elif add:
        value = _apply(lowering, "add", (before, value), place.type)
    place.store(lowering, value)
    return [before]


@lowering_rule("sparsecore_gather")
def _gather(lowering, eqn, ins):
    access, place = _access(lowering, eqn, ins)
    operands = (place.load(lowering), *access.indices, access.mask)
    out = lowering.type(eqn.outvars[0].aval)
    masked = access.mask is not None
    return [_apply(lowering, "gather_elements", operands, out, masked=masked)]


@lowering_rule("sparsecore_scatter")
def _scatter(lowering, eqn, ins):
    access, place = _access(lowering, eqn, ins)
    operands = (place.load(lowering), access.value, *access.indices, access.mask)
    params = {"masked": access.mask is not None, "add": eqn.params["add"]}
    place.store(lowering, _apply(lowering, "scatter_elements", operands, place.type, **params))
    return []


# -- loops and barriers ------------------------------------------------------------------------


@lowering_rule("parallel_loop")
def _parallel_loop(lowering, eqn, ins):
    """Its rounds may run in any order; they run in the order of the index."""
    loop = state.parallel_loop(eqn, ins)
    start, end, step = (_int32(lowering, v) for v in loop.bounds)
    types = [start.type, *(v.type for v in loop.carry)]
    boolean = ArrayType((), np.dtype(np.bool_))

    def going(args):
        return [_apply(lowering, "lt", (args[0], end), boolean)]

    def body(args):
        index, *carried = args
        new = lowering.inline(loop.jaxpr, [*loop.leading, index, *carried], loop.consts)
        return [_apply(lowering, "add", (index, step), index.type), *new]

    regions = [lowering.region(types, going), lowering.region(types, body)]
    return lowering.structured("while", [start, *loop.carry], types, regions, {})[1:]


def _int32(lowering, value):
    if not isinstance(value.type, ArrayType) or value.type.dtype != np.int32:
        raise Unsupported("parallel_loop", f"over numbers of type {value.type}")
    return value


@lowering_rule("barrier")
def _barrier(lowering, eqn, ins):
    """The barrier of one subcore. A kernel with a barrier on several is refused."""
    return []
