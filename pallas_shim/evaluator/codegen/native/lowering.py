"""Writes a program as one LLVM function: its instructions. `control` has loops and branches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator.codegen.native import (
    accesses,
    calls,
    elements,
    functions,
    gemms,
    products,
    reductions,
)
from pallas_shim.evaluator.codegen.native.control import ControlFlow
from pallas_shim.evaluator.codegen.native.layouts import Layouts
from pallas_shim.evaluator.codegen.native.places import (
    Buffer,
    BufferPlace,
    contiguous,
    dummy,
    viewed,
)
from pallas_shim.evaluator.codegen.native.sharing import Sharing, Unshareable
from pallas_shim.evaluator.codegen.native.source import NotNative, Source, type_of
from pallas_shim.evaluator.program import (
    PURE,
    ArrayType,
    Instruction,
    Operation,
    Program,
    RefType,
    Region,
    Value,
)

# Seconds, beside a call by Python: what it saves if an instruction is native, with each of its
# elements; what it costs if native code calls it.
_NATIVE, _ELEMENT, _CALLED = 3.5e-7, 1e-10, 3e-7
# These keep the elements in order, or repeat them.
_RESHAPES = ("broadcast_in_dim", "broadcast_to", "expand_dims", "reshape", "squeeze", "tile")


class NativeLowering(ControlFlow):
    """Writes the instructions of one program."""

    def __init__(self, program: Program, sharing: Sharing) -> None:
        super().__init__(sharing)
        self.program = program
        self.written = _written(program)
        self.layouts = Layouts(program, self.places)
        self.called = Counter[str]()  # the instructions that NumPy does, by name
        self.work = 0.0  # about how many elements are computed in a run
        self.gain = 0.0  # the seconds that a run saves, or if negative, takes longer
        self._outputs: dict[Value, Buffer] = {}  # what is allocated where the caller wants results

    def function(self) -> None:
        """Writes all of it. The parameters are in registers ``%p0``, ..., results go to ``%r0``,
        ...

        Raises:
          NotNative: for part of it there is no code.
        """
        top = self.program.top
        self.enter(top)
        for number, param in enumerate(top.params):
            place = contiguous(Buffer(f"%p{number}"), param.type.shape, param.type.dtype)
            self.set_place(param, place)
        made = {out: i for i in top.body for out in i.outs}
        for number, result in enumerate(top.results):
            contents = made.get(result)
            if contents is not None and contents.name == "contents":
                ref = contents.ins[0]
                if ref.type.shape == result.type.shape and made[ref].operation.effects.allocates:
                    self._outputs.setdefault(ref, Buffer(f"%r{number}"))
        self.body(top)
        for number, result in enumerate(top.results):
            buffer = next((b for b in self._outputs.values() if b.base == f"%r{number}"), None)
            shape, dtype = result.type.shape, result.type.dtype
            target = contiguous(buffer or Buffer(f"%r{number}"), shape, dtype)
            if buffer is None or self.place(result) != target:
                self.store(target, result)
        self.flush_all()
        self.to.line("ret i32 0")

    def body(self, region: Region) -> None:
        for instruction in region.body:
            try:
                self.instruction(instruction)
            except NotNative as error:
                if not hasattr(error, "instruction"):
                    error.instruction = instruction  # type: ignore[attr-defined]
                raise

    def instruction(self, instruction: Instruction) -> None:
        ins, outs = instruction.ins, instruction.outs
        elements = max([math.prod(v.type.shape) for v in (*ins, *outs)], default=1)
        self.work += self._rounds * elements
        gain = _NATIVE + elements * _ELEMENT if _computes(instruction) else 0.0
        try:
            self._natively(instruction)
        except NotNative:
            # What refuses an instruction does so before it changes anything.
            if not calls.can_call(instruction):
                raise
            if self.shared is not None:
                raise Unshareable(self.shared) from None
            calls.call(self, self.layouts, instruction)
            gain = -_CALLED
        self.gain += self._rounds * gain

    def _natively(self, instruction: Instruction) -> None:
        operation, ins, outs, regions, _ = instruction
        name, params = operation.name, operation.params
        if not (regions or operation.view or operation.effects.allocates):
            for value in (*ins, *outs):
                type_of(value.type.dtype)
        if regions or operation.fn is None:
            self.structured(instruction)
        elif name == "sum_of_products":
            gemms.sum_of_products(self, instruction)
        elif "direct" in params:
            self._stored(instruction)
        elif "into" in params:
            self._in_place(instruction)
        elif name in accesses.HANDLERS:
            accesses.HANDLERS[name](self, instruction)
        elif operation.effects != PURE:
            raise NotNative(name)
        elif not ins:
            self._known(outs, operation.fn)
        elif operation.view and len(ins) == 1:
            self._view(instruction)
        elif name in reductions.HANDLERS:
            reductions.HANDLERS[name](self, instruction)
        elif name == "dot_general":
            products.dot_general(self, instruction)
        elif name == "threefry2x32":
            self.elementwise(outs, ins, lambda to, xs: elements.threefry(to, *xs))
        elif len(outs) == 1:
            self._elementwise(elements.name_of(operation), outs[0], ins)
        else:
            raise NotNative(name)

    def _elementwise(self, name: str, out: Value, ins: Sequence[Value]) -> None:
        types = [value.type.dtype for value in ins]
        shape = out.type.shape
        try:
            fits = np.broadcast_shapes(*[value.type.shape for value in ins]) == shape
        except ValueError:
            fits = False
        if not fits:
            raise NotNative(name)
        dtype = out.type.dtype
        if name in functions.FUNCTIONS:
            functions.write(self, name, out, ins[0])
            return
        elements.element(Source(), name, types, dtype, ["%x"] * len(ins))  # refuses what it can't
        self.elementwise(
            [out], ins, lambda to, xs: [elements.element(to, name, types, dtype, xs)]
        )

    def _stored(self, instruction: Instruction) -> None:
        """An elementwise operation whose result goes where a path leads."""
        operation, ins, *_ = instruction
        ufunc = operation.params["direct"]
        ref, *operands = ins
        place = accesses.at_path(self, ref, operation.params["path"], operands[ufunc.nin :])
        made = Value(ArrayType(place.shape, place.dtype))
        self.left[made] = 1
        self._computed(operation, ufunc, made, operands[: ufunc.nin])
        self.store(place, made)
        self.used_by(place.shape, ref)
        for leaf in operands[ufunc.nin :]:
            self.used(leaf)

    def _in_place(self, instruction: Instruction) -> None:
        """An elementwise operation whose result is written over an array, which nothing uses
        afterwards, or into a ref, whose memory is then the value."""
        operation, ins, (out,), *_ = instruction
        ufunc, into = operation.params["ufunc"], operation.params["into"]
        target, count = ins[into], ufunc.nin
        if not isinstance(target.type, RefType):
            self._computed(operation, ufunc, out, ins[:count])
            for value in ins[count:]:
                self.used(value)
            return
        if into < count:
            raise NotNative(f"{operation.name} over an operand that is a ref")
        place = self.place(target)
        made = Value(out.type)
        self.left[made] = 1
        self._computed(operation, ufunc, made, ins[:count])
        self.store(place, made)
        self.set_place(out, place)
        for value in ins[count:]:
            self.used_by(place.shape, value)

    def _computed(
        self, operation: Operation, ufunc: np.ufunc, out: Value, ins: Sequence[Value]
    ) -> None:
        """The result of an elementwise operation, as a value."""
        try:
            self._elementwise(elements.name_of(operation), out, ins)
        except NotNative:
            types = tuple([value.type for value in ins])
            # The operation itself would write over memory that the native code still reads.
            plain = Operation(operation.name, operation.params, types, (out.type,), ufunc)
            calls.call(self, self.layouts, Instruction(plain, tuple(ins), (out,)))

    def _known(self, outs: Sequence[Value], fn: Callable[..., Any]) -> None:
        results = fn() if len(outs) != 1 else (fn(),)
        for out, array in zip(outs, results, strict=True):
            place = self.constant(np.asarray(array).reshape(out.type.shape))
            self.set_place(out, place)

    def _view(self, instruction: Instruction) -> None:
        """An operation that gives a view of its operand, or a copy, whatever it is called."""
        operation, (source,), outs, *_ = instruction
        (out,) = outs if len(outs) == 1 else (None,)
        if out is None:
            raise NotNative(operation.name)
        if not source.type.shape and not isinstance(source.type, RefType):
            if out.type.dtype != source.type.dtype:
                raise NotNative(operation.name)
            self.elementwise(outs, (source,), lambda to, xs: xs)
            return
        if self._of_rows(operation, source, out):
            return
        if source in self.pending and source.type == out.type and operation.name in _RESHAPES:
            self.elementwise(outs, (source,), lambda to, xs: xs)  # it moves nothing
            return
        place = self.place(source)
        seen = self.seen(place, operation, out)
        if seen is None:
            # NumPy copies what it can't view.
            if isinstance(source.type, RefType):
                raise NotNative(f"{operation.name} of strided memory")
            self.left[source] += 1
            copy = self.copied(source)
            seen = self.seen(self.places[copy], operation, out)
            if seen is None:
                raise NotNative(operation.name)
            self.set_place(out, seen)
            self.used(copy)
        else:
            self.set_place(out, seen)
        self.used(source)

    def _of_rows(self, operation: Operation, source: Value, out: Value) -> bool:
        """Adds a view of what a group has for its rows to that group, if it can be: one with
        another shape, or for all elements. Returns whether it is added."""
        group = self.pending.get(source)
        if group is None or source not in group.rows or operation.name not in _RESHAPES:
            return False
        is_row = group.is_of_rows(out.type.shape)
        if source.type.dtype != out.type.dtype:
            return False
        if not is_row:
            dims = operation.params.get("broadcast_dimensions", ())
            rank = len(source.type.shape)
            along_rows = rank == len(group.shape) or tuple(dims) == tuple(range(rank))
            if out.type.shape != group.shape or operation.name == "reshape" or not along_rows:
                return False
        member = lambda rounds: rounds.set(out, rounds.value(source))  # noqa: E731
        self.join(group, out, [source], member, is_row)
        group.uses[source] += 1
        return True

    def seen(self, place: BufferPlace, operation: Any, out: Value) -> BufferPlace | None:
        """The view that an operation gives of a place, None if that is a copy."""
        shape, dtype = out.type.shape, out.type.dtype
        fake = dummy(place)
        if operation.name in ("broadcast_in_dim", "broadcast_to"):
            if operation.name == "broadcast_in_dim":
                dims = operation.params["broadcast_dimensions"]
            else:
                dims = range(len(shape) - len(place.shape), len(shape))
            strides = [0] * len(shape)
            for axis, dim in enumerate(dims):
                if place.shape[axis] == shape[dim]:
                    strides[dim] = place.strides[axis]
            return BufferPlace(place.buffer, place.offset, tuple(strides), shape, dtype)
        seen = np.asarray(operation.fn(fake))
        found = viewed(seen, fake)
        if found is None:
            return None
        if seen.shape != shape or seen.dtype != dtype:
            raise NotNative(operation.name)
        offset = self.to.plus(place.offset, str(found[0]))
        return BufferPlace(place.buffer, offset, tuple(found[1]), shape, dtype)

    # -- memory -------------------------------------------------------------------------------

    def allocate(self, out: Value) -> BufferPlace:
        """New memory for a ref."""
        type_of(out.type.dtype)
        buffer = self._outputs.get(out)
        if buffer is None:
            return self.room(out)
        place = contiguous(buffer, out.type.shape, out.type.dtype)
        self.set_place(out, place)
        return place


def _computes(instruction: Instruction) -> bool:
    """Whether NumPy would call a function that takes its time."""
    operation = instruction.operation
    return operation.fn is not None and not operation.view and operation.name not in _MOVES


# Their time is that of what they move, natively too.
_MOVES = frozenset({"allocate", "blocks", "buffer", "contents", "get", "store", "unfilled", "view"})


def _written(program: Program) -> set[Value]:
    """The refs to which something writes, all that they are views of included."""
    sources: dict[Value, Value] = {}
    written: set[Value] = set()
    for instruction in program.top.walk():
        operation, ins, outs, regions, _ = instruction
        if regions:
            for region in regions:
                count = len(region.params)
                for param, given in zip(region.params, ins[-count:] if count else (), strict=False):
                    if isinstance(param.type, RefType):
                        sources[param] = given
        elif ins and isinstance(ins[0].type, RefType):
            for out in outs:
                if isinstance(out.type, RefType):
                    sources[out] = ins[0]
        written.update(ins[position] for position in operation.effects.writes)
    for value in list(written):
        while value in sources:
            value = sources[value]
            written.add(value)
    return written
