"""Sums of rows in NumPy's order.

NumPy adds up to 128 numbers as 8 sums of every 8th number, and then the rest one by one. It halves
longer rows, at a multiple of 8. The order is known when the code is written, so the sums of several
parts of a row are added up at once. Rows of random numbers show whether NumPy does it like that;
if not, its own loop adds them up.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator.codegen.native import functions
from pallas_shim.evaluator.codegen.native.source import Source, literal, type_of
from pallas_shim.evaluator.codegen.native.vectors import Vectors

_LANES, _MOST = 8, 128
# As many parts are added up at once, since each addition waits for the one before.
_AT_ONCE = 8
# Random rows that are compared.
_SAMPLES = 8


def row_sum(dtype: np.dtype, count: int) -> Callable[[Source, str, str], None]:
    """What writes the sum of a row of at least 8 numbers. It is of (source, address of the row, of
    the sum)."""
    if _is_numpys(dtype, count):
        return functools.partial(_write, dtype, count)
    return functools.partial(_by_numpy, dtype, count)


def _by_numpy(dtype: np.dtype, count: int, to: Source, row: str, result: str) -> None:
    to.set(result, type_of(dtype), literal(dtype.type(0)))
    functions.reduction(np.add, dtype)(to, count, row, result)


def _write(dtype: np.dtype, count: int, to: Source, row: str, result: str) -> None:
    kind, parts, sums = type_of(dtype), _parts(0, count), list[str]()
    for length, alike in itertools.groupby(parts, lambda part: part[1] - part[1] % _LANES):
        starts = [start for start, _ in alike]
        for first in range(0, len(starts), _AT_ONCE):
            sums += _sums(to, dtype, row, starts[first : first + _AT_ONCE], length)

    def add(a: str, b: str) -> str:
        return to.let(f"fadd {kind} {a}, {b}")

    for number, (start, length) in enumerate(parts):
        for at in range(start + length - length % _LANES, start + length):
            rest = to.load(dtype, row, str(at * dtype.itemsize))
            sums[number] = add(sums[number], rest)
    total = _total(count, iter(sums), add)
    # NumPy starts from 0, which isn't seen unless all is -0.
    to.store(dtype, add(literal(dtype.type(0)), total), result, "0")


def _sums(
    to: Source, dtype: np.dtype, row: str, starts: Sequence[int], length: int
) -> list[str]:
    """The sums of parts, which have ``length`` numbers beside the rest."""
    vectors, order = Vectors(to, _LANES), list(range(_LANES))
    kind, size = f"<{_LANES} x {type_of(dtype)}>", dtype.itemsize

    def add(a: str, b: str) -> str:
        return to.let(f"fadd {kind} {a}, {b}")

    totals = []
    for start in starts:
        loaded = vectors.load_lanes(dtype, row, str(start * size), order)
        totals.append(to.variable(kind, loaded))
    with to.loop(str(length // _LANES - 1)) as number:
        offset = to.times(to.plus(number, "1"), _LANES * size)
        for start, total in zip(starts, totals, strict=True):
            here = to.plus(offset, str(start * size))
            loaded = vectors.load_lanes(dtype, row, here, order)
            to.set(total, kind, add(to.read(total, kind), loaded))
    made = [to.read(total, kind) for total in totals]
    for _ in range(_LANES.bit_length() - 1):  # neighbours, until a part has one number
        pairs = itertools.zip_longest(made[::2], made[1::2], fillvalue="poison")
        made = [add(*[_every_second(to, kind, a, b, n) for n in (0, 1)]) for a, b in pairs]
    return [to.let(f"extractelement {kind} {made[0]}, i64 {n}") for n in range(len(starts))]


def _every_second(to: Source, kind: str, a: str, b: str, first: int) -> str:
    mask = ", ".join(f"i32 {lane}" for lane in range(first, 2 * _LANES, 2))
    return to.let(f"shufflevector {kind} {a}, {kind} {b}, <{_LANES} x i32> <{mask}>")


# -- NumPy's order --------------------------------------------------------------------------------


def _parts(start: int, count: int) -> list[tuple[int, int]]:
    """The start and the length of each part of a row."""
    if count <= _MOST:
        return [(start, count)]
    half = _half(count)
    return [*_parts(start, half), *_parts(start + half, count - half)]


def _half(count: int) -> int:
    return count // 2 - count // 2 % _LANES


def _total(count: int, sums: Any, add: Callable[[Any, Any], Any]) -> Any:
    """The sum of a row, from an iterator over those of its parts."""
    if count <= _MOST:
        return next(sums)
    half = _half(count)
    first = _total(half, sums, add)
    return add(first, _total(count - half, sums, add))


@functools.cache
def _is_numpys(dtype: np.dtype, count: int) -> bool:
    rows = np.random.default_rng(0).standard_normal((_SAMPLES, count)).astype(dtype)
    sums = []
    for start, length in _parts(0, count):
        whole = start + length - length % _LANES
        eights = rows[:, start:whole].reshape(_SAMPLES, -1, _LANES)
        part = functools.reduce(np.add, [eights[:, n] for n in range(eights.shape[1])])
        while part.shape[1] > 1:
            part = part[:, ::2] + part[:, 1::2]
        part = functools.reduce(np.add, rows.T[whole : start + length], part[:, 0])
        sums.append(part)
    return bool((_total(count, iter(sums), np.add) == np.add.reduce(rows, axis=1)).all())
