"""Helpers that build changed programs: instructions with other operands, scoped tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from pallas_shim.evaluator.program import (
    PURE,
    Effects,
    Instruction,
    Operation,
    Region,
    Value,
    make_instruction,
)

Substitution = dict[Value, Value]


def substitute(values: tuple[Value, ...], replaced: Substitution) -> tuple[Value, ...]:
    return tuple(map(replaced.get, values, values))


def with_operands(body: Sequence[Instruction], replaced: Substitution) -> Iterator[Instruction]:
    """The instructions one by one, each with the operands that have been replaced by then."""
    get, untouched = replaced.get, replaced.keys().isdisjoint
    for instruction in body:
        operation, ins, outs, regions, source = instruction
        if not untouched(ins):
            new = tuple(map(get, ins, ins))
            instruction = make_instruction((operation, new, outs, regions, source))
        yield instruction


def with_regions(instruction: Instruction, regions: Sequence[Region]) -> Instruction:
    operation, ins, outs, _, source = instruction
    return make_instruction((operation, ins, outs, tuple(regions), source))


def is_ufunc(operation: Operation) -> bool:
    """Whether it is one call of an elementwise NumPy function."""
    fn = operation.fn
    return isinstance(fn, np.ufunc) and fn.signature is None and not operation.view


def writing_over(
    operation: Operation, ins: tuple[Value, ...], position: int, effects: Effects = PURE
) -> Operation:
    """The same ufunc, whose result is written over one of ``ins``: these are its operands, and
    may have that array after them."""
    ufunc, count = operation.fn, len(operation.ins)
    over = _OVER.get((count, position))
    return Operation(
        operation.name,
        {**operation.params, "into": position, "ufunc": ufunc},
        tuple([value.type for value in ins]),
        operation.outs,
        over(ufunc) if over else _over_any(ufunc, count, position),
        effects,
    )


def _over_x(fn: Any) -> Callable[..., Any]:
    return lambda x: fn(x, out=x)


def _x_over_out(fn: Any) -> Callable[..., Any]:
    return lambda x, out: fn(x, out=out)


def _over_first(fn: Any) -> Callable[..., Any]:
    return lambda x, y: fn(x, y, out=x)


def _over_second(fn: Any) -> Callable[..., Any]:
    return lambda x, y: fn(x, y, out=y)


def _both_over_out(fn: Any) -> Callable[..., Any]:
    return lambda x, y, out: fn(x, y, out=out)


# By the number of a ufunc's operands: the position in a call of the array that it writes over.
_OVER: dict[tuple[int, int], Callable[[Any], Callable[..., Any]]] = {
    (1, 0): _over_x,
    (1, 1): _x_over_out,
    (2, 0): _over_first,
    (2, 1): _over_second,
    (2, 2): _both_over_out,
}


def _over_any(ufunc: Any, count: int, position: int) -> Callable[..., Any]:
    return lambda *arrays: ufunc(*arrays[:count], out=arrays[position])


class ScopedTable(dict[Any, Any]):
    """A dictionary whose entries made inside ``scope()`` are forgotten after it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Any] = []

    def set(self, key: Any, value: Any) -> None:
        self[key] = value
        self.made.append(key)

    @contextmanager
    def scope(self) -> Iterator[None]:
        start = len(self.made)
        try:
            yield
        finally:
            for key in self.made[start:]:
                del self[key]
            del self.made[start:]
