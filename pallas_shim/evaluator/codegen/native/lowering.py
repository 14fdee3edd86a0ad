"""Writes a program as one LLVM function: its instructions, loops and branches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator.codegen.native import accesses, calls, elements, functions, reductions
from pallas_shim.evaluator.codegen.native.layouts import Layouts
from pallas_shim.evaluator.codegen.native.places import (
    Buffer,
    BufferPlace,
    contiguous,
    dummy,
    viewed,
)
from pallas_shim.evaluator.codegen.native.source import NotNative, Source, type_of
from pallas_shim.evaluator.codegen.native.values import Values
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


class NativeLowering(Values):
    """Writes the instructions of one program."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.written = _written(program)
        self.layouts = Layouts(program, self.places)
        self.called = Counter[str]()  # the instructions that NumPy does, by name
        self.work = 0.0  # about how many elements are computed in a run
        self.gain = 0.0  # the seconds that a run saves, or if negative, takes longer
        self._rounds = 1.0
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

    def enter(self, region: Region) -> None:
        """Counts the uses of the values that a region defines."""
        defined = {*region.params, *[out for i in region.body for out in i.outs]}
        for value in region.uses():
            if value in defined:
                self.left[value] += 1

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

    # -- loops and branches -----------------------------------------------------------------------

    def structured(self, instruction: Instruction) -> None:
        write = {
            "scan": self._scan, "while": self._while, "switch": self._switch, "grid": self._grid,
        }.get(instruction.name)  # fmt: skip
        if write is None:
            raise NotNative(instruction.name)
        self.flush_all()
        # What a round uses must stay for the next one.
        held = [value for value, left in self.left.items() if left > 0]
        for value in held:
            self.left[value] += 1
        for region in instruction.regions:
            self.enter(region)
        rounds = self._rounds
        write(instruction)
        self._rounds = rounds
        for value in held:
            self.used(value)

    def used_inside(self, instruction: Instruction) -> None:
        """Counts the uses by an instruction with regions as written."""
        for value in instruction.ins:
            self.used(value)

    def _bound(self, params: Sequence[Value], carried: Sequence[Any]) -> None:
        """Gives the parameters of a region what is carried: variables or places."""
        for param, carry in zip(params, carried, strict=True):
            if isinstance(carry, BufferPlace):
                self.set_place(param, carry)
            else:
                self.registers[param] = self.to.read(carry, type_of(param.type.dtype))

    def _carried(self, values: Sequence[Value]) -> list[Any]:
        """Variables for scalars and new memory for arrays, with these values in them."""
        carried: list[Any] = []
        for value in values:
            type = value.type
            if isinstance(type, RefType):
                raise NotNative("a loop that carries refs")
            kind = type_of(type.dtype)
            if not type.shape:
                carried.append(self.to.variable(kind, self.register(value)))
                self.used(value)
            else:
                place = contiguous(
                    self.workspace.take(type.shape, type.dtype), type.shape, type.dtype
                )
                place.buffer.users += 1  # by the loop
                self.store(place, value)
                carried.append(place)
        self.flush_all()
        return carried

    def _carry_on(self, carried: Sequence[Any], values: Sequence[Value]) -> None:
        """Puts the values of the next round where they are carried, all at once."""
        registers: list[tuple[Any, Value, str]] = []
        moved: list[tuple[BufferPlace, Value]] = []
        own = {carry.buffer for carry in carried if isinstance(carry, BufferPlace)}
        for carry, value in zip(carried, values, strict=True):
            if not isinstance(carry, BufferPlace):
                registers.append((carry, value, self.register(value)))
                continue
            if value.const is None and self.place(value) == carry:
                self.used(value)
                continue
            if value.const is None and self.place(value).buffer in own:
                value = self.copied(value)
            moved.append((carry, value))
        for carry, value, register in registers:
            self.to.set(carry, type_of(value.type.dtype), register)
            self.used(value)
        for place, value in moved:
            self.store(place, value)
        self.flush_all()

    def _results(self, outs: Sequence[Value], carried: Sequence[Any]) -> None:
        for out, carry in zip(outs, carried, strict=True):
            if isinstance(carry, BufferPlace):
                self.set_place(out, carry)
                if not self.left[out]:
                    self.release(carry.buffer)
                self.release(carry.buffer)
            else:
                self.registers[out] = self.to.read(carry, type_of(out.type.dtype))

    def _scan(self, instruction: Instruction) -> None:
        params = instruction.operation.params
        length, count = params["length"], params["num_carry"]
        (region,), ins, outs = instruction.regions, instruction.ins, instruction.outs
        xs = [self.place(value) for value in ins[count:]]
        carried = self._carried(ins[:count])
        made = []
        for out in outs[count:]:
            made.append(self.room(out))
        self._rounds *= length
        with self.to.loop(str(length)) as number:
            self.poll()
            at = number
            if params["reverse"]:
                at = self.to.let(f"sub i64 {length - 1}, {number}")
            self._bound(region.params[:count], carried)
            for param, place in zip(region.params[count:], xs, strict=True):
                row = _row(self.to, place, at)
                if param.type.shape or isinstance(param.type, RefType):
                    self.set_place(param, row)
                else:
                    self.registers[param] = self.to.load(row.dtype, row.buffer.base, row.offset)
            self.body(region)
            for place, result in zip(made, region.results[count:], strict=True):
                self.store(_row(self.to, place, at), result)
            self._carry_on(carried, region.results[:count])
        for value in ins[count:]:
            self.used(value)
        self._results(outs[:count], carried)

    def _while(self, instruction: Instruction) -> None:
        to = self.to
        condition, body = instruction.regions
        carried = self._carried(instruction.ins)
        head, inside, end = to.label(), to.label(), to.label()
        self._rounds *= 10
        to.jump(head)
        to.begin(head)
        self.poll()
        self._bound(condition.params, carried)
        self.body(condition)
        go_on = self.scalar(condition.results[0])
        self.flush_all()
        to.branch(go_on, inside, end)
        to.begin(inside)
        self._bound(body.params, carried)
        self.body(body)
        self._carry_on(carried, body.results)
        to.jump(head)
        to.begin(end)
        self._results(instruction.outs, carried)

    def _switch(self, instruction: Instruction) -> None:
        to, last = self.to, len(instruction.regions) - 1
        (index,) = instruction.ins
        at = elements.as_index(to, index.type.dtype, self.register(index))
        self.used(index)
        at = to.call("i64", "llvm.smax.i64", f"i64 {at}", "i64 0")
        at = to.call("i64", "llvm.smin.i64", f"i64 {at}", f"i64 {last}")
        carried: list[Any] = []
        for out in instruction.outs:
            if isinstance(out.type, RefType):
                raise NotNative("a branch that gives a ref")
            kind = type_of(out.type.dtype)
            if out.type.shape:
                place = contiguous(
                    self.workspace.take(out.type.shape, out.type.dtype),
                    out.type.shape, out.type.dtype,
                )  # fmt: skip
                place.buffer.users += 1
                carried.append(place)
            else:
                carried.append(to.variable(kind))
        labels, end = [to.label() for _ in instruction.regions], to.label()
        cases = " ".join(f"i64 {n}, label %{label}" for n, label in enumerate(labels))
        to.line(f"switch i64 {at}, label %{labels[-1]} [{cases}]")
        for label, region in zip(labels, instruction.regions, strict=True):
            to.begin(label)
            self.body(region)
            self._carry_on(carried, region.results)
            to.jump(end)
        to.begin(end)
        self._results(instruction.outs, carried)

    def _grid(self, instruction: Instruction) -> None:
        (region,) = instruction.regions
        sizes = [
            elements.as_index(self.to, size.type.dtype, self.register(size))
            for size in instruction.ins
        ]
        for size in instruction.ins:
            self.used(size)
            self._rounds *= float(size.const) if size.const is not None else 10
        self._cells(region, sizes, [])

    def _cells(self, region: Region, sizes: Sequence[str], cell: list[str]) -> None:
        if sizes:
            with self.to.loop(sizes[0]) as number:
                self._cells(region, sizes[1:], [*cell, number])
            return
        self.poll()
        for param, number in zip(region.params, cell, strict=True):
            kind = type_of(param.type.dtype)
            self.registers[param] = (
                number if kind == "i64" else self.to.let(f"trunc i64 {number} to {kind}")
            )
        self.body(region)
        self.flush_all()

    def poll(self) -> None:
        """Now and then, in a loop, asks whether the user has interrupted the program."""
        self.to.poll()

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


def _row(to: Source, place: BufferPlace, at: str) -> BufferPlace:
    offset = to.plus(place.offset, to.times(at, place.strides[0]))
    return BufferPlace(place.buffer, offset, place.strides[1:], place.shape[1:], place.dtype)


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
