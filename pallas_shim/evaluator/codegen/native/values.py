"""Values while a function is written: registers, places in memory, members of groups.

Scalars are registers. Arrays are written in groups of elementwise operations, or lie in memory: a
buffer of the program, or a part of the workspace.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator.codegen.native import functions
from pallas_shim.evaluator.codegen.native.groups import Group
from pallas_shim.evaluator.codegen.native.places import Buffer, BufferPlace, Workspace, contiguous
from pallas_shim.evaluator.codegen.native.rounds import GroupAccess, Rounds
from pallas_shim.evaluator.codegen.native.source import NotNative, Source, literal, type_of
from pallas_shim.evaluator.codegen.native.stages import LoopCall, LoopOperand, Reduction
from pallas_shim.evaluator.program import ArrayType, KeyType, Value


class Values:
    """What is known of values while a function is written.

    ``kept`` are the objects that it reads by their addresses. ``left`` counts the uses of each
    value of the regions being written that are still to come.
    """

    def __init__(self) -> None:
        self.to = Source()
        self.kept: list[Any] = []
        self.workspace = Workspace()
        self.places: dict[Value, BufferPlace] = {}
        self.registers: dict[Value, str] = {}
        self.pending: dict[Value, Group] = {}
        self.groups: dict[tuple[int, ...], Group] = {}
        self.left: Counter[Value] = Counter()
        self._constants: dict[int, BufferPlace] = {}

    # -- values ---------------------------------------------------------------------------------

    def register(self, value: Value) -> str:
        """A scalar."""
        if value.const is not None:
            return literal(value.const)
        if value in self.registers:
            return self.registers[value]
        return self.scalar_at(self.place(value))

    def place(self, value: Value) -> BufferPlace:
        """Where an array lies. It is written to memory, if it isn't there yet."""
        if value.const is not None:
            return self.constant(value.const)
        group = self.pending.get(value)
        if group is not None:
            self.flush(group)
        if value in self.registers:
            # Not kept: what is written in one branch isn't there in another.
            type = value.type
            place = contiguous(self.workspace.take(type.shape, type.dtype), type.shape, type.dtype)
            self.to.store(place.dtype, self.registers[value], place.buffer.base, place.offset)
            return place
        return self.places[value]

    def constant(self, array: np.ndarray) -> BufferPlace:
        place = self._constants.get(id(array))
        if place is None:
            type_of(array.dtype)
            held = np.ascontiguousarray(array)
            self.kept += [array, held]
            base = self.to.fixed(held.ctypes.data)
            place = contiguous(Buffer(base), array.shape, array.dtype)
            self._constants[id(array)] = place
        return place

    def table(self, table: np.ndarray) -> str:
        return self.constant(np.ascontiguousarray(table, np.int64)).buffer.base

    def room(self, value: Value) -> BufferPlace:
        """A new part of the workspace for a value."""
        type = value.type
        type_of(type.dtype)
        buffer = self.workspace.take(type.shape, type.dtype)
        place = contiguous(buffer, type.shape, type.dtype)
        self.set_place(value, place)
        return place

    def set_place(self, value: Value, place: BufferPlace) -> None:
        self.places[value] = place
        place.buffer.users += 1

    def used(self, value: Value, times: int = 1) -> None:
        """Counts uses that have been written. After the last one, the memory is free."""
        if value not in self.left:
            return
        self.left[value] -= times
        if self.left[value] == 0 and value in self.places:
            self.release(self.places[value].buffer)

    def used_by(self, shape: tuple[int, ...], value: Value) -> None:
        """Counts a use by what was just added to the group of a shape, which is yet to be
        written."""
        group = self.groups.get(shape)
        if group is None:
            self.used(value)
        else:
            group.uses[value] += 1

    def release(self, buffer: Buffer) -> None:
        buffer.users -= 1
        if buffer.users == 0 and buffer.start is not None:
            self.workspace.give_back(buffer)

    # -- groups ---------------------------------------------------------------------------------

    def group(self, shape: tuple[int, ...]) -> Group:
        group = self.groups.get(shape)
        if group is None:
            group = self.groups[shape] = Group(shape, self.table)
        return group

    def flush(self, group: Group) -> None:
        """Writes a group's loops, and to memory what is used after them."""
        if self.groups.get(group.shape) is not group:
            return
        del self.groups[group.shape]
        for value in group.members:
            self.pending.pop(value, None)
        stored = {value for _, value in group.stores}
        for value in group.members:
            if self.left[value] > group.uses[value]:
                if value not in self.places:
                    self.room(value)
                elif value in stored:
                    continue
                place = self.places[value]
                if value in group.rows:
                    group.row_stores.append((group.row_target(place), value))
                else:
                    group.stores.append((group.target(place), value))
        group.write(self.to, self.workspace)
        for value, times in group.uses.items():
            self.used(value, times)

    def flush_all(self) -> None:
        for group in list(self.groups.values()):
            self.flush(group)

    def before_reading(self, buffer: Buffer, unless: Group | None = None) -> None:
        for group in list(self.groups.values()):
            if group is not unless and group.writes_buffer(buffer):
                self.flush(group)

    def before_writing(self, buffer: Buffer, unless: Group | None = None) -> None:
        for group in list(self.groups.values()):
            if group is not unless and (group.reads_buffer(buffer) or group.writes_buffer(buffer)):
                self.flush(group)

    def operand(self, shape: tuple[int, ...], value: Value) -> GroupOperand:
        """An operand of an elementwise operation of a shape. This may write other groups."""
        if isinstance(value.type, KeyType):
            raise NotNative("keys")
        if value.const is not None and _is_uniform(value.const):
            return GroupOperand(value, literal(value.const.reshape(-1)[0]))
        if not value.type.shape:
            return GroupOperand(value, self.register(value))
        group = self.pending.get(value)
        if group is not None and group.shape == shape and len(value.type.shape) == len(shape):
            return GroupOperand(value)
        return GroupOperand(value, place=self.place(value))

    def elementwise(
        self, outs: Sequence[Value], ins: Sequence[Value], write: Callable[..., Sequence[str]]
    ) -> None:
        """Adds an operation to the group of its shape, or writes one of scalars. ``write`` gives
        the registers of its results from those of its operands."""
        shape = outs[0].type.shape
        for out in outs:
            type_of(out.type.dtype)
        if not shape:
            registers = [self.register(value) for value in ins]
            self.registers.update(zip(outs, write(self.to, registers), strict=True))
            for value in ins:
                self.used(value)
            return
        group, reads, is_row = self.joined(shape, ins)

        def member(rounds: Rounds) -> None:
            made = write(rounds.to, [read(rounds) for read in reads])
            for out, register in zip(outs, made, strict=True):
                rounds.set(out, register)

        for out in outs:
            self.join(group, out, ins, member, is_row)

    def join(
        self, group: Group, out: Value, ins: Sequence[Value], member: Callable[[Rounds], None],
        is_row: bool = False,
    ) -> None:  # fmt: skip
        """Makes a value a member of a group. ``is_row``: it has one element for each row."""
        group.add(out, ins, member)
        if is_row:
            group.rows.add(out)
        self.pending[out] = group

    def joined(
        self, shape: tuple[int, ...], ins: Sequence[Value]
    ) -> tuple[Group, list[Callable[[Rounds], str]], bool]:
        """The group that an operation with results of a shape is for, what reads its operands
        there, and whether it is one on the group's rows."""
        group = self.row_group(shape, ins)
        reads = None if group is None else self._reads_of_rows(group, shape, ins)
        if group is not None and reads is not None:
            group.uses.update(ins)
            return group, reads, True
        operands = [self.operand(shape, value) for value in ins]
        read = {o.place.buffer for o in operands if o.place is not None}
        for buffer in read:
            self.before_reading(buffer, self.groups.get(shape))
        group = self.group(shape)
        if any(map(group.writes_buffer, read)):
            self.flush(group)
            operands = [self.operand(shape, value) for value in ins]
            group = self.group(shape)
        group.uses.update(ins)
        return group, [operand.reader(group) for operand in operands], False

    def _reads_of_rows(
        self, group: Group, shape: tuple[int, ...], ins: Sequence[Value]
    ) -> list[Callable[[Rounds], str]] | None:
        """What reads operands for the rows of a group. None: something else has to."""
        reads: list[Callable[[Rounds], str]] = []
        accesses: list[GroupAccess] = []
        for value in ins:
            if self.pending.get(value) is group and value in group.rows:
                reads.append(GroupOperand(value).reader(group))
            elif not value.type.shape or value.const is not None and _is_uniform(value.const):
                reads.append(self.operand(shape, value).reader(group))
            else:
                place = self.place(value)
                self.before_reading(place.buffer, group)
                accesses.append(group.row_target(place))
                reads.append(functools.partial(_load, accesses[-1]))
            whole = value.type.shape in ((), shape) or not any(n != 1 for n in value.type.shape)
            if not whole or self.groups.get(group.shape) is not group:
                return None
        if any(group.writes_buffer(access.place.buffer) for access in accesses):
            return None
        group.reads += accesses
        return reads

    def row_group(self, shape: tuple[int, ...], ins: Sequence[Value]) -> Group | None:
        """The group that has an operand's elements, one for each row, if results of this shape may
        be more of them."""
        for value in ins:
            group = self.pending.get(value)
            if group is not None and value in group.rows and group.is_of_rows(shape):
                return group
        return None

    def numpy_loop(self, out: Value, ufunc: np.ufunc, value: Value) -> None:
        """Adds what NumPy's loop computes of a value.

        Raises:
          NotNative: the loop can't be used.
        """
        dtype, shape = value.type.dtype, value.type.shape
        write = functions.loop(ufunc, dtype)
        if write is None:
            raise NotNative(f"{ufunc.__name__} of {dtype.name}")
        if not shape:
            kind = type_of(dtype)
            given, made = self.to.variable(kind, self.register(value)), self.to.variable(kind)
            write(self.to, "1", given, made)
            self.registers[out] = self.to.read(made, kind)
            self.used(value)
            return
        group, (read,), is_row = self.joined(shape, [value])
        group.loops[out] = LoopCall([LoopOperand(value, read)], write)
        self.join(group, out, [value], lambda rounds: None, is_row)

    def reduced_rows(self, out: Value, value: Value, write: Callable[..., None]) -> None:
        """Adds what ``write`` computes of each row of a value, as `Reduction` says."""
        if value in self.pending and value in self.pending[value].rows:
            self.place(value)  # its rows aren't those of the group that it is in
        group, (read,), _ = self.joined(value.type.shape, [value])
        access = None
        if value not in self.pending and value in self.places:
            access = group.access(self.places[value])
            if access.strides[-1] != value.type.dtype.itemsize:
                access = None
        group.reductions[out] = Reduction(LoopOperand(value, read, access), write)
        self.join(group, out, [value], lambda rounds: None, is_row=True)

    def store(self, place: BufferPlace, value: Value) -> None:
        """Stores a value, which may broadcast, to all of a place."""
        type_of(place.dtype)
        if not place.shape:
            register = self.scalar(value)
            self.before_writing(place.buffer)
            self.to.store(place.dtype, register, place.buffer.base, place.offset)
            self.used(value)
            return
        shape = place.shape
        operand = self.operand(shape, value)
        if operand.place is not None and operand.place.buffer is place.buffer:
            if operand.place == place:
                self.used(value)
                return
            value = self.copied(value)
            operand = self.operand(shape, value)
        self.before_writing(place.buffer, self.groups.get(shape))
        if operand.place is not None:
            self.before_reading(operand.place.buffer, self.groups.get(shape))
        group = self.group(shape)
        if not group.can_store(place) or (
            operand.place is not None and group.writes_buffer(operand.place.buffer)
        ):
            self.flush(group)
            operand = self.operand(shape, value)
            group = self.group(shape)
        stored = value
        if operand.register is not None or operand.place is not None:
            stored, read = Value(ArrayType(shape, place.dtype)), operand.reader(group)
            group.add(stored, (), lambda rounds: rounds.set(stored, read(rounds)))
            group.loads.add(stored)
        group.stores.append((group.target(place), stored))
        group.uses[value] += 1

    def copied(self, value: Value) -> Value:
        """A copy of an array, in place of one use of it."""
        copy = Value(value.type)
        self.left[copy] = 1
        self.store(self.room(copy), value)
        self.flush_all()
        return copy

    def fill(self, place: BufferPlace, element: np.generic) -> None:
        self.store(place, Value(ArrayType((), place.dtype), np.asarray(element)))

    def scalar(self, value: Value) -> str:
        """The only element of a value."""
        if value.const is not None:
            return literal(value.const.reshape(-1)[0])
        if not value.type.shape:
            return self.register(value)
        return self.scalar_at(self.place(value))

    def scalar_at(self, place: BufferPlace) -> str:
        """What memory has at the moment."""
        self.before_reading(place.buffer)
        return self.to.load(place.dtype, place.buffer.base, place.offset)


def _load(access: GroupAccess, rounds: Rounds) -> str:
    return rounds.load(access)


class GroupOperand(NamedTuple):
    """An operand: a register, a place, or else a value of the group itself."""

    value: Value
    register: str | None = None
    place: BufferPlace | None = None

    def reader(self, group: Group) -> Callable[[Rounds], str]:
        register, value = self.register, self.value
        if register is not None:
            return lambda rounds: rounds.shared(register, value.type.dtype)
        if self.place is None:
            return lambda rounds: rounds.value(value)
        access = group.access(self.place)
        return lambda rounds: rounds.load(access)


def _is_uniform(array: np.ndarray) -> bool:
    if array.size == 1:
        return True
    bits = np.ascontiguousarray(array).reshape(-1).view(f"V{array.dtype.itemsize}")
    return array.size > 0 and bool((bits == bits[0]).all())
