"""Writes loops, branches and grids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pallas_shim.evaluator.codegen.native import elements
from pallas_shim.evaluator.codegen.native.places import BufferPlace, Workspace, contiguous
from pallas_shim.evaluator.codegen.native.sharing import Sharing, Unshareable
from pallas_shim.evaluator.codegen.native.source import NotNative, Source, type_of
from pallas_shim.evaluator.codegen.native.values import Values
from pallas_shim.evaluator.program import Instruction, RefType, Region, Value

# The workspace of a thread that shares a grid, and the bytes that may have, on its stack.
_OWN, _STACK = "%own", 1 << 17


class ControlFlow(Values):
    """Writes instructions that have regions."""

    def __init__(self, sharing: Sharing) -> None:
        super().__init__()
        self._rounds = 1.0  # of what is being written, in a run
        self.sharing = sharing
        self.shared: Instruction | None = None  # the grid inside, if threads share it

    def enter(self, region: Region) -> None:
        """Counts the uses of the values that a region defines."""
        defined = {*region.params, *[out for i in region.body for out in i.outs]}
        for value in region.uses():
            if value in defined:
                self.left[value] += 1

    def body(self, region: Region) -> None:
        """Writes the instructions of a region."""
        raise NotImplementedError

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
        most = 1 if self.shared is not None else self.sharing.threads(instruction, self._rounds)
        sizes = [
            elements.as_index(self.to, size.type.dtype, self.register(size))
            for size in instruction.ins
        ]
        for size in instruction.ins:
            self.used(size)
            self._rounds *= float(size.const) if size.const is not None else 10
        if most == 1:
            self._cells(region, sizes, [])
            return
        outer, self.workspace = self.workspace, Workspace(_OWN)
        self.shared = instruction
        with self.to.shared_loop(int(sizes[0]), most) as number:
            self._cells(region, sizes[1:], [number])
            if self.workspace.nbytes > _STACK:
                raise Unshareable(instruction)
            self.to.own(_OWN, self.workspace.nbytes)
        self.workspace, self.shared = outer, None

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


def _row(to: Source, place: BufferPlace, at: str) -> BufferPlace:
    offset = to.plus(place.offset, to.times(at, place.strides[0]))
    return BufferPlace(place.buffer, offset, place.strides[1:], place.shape[1:], place.dtype)
