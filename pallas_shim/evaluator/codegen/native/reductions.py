"""Reductions whose result doesn't depend on their order, or whose order is known."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from pallas_shim.evaluator.codegen.native import elements, sums
from pallas_shim.evaluator.codegen.native.groups import nest
from pallas_shim.evaluator.codegen.native.source import NotNative, Source, literal, type_of
from pallas_shim.evaluator.codegen.native.vectors import Vectors
from pallas_shim.evaluator.program import Instruction

# Rows of so many elements are reduced where they are computed. Shorter ones are added in another
# order, longer ones leave the nearest cache.
_MANY, _MOST = 9, 1 << 13
_LANES = 16
# As many vectors wait for their predecessors at once.
_CHAINS = 4
_OPERATIONS = {
    "reduce_sum": "add", "reduce_prod": "mul", "reduce_max": "max", "reduce_min": "min",
    "reduce_and": "and", "reduce_or": "or", "reduce_xor": "xor",
}  # fmt: skip


def _identity(name: str, dtype: np.dtype) -> np.ndarray:
    if dtype.kind == "b":
        return np.asarray(name in ("and", "min", "mul"))
    if dtype.kind == "f":
        return np.asarray(-np.inf if name == "max" else np.inf, dtype)
    info = np.iinfo(dtype)
    value = {"add": 0, "mul": 1, "max": info.min, "min": info.max, "or": 0, "xor": 0}.get(name)
    if name == "and":
        return np.invert(np.zeros((), dtype))
    return np.asarray(value, dtype)


def _reduce(primitive: str, to: Any, instruction: Instruction) -> None:
    operation, (source, *rest), (out,), *_ = instruction
    name, dtype, shape = _OPERATIONS[primitive], source.type.dtype, source.type.shape
    axes = tuple(axis % len(shape) for axis in operation.params["axes"]) if shape else ()
    ordered = dtype.kind not in "biu" and (dtype.kind != "f" or name not in ("max", "min"))
    if rest or out.type.dtype != dtype or not shape:
        raise NotNative(f"{primitive} of {dtype.name}")
    type_of(dtype)
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    if out.type.shape != tuple(shape[axis] for axis in kept):
        raise NotNative(primitive)
    if axes == (len(shape) - 1,) and kept and _MANY <= shape[-1] <= _MOST:
        if not ordered and (dtype.kind != "f" or dtype.itemsize >= 4):
            to.reduced_rows(out, source, functools.partial(_row, name, dtype, shape[-1]))
            return
        if name == "add" and dtype.name in ("float32", "float64"):
            if not to.layouts.is_contiguous(source):
                raise NotNative(f"{primitive} of strided memory")
            to.reduced_rows(out, source, sums.row_sum(dtype, shape[-1]))
            return
    if ordered:
        raise NotNative(f"{primitive} of {dtype.name}")
    place = to.place(source)
    to.before_reading(place.buffer)
    target = to.room(out) if out.type.shape else None
    text, kind = to.to, type_of(dtype)
    with nest(text, [shape[axis] for axis in kept]) as outer:
        offset = place.offset
        for axis, at in zip(kept, outer, strict=True):
            offset = text.plus(offset, text.times(at, place.strides[axis]))
        total = text.variable(kind)
        text.set(total, kind, literal(_identity(name, dtype)))
        with nest(text, [shape[axis] for axis in axes]) as inner:
            here = offset
            for axis, at in zip(axes, inner, strict=True):
                here = text.plus(here, text.times(at, place.strides[axis]))
            element = text.load(dtype, place.buffer.base, here)
            so_far = text.read(total, kind)
            made = elements.element(text, name, [dtype, dtype], dtype, [so_far, element])
            text.set(total, kind, made)
        result = text.read(total, kind)
        if target is not None:
            where = target.offset
            for at, stride in zip(outer, target.strides, strict=True):
                where = text.plus(where, text.times(at, stride))
            text.store(dtype, result, target.buffer.base, where)
    if target is None:
        to.registers[out] = result
    to.used(source)


def _row(name: str, dtype: np.dtype, length: int, to: Source, row: str, result: str) -> None:
    """Of vectors first, several at once, then of the vectors."""
    lanes = min(_LANES, length)
    vectors, order = Vectors(to, lanes), list(range(lanes))
    kind, nbytes = f"<{lanes} x {type_of(dtype)}>", lanes * dtype.itemsize

    def both(a: str, b: str) -> str:
        return elements.element(vectors, name, [dtype] * 2, dtype, [a, b])

    count = min(_CHAINS, length // lanes)
    totals = [to.variable(kind) for _ in range(count)]
    for number, total in enumerate(totals):
        to.set(total, kind, vectors.load_lanes(dtype, row, str(number * nbytes), order))
    with to.loop(str(length // lanes // count - 1)) as turn:
        offset = to.times(to.plus(turn, "1"), count * nbytes)
        for number, total in enumerate(totals):
            here = to.plus(offset, str(number * nbytes))
            loaded = vectors.load_lanes(dtype, row, here, order)
            to.set(total, kind, both(to.read(total, kind), loaded))
    made = [to.read(total, kind) for total in totals]
    for at_vector in range(length // lanes // count * count, length // lanes):
        made.append(vectors.load_lanes(dtype, row, str(at_vector * nbytes), order))
    whole = _paired(made, both)
    while lanes > 1 and lanes % 2 == 0:
        lanes //= 2
        upper = ", ".join(f"i32 {lane}" for lane in range(lanes, 2 * lanes))
        rest = f", <{len(order)} x i32> <{upper}{', i32 poison' * (len(order) - lanes)}>"
        whole = both(whole, to.let(f"shufflevector {kind} {whole}, {kind} poison{rest}"))
    parts = [to.let(f"extractelement {kind} {whole}, i64 {lane}") for lane in range(lanes)]
    for at in range(length - length % len(order), length):
        parts.append(to.load(dtype, row, str(at * dtype.itemsize)))
    one = _paired(parts, lambda a, b: elements.element(to, name, [dtype] * 2, dtype, [a, b]))
    to.store(dtype, one, result, "0")


def _paired(parts: list[str], both: Callable[[str, str], str]) -> str:
    """All parts as one: pairs, pairs of pairs, and so on."""
    while len(parts) > 1:
        pairs = itertools.zip_longest(parts[::2], parts[1::2])
        parts = [a if b is None else both(a, b) for a, b in pairs]
    return parts[0]


HANDLERS: dict[str, Callable[[Any, Instruction], None]] = {
    name: functools.partial(_reduce, name) for name in _OPERATIONS
}
