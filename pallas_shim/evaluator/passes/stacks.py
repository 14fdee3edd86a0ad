"""Stacks: values of one type that lie behind one another in one array.

`Stacks` knows which values are members of which stack. It emits the instructions that make a stack
of any values, at the least cost, and those that take members out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator.batching_rules import stacked
from pallas_shim.evaluator.builder import Builder
from pallas_shim.evaluator.program import (
    Array,
    ArrayType,
    Operation,
    Type,
    Value,
    make_instruction,
)

# Costs in microseconds, as measured on a 2020s server. Only their ratios count: a call without its
# work, making a view (a call too), each further array of a concatenation, and copying a byte.
CALL = 0.8
VIEW = 0.4
PIECE = 0.25
BYTE = 1 / 8000


# A member's stack, before it the stack's number, which orders them, and the member's index.
Place = tuple[int, int, Value]


class Piece(NamedTuple):
    """Values in a row: ``length`` members of a stack from ``start`` on, or one that is in none."""

    source: Value
    start: int | None
    step: int
    length: int

    @property
    def key(self) -> Any:
        """The index into the source that gives its part of a stack. None: add an axis."""
        if self.start is None:
            return None
        stop = self.start + self.step * self.length
        return slice(self.start, stop if stop >= 0 else None, self.step)


class StackPlan(NamedTuple):
    """A way to stack some values, and its cost."""

    cost: float
    pieces: Sequence[Piece] = ()


def _member(stack: Type, out: Type, index: int) -> Operation:
    return Operation(
        "member", {"index": index}, (stack,), (out,), lambda x: x[index], view=True
    )


def _members(stack: Type, out: Type, key: slice) -> Operation:
    return Operation("members", {"at": key}, (stack,), (out,), lambda x: x[key], view=True)


def join(sources: Sequence[Value], out: ArrayType, parts: Sequence[tuple[int, Any]]) -> Operation:
    """Concatenates parts, given as positions among the sources and keys into those."""
    one, shape, dtype = (1, *out.shape[1:]), out.shape, out.dtype

    def run(*arrays: Array) -> Array:
        return np.concatenate(
            [arrays[i].reshape(one) if key is None else arrays[i][key] for i, key in parts]
        )

    def run_scalars(*scalars: Array) -> Array:
        return np.array([scalars[i] for i, _ in parts], dtype)

    def run_whole(*arrays: Array) -> Array:
        return np.concatenate([arrays[i] for i, _ in parts]).reshape(shape)

    # An axis that is added at the end, once for all, costs less than one for each array.
    alike = all(source.type.shape == shape[1:] for source in sources)
    if alike and all(key is None for _, key in parts):
        run = run_whole if len(shape) > 1 else run_scalars
    return Operation("join", {"parts": parts}, tuple([v.type for v in sources]), (out,), run)


class Stacks:
    """The stacks of one region's body, which is what ``builder`` emits to."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.places: dict[Value, Place] = {}
        self._count = 0
        self._single: set[Value] = set()
        self._made: dict[tuple[Value, ...], Value] = {}

    def add(self, stack: Value, members: Sequence[Value]) -> None:
        """Makes values the members of a stack, in order."""
        self._count += 1
        size = len(members)
        places = zip(repeat(self._count, size), range(size), repeat(stack, size), strict=True)
        self.places.update(zip(members, places, strict=True))

    def single(self, value: Value) -> None:
        """Sees to it that a value is computed by itself as well."""
        place = self.places.get(value)
        if place is not None and value not in self._single:
            self._single.add(value)
            _, index, stack = place
            operation = self.builder.once(
                ("member", stack.type, index), lambda: _member(stack.type, value.type, index)
            )
            builder = self.builder
            builder.body.append(
                make_instruction((operation, (stack,), (value,), (), builder.source))
            )

    # -- stacking values --------------------------------------------------------------------

    def plan(self, values: tuple[Value, ...]) -> StackPlan:
        """The best way to stack values that are not all the same."""
        if values in self._made:
            return StackPlan(0)
        if values[0].const is not None and all([value.const is not None for value in values]):
            return StackPlan(0)
        pieces: list[Piece] = []
        get = self.places.get
        current: Any = None  # the stack of the piece that is being made
        start = step = length = last = 0
        for value in values:
            place = get(value)
            if place is not None and place[2] is current and length:
                distance = place[1] - last
                if distance == step or (length == 1 and distance):
                    step, last = distance, place[1]
                    length += 1
                    continue
            if length:
                pieces.append(Piece(current, start, step, length))
            if place is None:
                pieces.append(Piece(value, None, 1, 1))
                length = 0
            else:
                _, start, current = place
                last, step, length = start, 1, 1
        if length:
            pieces.append(Piece(current, start, step, length))
        if len(pieces) == 1:
            whole = pieces[0].start == 0 and len(values) == current.type.shape[0]
            return StackPlan(0 if whole else VIEW, pieces)
        moved = stacked(values[0].type, len(values)).nbytes * BYTE
        if all([piece.source is current for piece in pieces]):  # a stack is no single value
            return StackPlan(CALL + moved, pieces)
        return StackPlan(CALL + PIECE * len(pieces) + moved, pieces)

    def stack(self, values: tuple[Value, ...], pieces: Sequence[Piece]) -> Value:
        """A stack of values, as planned."""
        made = self._made.get(values)
        if made is None:
            made = self._made[values] = self._stack(values, pieces)
        return made

    def _stack(self, values: tuple[Value, ...], pieces: Sequence[Piece]) -> Value:
        type = stacked(values[0].type, len(values))
        if not pieces:
            array = np.stack([value.const for value in values if value.const is not None])
            array.flags.writeable = False
            return Value(type, array)
        stack = pieces[0].source
        if len(pieces) == 1:
            key = pieces[0].key
            if stack.type == type and key.step == 1:
                return stack
            members = self.builder.once(
                ("members", stack.type, key.start, key.stop, key.step),
                lambda: _members(stack.type, type, key),
            )
            return self.builder.emit(members, (stack,))[0]
        if all([piece.source is stack and piece.start is not None for piece in pieces]):
            indices = np.array([self.places[v][1] for v in values])
            return self.builder.apply_one("take", (stack,), type, indices=indices, axis=0)
        sources = tuple(dict.fromkeys([piece.source for piece in pieces]))
        position = {v: i for i, v in enumerate(sources)}
        parts = [(position[piece.source], piece.key) for piece in pieces]
        return self.builder.emit(join(sources, type, parts), sources)[0]

    def repeated(self, value: Value, size: int) -> Value:
        """A stack whose members are all the same value."""
        type = stacked(value.type, size)
        if value.const is not None:
            return Value(type, np.broadcast_to(value.const, type.shape))
        return self.builder.apply_one("broadcast_to", (value,), type)
