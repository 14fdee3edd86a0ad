"""Reductions whose result doesn't depend on their order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from pallas_shim.evaluator.codegen.native import elements
from pallas_shim.evaluator.codegen.native.groups import nest
from pallas_shim.evaluator.codegen.native.source import NotNative, literal, type_of
from pallas_shim.evaluator.program import Instruction

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
    if rest or ordered or out.type.dtype != dtype or not shape:
        raise NotNative(f"{primitive} of {dtype.name}")
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    if out.type.shape != tuple(shape[axis] for axis in kept):
        raise NotNative(primitive)
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


HANDLERS: dict[str, Callable[[Any, Instruction], None]] = {
    name: functools.partial(_reduce, name) for name in _OPERATIONS
}
