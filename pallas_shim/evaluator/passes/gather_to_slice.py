"""Gathers to slices: turns loads and stores at ``start + arange(size)`` into those of slices.

Kernels for GPUs give places as arrays of indices, masked where these leave the array. The sizes of
the grid and of loops bound each integer scalar by an interval, and so each sum of a scalar and a
constant array. A comparison that the intervals decide becomes a constant, which removes masks and
negative indices. A gather from a whole, unchanged ref becomes the load of a slice if its indices
are consecutive and provably inside. A scatter into such a ref becomes the store of a slice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator import batched_ops
from pallas_shim.evaluator.analysis import induction, ranges
from pallas_shim.evaluator.analysis.ranges import Range
from pallas_shim.evaluator.builder import Builder
from pallas_shim.evaluator.floating import as_xla
from pallas_shim.evaluator.memory import Dynamic
from pallas_shim.evaluator.passes.dead_code import remove_dead_code
from pallas_shim.evaluator.passes.identities import uniform
from pallas_shim.evaluator.passes.rewrite import (
    Substitution,
    substitute,
    with_operands,
    with_regions,
)
from pallas_shim.evaluator.program import (
    ArrayType,
    Instruction,
    Program,
    Region,
    Type,
    Value,
)
from pallas_shim.jax_compat.state import Index, Slice

# Index arrays of more elements than this are not looked at.
_LARGEST = 1 << 16


class Affine(NamedTuple):
    """An integer array ``scalar + offsets``, without overflow, where ``low <= scalar <= high``.
    The scalar is 0 if there is none."""

    scalar: Value | None
    low: int
    high: int
    offsets: np.ndarray

    @property
    def least(self) -> int:
        return self.low + int(self.offsets.min())

    @property
    def most(self) -> int:
        return self.high + int(self.offsets.max())

    @property
    def range(self) -> Range:
        return Range(self.least, self.most)


class _SlicePlace(NamedTuple):
    """A slice of a ref: its path, and the scalars at which it starts."""

    path: tuple[Any, ...]
    leaves: tuple[Value, ...]
    shape: tuple[int, ...]


class _Scatter(NamedTuple):
    """The contents of a whole ref after a scatter: ``updates`` at a place."""

    before: Value
    place: _SlicePlace
    updates: Value


def turn_gathers_into_slices(program: Program) -> Program:
    return Program(program.name, as_xla(_GatherToSlice().region, program.top))


def remove_what_gathers_used(program: Program) -> Program:
    """Removes dead code if gathers or scatters that became slices have left any."""
    used = set(program.top.uses())
    for instruction in program.top.walk():
        if instruction.name in ("get", "scatter") and used.isdisjoint(instruction.outs):
            return remove_dead_code(program)
    return program


class _GatherToSlice:
    def __init__(self) -> None:
        self.replaced: Substitution = {}
        self.affine: dict[Value, Affine] = {}
        self.vectors: dict[Value, tuple[Affine, ...]] = {}  # index vectors, by component
        self.wholes: dict[Value, Value] = {}  # what refs hold, by the value loaded
        self.scatters: dict[Value, _Scatter] = {}
        self.builder = Builder()
        self.constants: dict[Any, Value] = {}

    def region(self, region: Region) -> Region:
        replaced = self.replaced
        self.wholes = {}
        with self.builder.block() as body:
            for instruction in with_operands(region.body, replaced):
                operation, _, outs, regions, source = instruction
                if regions:
                    self.enter(instruction)
                    instruction = with_regions(instruction, list(map(self.region, regions)))
                    self.wholes = {}
                self.builder.source = source
                method = _METHODS.get(operation.name)
                if method is not None:
                    same = method(self, instruction)
                    if same is not None:
                        replaced.update(zip(outs, same, strict=True))
                        continue
                if operation.effects.writes or operation.effects.io:
                    self.wholes = {}
                body.append(instruction)
        self.wholes = {}
        return Region(region.params, tuple(body), substitute(region.results, replaced))

    def enter(self, instruction: Instruction) -> None:
        """Notes the ranges of the counters of a grid or a loop."""
        operation, ins, _, regions, _ = instruction
        if operation.name == "grid":
            for index, size in zip(regions[0].params, ins, strict=True):
                if size.const is not None and int(size.const) > 0:
                    self.bound(index, Range(0, int(size.const) - 1))
        elif operation.name == "scan":
            for param, counter in induction.of_scan(instruction).items():
                found = counter.known_range(operation.params["length"])
                if found is not None:
                    self.bound(param, found)

    # -- what is known ------------------------------------------------------------------------

    def bound(self, scalar: Value, found: Range) -> None:
        dtype = scalar.type.dtype
        if found.within(ranges.of_dtype(dtype)):
            self.affine[scalar] = Affine(scalar, *found, np.zeros((), dtype))

    def form(self, value: Value) -> Affine | None:
        if value.const is not None and _is_integer(value.type):
            return Affine(None, 0, 0, value.const)
        return self.affine.get(value)

    def note(self, value: Value, form: Affine) -> None:
        if form.range.within(ranges.of_dtype(value.type.dtype)):
            self.affine[value] = form

    def scalar_result(self, instruction: Instruction) -> bool:
        """Notes the interval of a scalar's arithmetic. Says whether it was a scalar's."""
        out = instruction.outs[0]
        if out.type.shape != ():
            return False
        forms = list(map(self.form, instruction.ins))
        known = [form.range for form in forms if form is not None]
        if len(known) == len(forms) and _is_integer(out.type):
            found = ranges.result(instruction.name, out.type.dtype, known)
            if found is not None:
                self.bound(out, found)
        return True

    def arithmetic(self, instruction: Instruction) -> None:
        self.scalar_result(instruction)

    def add(self, instruction: Instruction) -> None:
        if self.scalar_result(instruction):
            return
        (x, y), (out,) = map(self.form, instruction.ins), instruction.outs
        if x is None or y is None or not _is_integer(out.type):
            return
        if x.scalar is not None and y.scalar is not None:
            return
        whole = ranges.of_dtype(out.type.dtype)
        if not Range(x.least + y.least, x.most + y.most).within(whole):
            return
        # Offsets alone may be too large for the type where the scalar is negative.
        least = int(x.offsets.min()) + int(y.offsets.min())
        most = int(x.offsets.max()) + int(y.offsets.max())
        if Range(least, most).within(whole):
            offsets = np.broadcast_to(x.offsets + y.offsets, out.type.shape)
            moving = x if x.scalar is not None else y
            self.note(out, Affine(moving.scalar, moving.low, moving.high, offsets))

    def move(self, instruction: Instruction) -> tuple[Value, ...] | None:
        """Rearranges the offsets as the operation rearranges elements."""
        operation, (x, *others), (out,), _, _ = instruction
        if others or not isinstance(out.type, ArrayType) or out.type.size > _LARGEST:
            return None
        assert operation.fn is not None
        if x.const is not None:
            return (self.constant(operation.fn(x.const), out.type),)
        form = self.affine.get(x)
        if form is not None and out.type.size:
            self.note(out, form._replace(offsets=np.asarray(operation.fn(form.offsets))))
        return None

    def compare(self, instruction: Instruction) -> tuple[Value, ...] | None:
        (x, y), (out,) = map(self.form, instruction.ins), instruction.outs
        if x is None or y is None or x.scalar is y.scalar or out.type.shape == ():
            return None
        if not 0 < array_size(out.type) <= _LARGEST:
            return None
        decided = _DECIDED[instruction.name](x, y)
        return None if decided is None else (self.constant(decided, out.type),)

    def combine(self, instruction: Instruction) -> tuple[Value, ...] | None:
        operation, (x, y), (out,), _, _ = instruction
        if x.const is None or y.const is None or array_size(out.type) > _LARGEST:
            return None
        assert operation.fn is not None
        return (self.constant(operation.fn(x.const, y.const), out.type),)

    def select(self, instruction: Instruction) -> tuple[Value, ...] | None:
        predicate, *cases = instruction.ins
        if predicate.const is None or predicate.const.dtype != np.bool_ or len(cases) != 2:
            return None
        which = uniform(predicate)
        return None if which is None else (cases[int(which)],)

    def concatenate(self, instruction: Instruction) -> None:
        """Index vectors are joined from their components."""
        ins, (out,) = instruction.ins, instruction.outs
        last = len(out.type.shape) - 1
        if instruction.operation.params["dimension"] != last:
            return
        forms = [self.form(v) for v in ins if _is_integer(v.type) and v.type.shape[last] == 1]
        known = tuple([form for form in forms if form is not None])
        if len(known) == len(ins) and array_size(out.type) <= _LARGEST:
            self.vectors[out] = known

    # -- memory -------------------------------------------------------------------------------

    def load(self, instruction: Instruction) -> None:
        (ref, *_), (out,) = instruction.ins, instruction.outs
        if instruction.operation.params["path"] == () and isinstance(out.type, ArrayType):
            self.wholes[out] = ref

    def gather(self, instruction: Instruction) -> tuple[Value, ...] | None:
        operation, (x, indices), (out,), _, _ = instruction
        ref, dnums = self.wholes.get(x), operation.params["dimension_numbers"]
        if ref is None or dnums.operand_batching_dims or not isinstance(out.type, ArrayType):
            return None
        indexed = tuple(range(len(dnums.start_index_map)))
        sizes = (*[1 for _ in indexed], *x.type.shape[len(indexed) :])
        if tuple(operation.params["slice_sizes"]) != sizes:
            return None
        windows = (dnums.collapsed_slice_dims, dnums.start_index_map, dnums.offset_dims)
        place = self.place(x.type, indices, windows)
        if place is None:
            return None
        ins = (ref, *place.leaves)
        types = tuple([value.type for value in ins])
        part = ArrayType(place.shape, out.type.dtype)
        load = self.builder.once(
            ("get", types, place.path),
            lambda: batched_ops.load(ref.ref, place.path, types, part),
        )
        (loaded,) = self.builder.emit(load, ins)
        return (self.reshaped(loaded, out.type),)

    def scatter(self, instruction: Instruction) -> None:
        operation, (x, indices, updates), (out,), _, _ = instruction
        dnums = operation.params["dimension_numbers"]
        if operation.params["update_jaxpr"] is not None or dnums.operand_batching_dims:
            return
        if x not in self.wholes or not isinstance(out.type, ArrayType):
            return
        indexed = len(dnums.scatter_dims_to_operand_dims)
        rank = len(updates.type.shape) - len(x.type.shape) + indexed
        if updates.type.shape[rank:] != x.type.shape[indexed:]:
            return
        windows = (
            dnums.inserted_window_dims,
            dnums.scatter_dims_to_operand_dims,
            dnums.update_window_dims,
        )
        place = self.place(x.type, indices, windows)
        if place is not None:
            self.scatters[out] = _Scatter(x, place, updates)

    def store(self, instruction: Instruction) -> tuple[Value, ...] | None:
        ref, value, *_ = instruction.ins
        scatter = self.scatters.get(value)
        if scatter is None or instruction.operation.params["path"] != ():
            return None
        before, place, updates = scatter
        if self.wholes.get(before) is not ref:
            return None
        part = self.reshaped(updates, ArrayType(place.shape, updates.type.dtype))
        ins = (ref, part, *place.leaves)
        types = tuple([value.type for value in ins])
        store = self.builder.once(
            ("store", types, place.path), lambda: batched_ops.store(ref.ref, place.path, types)
        )
        self.builder.emit(store, ins)
        self.wholes = {}
        return ()

    def place(
        self, type: Type, indices: Value, windows: tuple[Any, Any, Any]
    ) -> _SlicePlace | None:
        """The slice that index vectors lead to, None if they aren't proven to lie inside one
        after the other, each component along an axis of its own."""
        dropped, index_map, window_dims = map(tuple, windows)
        *batch, components = indices.type.shape
        leading = tuple(range(components))
        trailing = type.shape[components:]
        if dropped != leading or index_map != leading:
            return None
        if window_dims != tuple(range(len(batch), len(batch) + len(trailing))):
            return None
        forms = self.vectors.get(indices)
        if forms is None and components == 1:
            form = self.form(indices)
            forms = None if form is None else (form,)
        if forms is None or not 0 < array_size(indices.type) <= _LARGEST:
            return None
        dims: list[Slice] = []
        leaves: list[Value] = []
        free = 0  # the first axis that no component has taken
        for form, dim in zip(forms, type.shape, strict=False):
            if form.least < 0 or form.most >= dim:
                return None
            offsets = form.offsets.reshape(batch)
            first = int(offsets.flat[0])
            axes = [a for a, size in enumerate(batch) if size > 1 and np.ptp(offsets, a).any()]
            size = 1
            if axes:
                (axis, *others) = axes
                if others or axis < free or any(n > 1 for n in batch[free:axis]):
                    return None
                size, free = batch[axis], axis + 1
                line = np.arange(size).reshape([-1 if a == axis else 1 for a in range(len(batch))])
                if not np.array_equal(offsets, np.broadcast_to(first + line, batch)):
                    return None
            start: Any = first
            if form.scalar is not None:
                leaves.append(self.plus(form.scalar, first))
                start = Dynamic(len(leaves) - 1)
            dims.append(Slice(start, size, 1))
        if any(n > 1 for n in batch[free:]):
            return None
        shape = (*[dim.size for dim in dims], *trailing)
        dims += [Slice(0, dim, 1) for dim in trailing]
        path = (Index(tuple(dims)),) if leaves or shape != type.shape else ()
        return _SlicePlace(path, tuple(leaves), shape)

    def plus(self, scalar: Value, number: int) -> Value:
        """A scalar plus a number, which stays inside the scalar's type."""
        if number == 0:
            return scalar
        type = ArrayType((), scalar.type.dtype)
        return self.builder.apply_one("add", (scalar, self.constant(number, type)), type)

    def reshaped(self, value: Value, type: ArrayType) -> Value:
        if value.type == type:
            return value
        return self.builder.apply_one("reshape", (value,), type, dimensions=None)

    def constant(self, content: Any, type: Type) -> Value:
        array = np.array(np.broadcast_to(content, type.shape), type.dtype)
        array.flags.writeable = False
        return self.constants.setdefault((type, array.tobytes()), Value(type, array))


def array_size(type: Type) -> int:
    return type.size if isinstance(type, ArrayType) else 0


def _is_integer(type: Type, shape: tuple[int, ...] | None = None) -> bool:
    """Whether values are integers, at least one but not too many."""
    if not isinstance(type, ArrayType) or type.dtype.kind not in "iu":
        return False
    return 0 < type.size <= _LARGEST and shape in (None, type.shape)


def _less(x: Affine, y: Affine) -> bool | None:
    return True if x.most < y.least else False if x.least >= y.most else None


def _not(decided: bool | None) -> bool | None:
    return None if decided is None else not decided


_DECIDED: dict[str, Callable[[Affine, Affine], bool | None]] = {
    "lt": _less,
    "ge": lambda x, y: _not(_less(x, y)),
    "gt": lambda x, y: _less(y, x),
    "le": lambda x, y: _not(_less(y, x)),
}

_METHODS: dict[str, Callable[[_GatherToSlice, Instruction], tuple[Value, ...] | None]] = {
    "add": _GatherToSlice.add,
    **dict.fromkeys(("sub", "mul", "max", "min"), _GatherToSlice.arithmetic),
    **dict.fromkeys(_DECIDED, _GatherToSlice.compare),
    **dict.fromkeys(("and", "or"), _GatherToSlice.combine),
    **dict.fromkeys(
        ("broadcast_in_dim", "broadcast_to", "reshape", "squeeze"), _GatherToSlice.move
    ),
    "select_n": _GatherToSlice.select,
    "concatenate": _GatherToSlice.concatenate,
    "get": _GatherToSlice.load,
    "gather": _GatherToSlice.gather,
    "scatter": _GatherToSlice.scatter,
    "store": _GatherToSlice.store,
}
