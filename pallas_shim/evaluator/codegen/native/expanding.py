"""Operations that are short in NumPy only, as those that they were made of.

NumPy looks up one element of each row; native code reads the row while it is in a register. Native
code corrects an index where it is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from pallas_shim.evaluator.builder import Builder
from pallas_shim.evaluator.program import ArrayType, Instruction, Program, Region, Value

_BOOL = np.dtype(np.bool_)


def expanded(program: Program) -> Program:
    """The program without such operations."""
    if not any(instruction.name in _EXPANSIONS for instruction in program.top.walk()):
        return program
    return Program(program.name, _region(Builder(), program.top))


def _region(builder: Builder, region: Region) -> Region:
    with builder.block() as body:
        for instruction in region.body:
            expand = _EXPANSIONS.get(instruction.name)
            if expand is not None:
                builder.source = instruction.source
                expand(builder, instruction)
                # The last instruction defines the value that others use.
                body[-1] = body[-1]._replace(outs=instruction.outs)
                continue
            if instruction.regions:
                inner = tuple([_region(builder, each) for each in instruction.regions])
                instruction = instruction._replace(regions=inner)
            body.append(instruction)
    return dataclasses.replace(region, body=tuple(body))


def _first_true(builder: Builder, instruction: Instruction) -> None:
    (mask,), (out,), params = instruction.ins, instruction.outs, instruction.operation.params
    (axis,), dtype = params["axes"], out.type.dtype
    full = ArrayType(mask.type.shape, dtype)
    none = builder.apply_one("broadcast_to", (builder.const(dtype.type(params["none"])),), full)
    indices = _indices(builder, full.shape, axis, dtype)
    kept = builder.apply_one("select_n", (mask, none, indices), full)
    builder.apply_one("reduce_min", (kept,), out.type, axes=(axis,), out_sharding=None)


def _one_hot_get(builder: Builder, instruction: Instruction) -> None:
    (array, places), (out,) = instruction.ins, instruction.outs
    (axis,), type = instruction.operation.params["axes"], array.type
    mask = _mask(builder, type.shape, axis, places)
    zero = builder.apply_one("broadcast_to", (builder.const(type.dtype.type(0)),), type)
    kept = builder.apply_one("select_n", (mask, zero, array), type)
    builder.apply_one("reduce_sum", (kept,), out.type, axes=(axis,), out_sharding=None)


def _one_hot_set(builder: Builder, instruction: Instruction) -> None:
    array, places, number = instruction.ins
    mask = _mask(builder, array.type.shape, instruction.operation.params["axis"], places)
    assert number.const is not None
    spread = builder.const(number.const.reshape((1,) * len(array.type.shape)))
    builder.apply_one("select_n", (mask, array, spread), array.type)


def _gather_from_end(builder: Builder, instruction: Instruction) -> None:
    operation, (array, indices), (out,), *_ = instruction
    (dim,), type = operation.params["dimension_numbers"].start_index_map, indices.type
    zero, size = [builder.const(type.dtype.type(n)) for n in (0, array.type.shape[dim])]
    negative = builder.apply_one("lt", (indices, zero), ArrayType(type.shape, _BOOL))
    moved = builder.apply_one("add", (indices, size), type)
    places = builder.apply_one("select_n", (negative, indices, moved), type)
    builder.apply_one("gather", (array, places), out.type, **operation.params)


def _mask(builder: Builder, shape: tuple[int, ...], axis: int, places: Value) -> Value:
    indices = _indices(builder, shape, axis, places.type.dtype)
    return builder.apply_one("eq", (indices, places), ArrayType(shape, _BOOL))


def _indices(builder: Builder, shape: tuple[int, ...], axis: int, dtype: np.dtype) -> Value:
    line = np.arange(shape[axis], dtype=dtype)
    line = line.reshape([-1 if d == axis else 1 for d in range(len(shape))])
    return builder.apply_one("broadcast_to", (builder.const(line),), ArrayType(shape, dtype))


_EXPANSIONS: dict[str, Callable[[Builder, Instruction], Any]] = {
    "first_true": _first_true,
    "gather_from_end": _gather_from_end,
    "one_hot_get": _one_hot_get,
    "one_hot_set": _one_hot_set,
}
