"""Loads, stores, blocks, and other instructions that get to memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator.codegen.native import elements
from pallas_shim.evaluator.codegen.native.groups import nest
from pallas_shim.evaluator.codegen.native.places import (
    Buffer,
    BufferPlace,
    broadcast,
    dummy,
    viewed,
)
from pallas_shim.evaluator.codegen.native.rounds import Rounds
from pallas_shim.evaluator.codegen.native.source import NotNative, Source, literal, type_of
from pallas_shim.evaluator.codegen.native.values import Values
from pallas_shim.evaluator.memory import Dynamic
from pallas_shim.evaluator.program import ArrayType, Instruction, KeyType, RefType, Value
from pallas_shim.jax_compat.state import Index, Reshape, Slice, Transpose


def at_path(to: Values, ref: Value, path: Sequence[Any], leaves: Sequence[Value]) -> BufferPlace:
    """Where a path leads from a ref."""
    place = to.place(ref)
    for step in path:
        match step:
            case Index(dims):
                place = _at_index(to, place, dims, leaves)
            case Transpose(permutation):
                place = BufferPlace(
                    place.buffer, place.offset,
                    tuple(place.strides[d] for d in permutation),
                    tuple(place.shape[d] for d in permutation), place.dtype,
                )  # fmt: skip
            case Reshape(shape):
                fake = dummy(place)
                found = viewed(fake.reshape(shape), fake)
                if found is None:
                    raise NotNative("a reshape of a strided ref")
                place = BufferPlace(place.buffer, place.offset, found[1], tuple(shape), place.dtype)
            case _:
                raise NotNative(f"a {type(step).__name__.lower()} of a ref")
    return place


def _at_index(
    to: Values, place: BufferPlace, dims: Sequence[Any], leaves: Sequence[Value]
) -> BufferPlace:
    offset, strides, shape = place.offset, [], []
    for size, stride, index in zip(place.shape, place.strides, dims, strict=True):
        if isinstance(index, Slice):
            if not isinstance(index.size, int) or index.size < 1:
                raise NotNative("a slice of dynamic size")
            start = index.start
            first = (
                _start(to, leaves[start.leaf], size, index.size)
                if isinstance(start, Dynamic)
                else str(int(start))
            )
            shape.append(index.size)
            strides.append(stride * index.stride)
        elif isinstance(index, Dynamic):
            first = _start(to, leaves[index.leaf], size, 1)
        elif isinstance(index, (int, np.integer)):
            first = str(int(index) % size)
        else:
            raise NotNative("an index that is an array")
        offset = to.to.plus(offset, to.to.times(first, stride))
    return BufferPlace(place.buffer, offset, tuple(strides), tuple(shape), place.dtype)


def _start(to: Values, leaf: Value, dim: int, size: int, scale: int = 1) -> str:
    if not isinstance(leaf.type, ArrayType) or leaf.type.shape:
        raise NotNative("an index that is an array")
    return _clamped(to.to, to.register(leaf), leaf.type.dtype, dim, size, scale)


def _clamped(
    to: Source, register: str, dtype: np.dtype, dim: int, size: int, scale: int = 1
) -> str:
    return elements.clamped(to, to.times(elements.as_index(to, dtype, register), scale), dim, size)


def _get(to: Any, instruction: Instruction) -> None:
    operation, (ref, *leaves), (out,), *_ = instruction
    path = operation.params["path"]
    place = at_path(to, ref, path, leaves)
    if not out.type.shape:
        to.registers[out] = to.scalar_at(place)
    elif operation.view:
        to.set_place(out, place)
    else:
        _load_all(to, out, place)
    to.used_by(place.shape, ref)
    for leaf in leaves:
        to.used(leaf)


def _load_all(to: Any, out: Value, place: BufferPlace) -> None:
    """A value that is a copy of what memory has at the moment."""
    to.before_reading(place.buffer, to.groups.get(place.shape))
    group = to.group(place.shape)
    if group.writes_buffer(place.buffer):
        to.flush(group)
        group = to.group(place.shape)
    access = group.access(place)
    group.add(out, (), lambda rounds: rounds.set(out, rounds.load(access)))
    group.loads.add(out)
    to.pending[out] = group


def _store(to: Any, instruction: Instruction) -> None:
    operation, (ref, value, *leaves), *_ = instruction
    place = at_path(to, ref, operation.params["path"], leaves)
    shape = value.type.shape
    if np.broadcast_shapes(shape, place.shape) != place.shape:
        raise NotNative("a store of a value with more dimensions")
    if value.type.dtype != place.dtype:
        raise NotNative("a store of another type")
    to.store(place, value)
    to.used_by(place.shape, ref)
    for leaf in leaves:
        to.used(leaf)


def _buffer(to: Any, instruction: Instruction) -> None:
    operation, ins, (out,), *_ = instruction
    if not ins:
        _allocate(to, instruction)
        return
    (source,) = ins
    if source.type.shape != out.type.shape or source.type.dtype != out.type.dtype:
        raise NotNative("blocks that stick out of an array")
    if out in to.written or not out.type.shape:
        to.store(to.allocate(out), source)
    else:
        to.set_place(out, to.place(source))
        to.used(source)


def _allocate(to: Any, instruction: Instruction) -> None:
    operation, _, (out,), *_ = instruction
    place = to.allocate(out)
    assert operation.fn is not None
    contents = np.asarray(operation.fn())
    to.store(place, Value(ArrayType(contents.shape, contents.dtype), contents))


def _unfilled(to: Any, instruction: Instruction) -> None:
    to.allocate(instruction.outs[0])


def _contents(to: Any, instruction: Instruction) -> None:
    operation, (ref,), (out,), *_ = instruction
    to.flush_all()
    seen = to.seen(to.place(ref), operation, out)
    if seen is None:
        raise NotNative("contents that are a copy")
    to.set_place(out, seen)
    to.used(ref)


def _view(to: Any, instruction: Instruction) -> None:
    """A block of a buffer."""
    operation, (ref, *leaves), (out,), *_ = instruction
    if "block" not in operation.params:
        raise NotNative("a view of a kind of its own")
    place = to.place(ref)
    offset, strides, shape = place.offset, [], []
    for size, stride, at in zip(place.shape, place.strides, operation.params["block"], strict=True):
        if isinstance(at, tuple):
            leaf, scale, dim, length, squeezed = at
            first = _start(to, leaves[leaf], dim, length, scale)
        elif isinstance(at, slice):
            first, length, squeezed = str(at.start), at.stop - at.start, False
            assert at.step in (None, 1) and size >= length
        else:
            first, length, squeezed = str(int(at)), 1, True
        offset = to.to.plus(offset, to.to.times(first, stride))
        if not squeezed:
            strides.append(stride)
            shape.append(length)
    if tuple(shape) != out.type.shape:
        raise NotNative("a block of another shape")
    to.set_place(out, BufferPlace(place.buffer, offset, tuple(strides), tuple(shape), place.dtype))
    for value in (ref, *leaves):
        to.used(value)


def _blocks(to: Any, instruction: Instruction) -> None:
    """The blocks of many cells that lie evenly."""
    operation, (ref, *at), (out,), *_ = instruction
    params, place = operation.params, to.place(ref)
    offset = place.offset
    for start, stride in zip(params["starts"], place.strides, strict=True):
        first = _entry(to, np.asarray(start), at)
        offset = to.to.plus(offset, to.to.times(first, stride))
    lead = [sum(map(int.__mul__, map(int, step), place.strides)) for step in params["steps"]]
    strides = (*lead, *(place.strides[d] for d in params["kept"]))
    to.set_place(out, BufferPlace(place.buffer, offset, strides, out.type.shape, place.dtype))
    for value in (ref, *at):
        to.used(value)


def _entry(to: Any, table: np.ndarray, at: Sequence[Value]) -> str:
    """What a table has at some indices, as a number of 64 bits."""
    if table.size == 1:
        return str(int(table.reshape(-1)[0]))
    place = to.constant(np.ascontiguousarray(table, np.int64))
    offset = "0"
    for index, size, stride in zip(at, table.shape, place.strides, strict=True):
        if size > 1:
            number = elements.as_index(to.to, index.type.dtype, to.register(index))
            offset = to.to.plus(offset, to.to.times(number, stride))
    return to.to.load(place.dtype, place.buffer.base, offset)


def _lookup(to: Any, instruction: Instruction) -> None:
    operation, at, (out,), *_ = instruction
    table = np.asarray(operation.params["table"])
    place = to.constant(table)
    offset = place.offset
    for index, stride in zip(at, place.strides, strict=False):
        if index.type.shape:
            raise NotNative("a lookup of many entries")
        number = elements.as_index(to.to, index.type.dtype, to.register(index))
        offset = to.to.plus(offset, to.to.times(number, stride))
    rest = place.strides[len(at) :]
    entry = BufferPlace(place.buffer, offset, rest, table.shape[len(at) :], place.dtype)
    if out.type.shape:
        to.set_place(out, entry)
    else:
        to.registers[out] = to.to.load(entry.dtype, entry.buffer.base, entry.offset)
    for value in at:
        to.used(value)


def _each_get(to: Any, instruction: Instruction) -> None:
    """Elements of memory at many places."""
    operation, (ref, *leaves), (out,), *_ = instruction
    params = operation.params
    path, leads = params["path"], params["leads"]
    if leads[0] is not None or params["listed"] or len(path) != 1:
        raise NotNative("loads from the refs of many cells")
    if not isinstance(path[0], Index):
        raise NotNative("loads of many cells by another path than an index")
    place = to.place(ref)
    rank = len(next(lead for lead in leads if lead is not None))
    moving, kept = [], []
    offset, axis = place.offset, rank
    for dim, stride, index in zip(place.shape, place.strides, path[0].dims, strict=True):
        start, size = index, 1
        if isinstance(index, Slice):
            start, size = index.start, index.size
            if not isinstance(size, int) or index.stride < 1:
                raise NotNative("a slice of dynamic size")
            kept.append((axis, stride * index.stride))
            axis += 1
        if isinstance(start, Dynamic):
            moving.append((leaves[start.leaf], 1, dim, size, stride))
        else:
            offset = to.to.plus(offset, str(int(start) % max(dim, 1) * stride))
    _elements(to, out, place, offset, moving, kept, [*leaves, ref])


def _copied_blocks(to: Any, instruction: Instruction) -> None:
    """Blocks at many places of an array to which nothing writes, as memory of their own."""
    operation, (ref, *leaves), (out,), *_ = instruction
    if operation.params["leads"][0] is not None:
        raise NotNative("blocks of the arrays of many cells")
    place, shape = to.place(ref), out.type.shape
    rank = len(next(lead for lead in operation.params["leads"] if lead is not None))
    moving, kept = [], []
    offset, axis = place.offset, rank
    for stride, at in zip(place.strides, operation.params["block"], strict=True):
        squeezed = False
        if isinstance(at, tuple):
            leaf, scale, dim, size, squeezed = at
            moving.append((leaves[leaf], scale, dim, size, stride))
        elif isinstance(at, slice):
            step = at.step or 1
            offset = to.to.plus(offset, str(int(at.start) * stride))
            stride *= step
        else:
            offset, squeezed = to.to.plus(offset, str(int(at) * stride)), True
        if not squeezed:
            kept.append((axis, stride))
            axis += 1
    made = Value(ArrayType(shape, place.dtype))
    to.left[made] = 1
    _elements(to, made, place, offset, moving, kept, [*leaves, ref])
    to.store(to.room(out), made)


def _elements(
    to: Any,
    out: Value,
    place: BufferPlace,
    offset: str,
    moving: Sequence[tuple[Value, int, int, int, int]],
    kept: Sequence[tuple[int, int]],
    used: Sequence[Value],
) -> None:
    """Adds a value whose elements come from many places.

    ``moving``: what gives the starts along a dimension, times what; the dimension's size, that of a
    block, and the stride. ``kept``: axes of the value that go along a block, and their strides.
    """
    to.before_reading(place.buffer)
    shape = out.type.shape
    behind = (1,) * len(kept)
    at = []
    for leaf, scale, dim, size, stride in moving:
        if behind and leaf.type.shape:
            own = to.place(leaf)
            leaf = Value(ArrayType((*leaf.type.shape, *behind), leaf.type.dtype))
            strides = (*own.strides, *[0 for _ in behind])
            shaped = own.buffer, own.offset, strides, leaf.type.shape, own.dtype
            to.places[leaf] = BufferPlace(*shaped)
        at.append((to.operand(shape, leaf), leaf.type.dtype, scale, dim, size, stride))
    group = to.group(shape)
    if any(o.place is not None and group.writes_buffer(o.place.buffer) for o, *_ in at):
        to.flush(group)
        at = [(to.operand(shape, o.value), *rest) for o, *rest in at]
        group = to.group(shape)
    reads = [(operand.reader(group), *rest) for operand, *rest in at]
    group.also_read.add(place.buffer)
    group.indexed.update(axis for axis, _ in kept)
    group.uses.update(used)

    def member(rounds: Rounds) -> None:
        source, where = rounds.to, offset
        for read, dtype, scale, dim, size, stride in reads:
            start = _clamped(source, read(rounds), dtype, dim, size, scale)
            where = source.plus(where, source.times(start, stride))
        for axis, stride in kept:
            where = source.plus(where, source.times(rounds.index(axis), stride))
        rounds.set(out, source.load(place.dtype, place.buffer.base, where))

    group.add(out, used, member)
    to.pending[out] = group


def _take(to: Any, instruction: Instruction) -> None:
    operation, (source,), (out,), *_ = instruction
    axis = operation.params["axis"] % len(source.type.shape)
    indices = np.asarray(operation.params["indices"]).reshape(-1).astype(np.int64)
    if source.type.shape[:axis] != out.type.shape[:axis] or not len(indices):
        raise NotNative("take")
    _taken(to, out, source, {axis: indices % source.type.shape[axis]})


def _taken(to: Any, out: Value, source: Value, tables: dict[int, np.ndarray]) -> None:
    place, shape = to.place(source), out.type.shape
    to.before_reading(place.buffer, to.groups.get(shape))
    group = to.group(shape)
    if group.writes_buffer(place.buffer):
        to.flush(group)
        group = to.group(shape)
    access = group.access(place, tables)
    group.add(out, (), lambda rounds: rounds.set(out, rounds.load(access)))
    group.loads.add(out)
    group.uses[source] += 1
    to.pending[out] = group


def _gather(to: Any, instruction: Instruction) -> None:
    """Windows of an array at many places."""
    operation, (source, indices), (out,), *_ = instruction
    params, dnums = operation.params, operation.params["dimension_numbers"]
    sizes, fills = params["slice_sizes"], params["mode"].name == "FILL_OR_DROP"
    wide = indices.type.dtype.itemsize == 8
    if isinstance(source.type, KeyType) or len(sizes) != len(source.type.shape) or wide:
        raise NotNative("gather")
    if params["mode"].name not in ("CLIP", "FILL_OR_DROP", "PROMISE_IN_BOUNDS"):
        raise NotNative("gather")
    shape, dtype = out.type.shape, source.type.dtype
    place, listed = to.place(source), to.place(indices)
    for buffer in {place.buffer, listed.buffer}:
        to.before_reading(buffer)
    batch = [axis for axis in range(len(shape)) if axis not in dnums.offset_dims]
    along = iter(dnums.offset_dims)
    whole = {*dnums.collapsed_slice_dims, *dnums.operand_batching_dims}
    window = [
        (next(along), stride) for dim, stride in enumerate(place.strides) if dim not in whole
    ]
    same = zip(dnums.operand_batching_dims, dnums.start_indices_batching_dims, strict=True)
    beside = [(batch[axis], place.strides[dim]) for dim, axis in same]
    fill = literal(np.asarray(params["fill_value"]).astype(dtype)) if fills else ""
    group = to.group(shape)
    group.also_read.update((place.buffer, listed.buffer))
    group.indexed.update((*batch, *[axis for axis, _ in window]))
    group.uses.update([source, indices])

    def member(rounds: Rounds) -> None:
        text, where = rounds.to, place.offset
        vector = listed.offset
        for axis, stride in zip(batch, listed.strides, strict=False):
            vector = text.plus(vector, text.times(rounds.index(axis), stride))
        inside = "true"
        for number, dim in enumerate(dnums.start_index_map):
            entry = text.plus(vector, str(number * listed.strides[-1]))
            start = elements.as_index(
                text, listed.dtype, text.load(listed.dtype, listed.buffer.base, entry)
            )
            last = place.shape[dim] - sizes[dim]
            if fills:
                fits = text.let(f"icmp ule i64 {start}, {last}")
                inside = fits if inside == "true" else text.let(f"and i1 {inside}, {fits}")
            start = text.call("i64", "llvm.smax.i64", f"i64 {start}", "i64 0")
            start = text.call("i64", "llvm.smin.i64", f"i64 {start}", f"i64 {last}")
            where = text.plus(where, text.times(start, place.strides[dim]))
        for axis, stride in (*window, *beside):
            where = text.plus(where, text.times(rounds.index(axis), stride))
        value = text.load(dtype, place.buffer.base, where)
        if fills:
            value = text.let(
                f"select i1 {inside}, {type_of(dtype)} {value}, {type_of(dtype)} {fill}"
            )
        rounds.set(out, value)

    group.add(out, (), member)
    to.pending[out] = group


def _pad(to: Any, instruction: Instruction) -> None:
    operation, (source, value), (out,), *_ = instruction
    whole = to.room(out)
    to.left[value] += 1
    to.store(whole, value)
    to.flush_all()
    taken, shape = to.place(source), []
    begin, first, steps, strides = whole.offset, taken.offset, [], []
    for axis, (low, _, interior) in enumerate(operation.params["padding_config"]):
        # Element i lands at low + i * step. Elements that land outside are cropped.
        step, length, size = interior + 1, out.type.shape[axis], source.type.shape[axis]
        start = max(0, -(low // step))
        shape.append(min(size, -((low - length) // step)) - start)
        begin = to.to.plus(begin, str((low + start * step) * whole.strides[axis]))
        first = to.to.plus(first, str(start * taken.strides[axis]))
        steps.append(step * whole.strides[axis])
        strides.append(taken.strides[axis])
    if all(size > 0 for size in shape):
        part = _seen(
            to, BufferPlace(taken.buffer, first, tuple(strides), tuple(shape), taken.dtype)
        )
        to.store(BufferPlace(whole.buffer, begin, tuple(steps), tuple(shape), whole.dtype), part)
        to.flush_all()
    to.used(source)
    to.used(value)


def _seen(to: Any, place: BufferPlace) -> Value:
    """A value that lies at a place, to be used once."""
    value = Value(ArrayType(place.shape, place.dtype))
    to.left[value] = 1
    to.set_place(value, place)
    return value


def _join(to: Any, instruction: Instruction) -> None:
    """A stack of values and of parts of other stacks."""
    operation, ins, (out,), *_ = instruction
    parts, one = operation.params["parts"], out.type.shape[1:]
    if any(key is None and ins[position].type.shape != one for position, key in parts):
        raise NotNative("join")
    whole, row = to.room(out), 0
    for position, key in parts:
        source = ins[position]
        stride, *strides = whole.strides
        offset = to.to.plus(whole.offset, str(row * stride))
        shape = source.type.shape
        if key is None:
            to.left[source] += 1
            place = BufferPlace(whole.buffer, offset, tuple(strides), one, whole.dtype)
            to.store(place, source)
            row += 1
            continue
        taken = to.place(source)
        rows = range(shape[0])[key]
        part = BufferPlace(
            taken.buffer, to.to.plus(taken.offset, str(rows.start * taken.strides[0])),
            (rows.step * taken.strides[0], *taken.strides[1:]), (len(rows), *shape[1:]),
            taken.dtype,
        )  # fmt: skip
        place = BufferPlace(whole.buffer, offset, whole.strides, part.shape, whole.dtype)
        to.store(place, _seen(to, part))
        row += len(rows)
    to.flush_all()
    for value in ins:
        to.used(value)


def _concatenate(to: Any, instruction: Instruction) -> None:
    operation, ins, (out,), *_ = instruction
    axis = operation.params["dimension"]
    whole, start = to.room(out), 0
    for value in ins:
        offset = to.to.plus(whole.offset, str(start * whole.strides[axis]))
        to.store(
            BufferPlace(whole.buffer, offset, whole.strides, value.type.shape, whole.dtype), value
        )
        start += value.type.shape[axis]
    to.flush_all()


def _copy(to: Any, instruction: Instruction) -> None:
    (value,), (out,) = instruction.ins, instruction.outs
    to.elementwise([out], [value], lambda _, xs: xs)


def _accumulate(to: Any, instruction: Instruction) -> None:
    """One round after the other, since several may go to the same place."""
    operation, (ref, values, *leaves), *_ = instruction
    params = operation.params
    name = {"add": "add", "multiply": "mul", "maximum": "max", "minimum": "min",
            "bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor",
            "subtract": "sub"}.get(params["ufunc"])  # fmt: skip
    place, source, rounds = to.place(ref), to.to, params["rounds"]
    dims: Sequence[Any] = [Slice(0, size, 1) for size in place.shape]
    for step in params["path"]:
        dims = step.dims
    inner = tuple([dim.size for dim in dims if isinstance(dim, Slice)])
    if name is None or not all(isinstance(size, int) for size in inner):
        raise NotNative(f"accumulate with {params['ufunc']}")
    elements.element(Source(), name, [place.dtype] * 2, place.dtype, ["%x", "%y"])
    for value, shape in ((values, inner), *[(leaf, ()) for leaf in leaves]):
        behind = len(value.type.shape) - 1 - len(shape)
        if any(size != 1 for size in value.type.shape[1 : 1 + max(behind, 0)]):
            raise NotNative("accumulate of another shape")
    rows = [to.place(v) if v.type.shape else None for v in (values, *leaves)]
    fixed = [None if row is not None else to.register(v)
             for row, v in zip(rows, (values, *leaves), strict=True)]  # fmt: skip
    to.flush_all()
    with source.loop(str(rounds)) as number:
        to.poll()

        def at_round(position: int, shape: tuple[int, ...], at: Sequence[str]) -> str:
            row = rows[position]
            if row is None:
                return fixed[position]  # type: ignore[return-value]
            lead = len(row.shape) > len(shape)  # there is an entry for each round
            extra = max(len(row.shape) - len(shape) - lead, 0)  # of one element each
            own, steps = row.shape[lead + extra :], row.strides[lead + extra :]
            strides = broadcast(steps, own, shape)
            offset = row.offset
            if lead and row.shape[0] > 1:
                offset = source.plus(offset, source.times(number, row.strides[0]))
            for index, stride in zip(at, strides, strict=True):
                offset = source.plus(offset, source.times(index, stride))
            return source.load(row.dtype, row.buffer.base, offset)

        offset, steps = place.offset, []
        for dim, stride, index in zip(place.shape, place.strides, dims, strict=True):
            start, size = index, 1
            if isinstance(index, Slice):
                start, size = index.start, index.size
                steps.append(stride * index.stride)
            if isinstance(start, Dynamic):
                leaf = leaves[start.leaf]
                register = at_round(1 + start.leaf, (), ())
                first = _clamped(source, register, leaf.type.dtype, dim, size)
            else:
                first = str(int(start) % dim)
            offset = source.plus(offset, to.to.times(first, stride))
        with nest(source, inner) as at:
            for index, step in zip(at, steps, strict=True):
                offset = source.plus(offset, source.times(index, step))
            before = source.load(place.dtype, place.buffer.base, offset)
            dtype, term = place.dtype, at_round(0, inner, at)
            made = elements.element(source, name, [dtype, dtype], dtype, [before, term])
            source.store(dtype, made, place.buffer.base, offset)
    for value in (ref, values, *leaves):
        to.used(value)


HANDLERS: dict[str, Callable[[Any, Instruction], None]] = {
    "accumulate": _accumulate,
    "allocate": _allocate,
    "blocks": _blocks,
    "buffer": _buffer,
    "concatenate": _concatenate,
    "contents": _contents,
    "copied_blocks": _copied_blocks,
    "copy": _copy,
    "each_get": _each_get,
    "gather": _gather,
    "get": _get,
    "join": _join,
    "lookup": _lookup,
    "pad": _pad,
    "store": _store,
    "take": _take,
    "unfilled": _unfilled,
    "view": _view,
}

__all__ = ["HANDLERS", "Buffer", "RefType", "at_path"]
