"""Operations on many cells of a grid that no primitive provides.

These are tables over the cells, views of many blocks, and a loop that runs an operation without a
batching rule for one cell after the other.

A stack has axes in front, its *lead*. An axis of the lead has size 1 if the stack's members don't
differ along it. A ref of many blocks is a NumPy view if the blocks are evenly spaced. Otherwise it
is a list of views in the order of its lead. Only the operations here take such lists.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.batching_rules import LeadingAxes
from pallas_shim.evaluator.blocks import block_viewer, clamped, from_the_start
from pallas_shim.evaluator.program import PURE, Array, ArrayType, Operation, RefType, Type, Types
from pallas_shim.evaluator.refs import READS_FIRST, UPDATES_FIRST, WRITES_FIRST
from pallas_shim.evaluator.registry import impl_rule
from pallas_shim.evaluator.specialise import specialise
from pallas_shim.jax_compat.state import Index, Slice


@impl_rule("lookup")
def _lookup(ins: Types, outs: Types, *, table: Any, **_: Any) -> Callable[..., Any]:
    """The entries of a table at the given indices. The result has the table's other axes."""
    return lambda *at: table[at]


@impl_rule("blocks", view=True)
def _blocks(
    ins: Types, outs: Types, *, starts: Any, steps: Any, kept: Any, **_: Any
) -> Callable[..., Any]:
    """A view of blocks that lie evenly in an array.

    Args:
      starts: for each dimension of the array, a table of the first block's start. The further
        operands are the table's indices.
      steps: for each axis of the lead, the step along each dimension of the array.
      kept: the dimensions of the array that the blocks keep.
    """
    array, (shape, dtype) = ins[0], outs[0]
    strides = _strides(array)
    # Starts can have 32 bits, which don't hold all offsets in bytes.
    offsets = sum(
        start * np.int64(stride) for start, stride in zip(starts, strides, strict=True)
    ) + np.zeros((1,) * (len(ins) - 1), np.int64)
    lead_strides = [sum(map(int.__mul__, step, strides)) for step in steps]
    out_strides = (*lead_strides, *(strides[d] for d in kept))

    def view(array: Array, *at: Array) -> Array:
        if not array.flags.c_contiguous:
            first = [int(start.item(at)) for start in starts]
            return _strided(array, first, steps, kept, shape)
        return np.ndarray(shape, dtype, array, offsets.item(at), out_strides)

    return view


def _strides(array: ArrayType) -> tuple[int, ...]:
    sizes = itertools.accumulate(array.shape[:0:-1], int.__mul__, initial=array.dtype.itemsize)
    return tuple(sizes)[::-1] if array.shape else ()


def _strided(
    array: Array,
    first: Sequence[int],
    steps: Sequence[Sequence[int]],
    kept: Sequence[int],
    shape: tuple[int, ...],
) -> Array:
    if not steps:  # as_strided is slow
        length = dict(zip(kept, shape, strict=True))
        return array[
            (*[slice(at, at + length[d]) if d in length else at for d, at in enumerate(first)], ...)
        ]
    lead = [sum(map(int.__mul__, step, array.strides)) for step in steps]
    corner = array[tuple(slice(at, None) for at in first)]
    strides = (*lead, *(array.strides[d] for d in kept))
    return _as_strided(corner, shape, strides)


def _as_strided(array: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """NumPy's as_strided for any dtype. NumPy's own fails for float8_e5m2, because it takes that
    dtype for one of NumPy's floats."""
    bits = array.view(np.uint8) if array.dtype == _E5M2 else array
    return np.lib.stride_tricks.as_strided(bits, shape, strides).view(array.dtype)


_E5M2 = np.dtype(ml_dtypes.float8_e5m2)


# -- one cell after the other -----------------------------------------------------------------


def _members(leads: Sequence[LeadingAxes]) -> list[tuple[Any, ...]]:
    """For each cell of the common lead, the index into each operand."""
    lead = [max(sizes) for sizes in zip(*[one for one in leads if one is not None], strict=True)]
    return [
        tuple(
            [
                None if one is None else (*map(min, at, [n - 1 for n in one]), ...)
                for one in leads
            ]
        )
        for at in np.ndindex(*lead)
    ]


@impl_rule("each")
def _each(
    ins: Types, outs: Types, *, primitive: Any, of: Any, members: Any, leads: Any, multiple: Any
) -> Callable[..., Any]:
    """Runs a primitive for one cell after the other. ``of`` are its parameters, ``members`` the
    types of its operands in one cell."""
    cells = _members(leads)
    rank = len(next(lead for lead in leads if lead is not None))
    types = tuple(ArrayType(out.shape[rank:], out.dtype) for out in outs)
    fn = specialise(primitive, members, types, of, multiple).fn
    assert fn is not None

    def run(*operands: Array) -> Array:
        results = [np.empty((len(cells), *t.shape), t.dtype) for t in types]
        for position, keys in enumerate(cells):
            member = [x if key is None else x[key] for x, key in zip(operands, keys, strict=True)]
            values = fn(*member)
            for result, value in zip(results, values if multiple else (values,), strict=True):
                result[position] = value
        stacks = [r.reshape(out.shape) for r, out in zip(results, outs, strict=True)]
        return tuple(stacks) if multiple else stacks[0]

    return run


def _picker(
    leads: Sequence[LeadingAxes], listed: bool
) -> Callable[[Sequence[Any]], list[list[Any]]]:
    """Returns a function that lists each cell's operands. The first operand is a ref, or with
    ``listed`` a list of refs."""
    cells = _members(leads)
    if not listed:
        return lambda operands: [
            [x if key is None else x[key] for x, key in zip(operands, keys, strict=True)]
            for keys in cells
        ]
    assert leads[0] is not None
    numbers = np.arange(np.prod(leads[0])).reshape(leads[0])
    places = [(int(numbers[ref]), rest) for ref, *rest in cells]

    def pick(operands: Array) -> Array:
        refs, *others = operands
        return [
            [refs[at], *[x if k is None else x[k] for x, k in zip(others, keys, strict=True)]]
            for at, keys in places
        ]

    return pick


def each_block(
    block: Any, ins: tuple[Type, ...], out: RefType, leads: Sequence[LeadingAxes]
) -> Operation:
    """A list of the blocks of an array, one per cell. Operands: the array, leaves."""
    view, pick = block_viewer(block), _picker(leads, False)

    def run(*operands: Array) -> Array:
        return [view(*member) for member in pick(operands)]

    params = {"block": block, "leads": tuple(leads)}
    return Operation("each_block", params, ins, (out,), run, PURE, view=True)


def _copier(block: Any) -> Callable[..., np.ndarray]:
    """The function ``(array, *leaves)`` that returns a stack of the blocks at the leaves. The
    leaves are stacks too. ``block`` has the form that `blocks.block_viewer` takes."""
    key = tuple([slice(None) if isinstance(entry, tuple) else entry for entry in block])
    key = tuple([slice(k, k + 1) if isinstance(k, int) else k for k in key])
    moving = [(d, *entry) for d, entry in enumerate(block) if isinstance(entry, tuple)]
    kept = [
        not isinstance(entry, int) and not (isinstance(entry, tuple) and entry[-1])
        for entry in block
    ]

    if len(moving) == len(block) == 1 and not kept[0]:
        ((_, leaf, scale, dim, _, _),) = moving

        def take(array: Array, *leaves: Array) -> Array:
            at = np.asarray(leaves[leaf])
            if scale == 1 and at.dtype == np.int32:
                try:
                    return array.take(at)  # which also counts negative ones from the end
                except IndexError:
                    pass
            return array.take(from_the_start(at, scale, dim), mode="clip")

        return take

    def copy(array: Array, *leaves: Array) -> Array:
        array = array[key]
        shape, starts = list(array.shape), []
        for d, leaf, scale, dim, size, _ in moving:
            shape[d] = size
            starts.append(clamped(np.asarray(leaves[leaf]), scale, dim, size))
        # Views the blocks at all places as one array, and takes the blocks at the starts.
        counts = [dim - size + 1 for _, _, _, dim, size, _ in moving]
        strides = [array.strides[d] for d, *_ in moving]
        everywhere = _as_strided(array, (*counts, *shape), (*strides, *array.strides))
        blocks = everywhere[tuple(starts)]
        lead = blocks.shape[: blocks.ndim - len(shape)]
        return blocks.reshape(*lead, *[n for n, keep in zip(shape, kept, strict=True) if keep])

    return copy


def copied_blocks(
    block: Any, ins: tuple[Type, ...], out: RefType, leads: Sequence[LeadingAxes]
) -> Operation:
    """A copy of blocks of an array. Nobody writes to the array. Operands: the array, leaves."""
    params = {"block": block, "leads": tuple(leads)}
    return Operation("copied_blocks", params, ins, (out,), _copier(block), READS_FIRST)


def _as_block(path: memory.Path, shape: tuple[int, ...]) -> Any:
    """The path in the form of a block, if it is a single index. Otherwise None."""
    if len(path) != 1 or not isinstance(path[0], Index):
        return None
    entries: list[Any] = []
    for dim, at in zip(shape, path[0].dims, strict=True):
        if isinstance(at, memory.Dynamic):
            entries.append((at.leaf, 1, dim, 1, True))
        elif not isinstance(at, Slice):
            entries.append(at)
        elif at.stride == 0:
            return None
        elif isinstance(at.start, memory.Dynamic):
            entries.append((at.start.leaf, 1, dim, at.size, False))
        else:
            entries.append(slice(at.start, at.start + at.size * at.stride, at.stride))
    return tuple(entries)


def block_of_all(member: RefType, path: memory.Path, leads: Sequence[LeadingAxes]) -> Any:
    """The block, as in `blocks.block_viewer`, for one index that takes the parts of all cells. None
    if there is none."""
    return _as_block(path, member.shape) if leads[0] is None else None


def each_load(
    member: RefType, path: memory.Path, ins: tuple[Type, ...], out: ArrayType,
    leads: Sequence[LeadingAxes], listed: bool,
) -> Operation:  # fmt: skip
    """A load from each cell's own ref, or at each cell's own place. Operands: ref, leaves."""
    params = {"path": path, "leads": tuple(leads), "listed": listed}
    block = block_of_all(member, path, leads)
    if block is not None:
        return Operation("each_get", params, ins, (out,), _copier(block), READS_FIRST)
    view = memory.viewer(member.shape, member.dtype, path)
    pick = _picker(leads, listed)
    shape, dtype = out
    part, _ = memory.viewed_type(member.shape, member.dtype, path)

    def run(*operands: Array) -> Array:
        members = pick(operands)
        result = np.empty((len(members), *part), dtype)
        for at, one in enumerate(members):
            result[at] = view(*one)
        return result.reshape(shape)

    return Operation("each_get", params, ins, (out,), run, READS_FIRST)


def each_store(
    member: RefType, path: memory.Path, ins: tuple[Type, ...], leads: Sequence[LeadingAxes],
    listed: bool,
) -> Operation:  # fmt: skip
    """A store to each cell's own ref, or at each cell's own place. Operands: ref, value,
    leaves."""
    write = memory.writer(member.shape, member.dtype, path)
    pick = _picker(leads, listed)

    def run(*operands: Array) -> tuple[()]:
        for one in pick(operands):
            write(*one)
        return ()

    params = {"path": path, "leads": tuple(leads), "listed": listed}
    return Operation("each_store", params, ins, (), run, WRITES_FIRST, multiple=True)


def accumulate(
    ufunc: np.ufunc, path: memory.Path, ins: tuple[Type, ...], rounds: int
) -> Operation:
    """Runs ``ref[at] = ufunc(ref[at], value)`` in place, one round after the other. Operands: ref,
    values, the leaves of the places. An operand is the same for all rounds, or has one entry per
    round."""
    shape = ins[0].shape
    dims: tuple[Any, ...] = tuple([Slice(0, size, 1) for size in shape])
    for step in path:  # at most one step
        assert isinstance(step, Index)
        dims = step.dims
    moving = [(d, at.leaf) for d, at in enumerate(dims) if isinstance(at, memory.Dynamic)]
    key = tuple(
        [
            slice(None) if isinstance(at, memory.Dynamic)
            else slice(at.start, at.start + at.size * at.stride, at.stride)
            if isinstance(at, Slice) else at
            for at in dims
        ]
    )  # fmt: skip
    kept = [d for d, at in enumerate(key) if isinstance(at, slice)]
    front = [kept.index(d) for d, _ in moving]
    order = (*front, *[d for d in range(len(kept)) if d not in front], len(kept))
    part = tuple([dim.size for dim in dims if isinstance(dim, Slice)])
    at_once = all(size == 1 for size in part)

    def run(ref: Array, values: Array, *leaves: Array) -> tuple[()]:
        # The added dimension gives even a single element a dimension to index.
        array = ref[(*key, ..., None)].transpose(order)
        at = [clamped(np.asarray(leaves[leaf]), 1, shape[d], 1) for d, leaf in moving]
        at = [np.full(rounds, place) if place.ndim == 0 else place for place in at]
        if at_once:
            places = tuple(at) or (np.zeros(rounds, np.intp),)
            # NumPy is several times faster on one dimension.
            array = array.reshape(array.shape[: len(at)] or (1,))
            ufunc.at(array, places, values.reshape(-1 if values.size > 1 else ()))
            return ()
        array, values = array[..., 0], np.broadcast_to(values, (rounds, *part))
        if not (at and _in_waves(ufunc, array, values, at)):
            for value, *place in zip(values, *map(np.ndarray.tolist, at), strict=True):
                target = array[tuple(place)]
                ufunc(target, value, out=target)
        return ()

    params = {"ufunc": ufunc.__name__, "path": path, "rounds": rounds}
    return Operation("accumulate", params, ins, (), run, UPDATES_FIRST, multiple=True)


# In fewer rounds, or with more of them at one place on average, one call a round is faster.
_FEWEST_ROUNDS, _ROUNDS_OF_A_WAVE = 16, 4


def _in_waves(
    ufunc: np.ufunc, array: np.ndarray, values: np.ndarray, at: Sequence[np.ndarray]
) -> bool:
    """Accumulates the first round at each place, then the second one, and so on. So each place gets
    its rounds in order. Returns False, and does nothing, if that wouldn't be faster."""
    rounds, places = len(values), math.prod(array.shape[: len(at)])
    if rounds < _FEWEST_ROUNDS:
        return False
    number = at[0] if len(at) == 1 else np.ravel_multi_index(tuple(at), array.shape[: len(at)])
    # NumPy sorts small types in linear time.
    order = number.astype(np.min_scalar_type(places)).argsort(kind="stable")
    in_order = number[order]
    first = np.flatnonzero(in_order[1:] != in_order[:-1]) + 1
    first = np.concatenate(([0], first))
    lengths = np.diff(first, append=rounds)
    if lengths.max() * _ROUNDS_OF_A_WAVE > rounds:
        return False
    longest_first = np.argsort(-lengths, kind="stable")
    first, lengths = first[longest_first], lengths[longest_first]
    own = tuple([place[order[first]] for place in at])
    parts = array[own]
    for wave, count in enumerate(np.searchsorted(-lengths, -np.arange(lengths[0])).tolist()):
        reached = parts[:count]
        ufunc(reached, values.take(order[first[:count] + wave], 0), out=reached)
    array[own] = parts
    return True


def load(ref: RefType, path: memory.Path, ins: tuple[Type, ...], out: ArrayType) -> Operation:
    """A single load from a ref for all cells. Operands: ref, leaves."""
    view = memory.viewer(ref.shape, ref.dtype, path)

    def copy(*args: Array) -> Array:
        return view(*args).copy()

    return Operation("get", {"path": path, "as_view": view}, ins, (out,), copy, READS_FIRST)


def store(ref: RefType, path: memory.Path, ins: tuple[Type, ...]) -> Operation:
    """A single store to a ref for all cells. Operands: ref, a value that may broadcast, leaves."""
    write = memory.writer(ref.shape, ref.dtype, path)

    def run(*args: Array) -> tuple[()]:
        write(*args)
        return ()

    return Operation("store", {"path": path}, ins, (), run, WRITES_FIRST, multiple=True)
