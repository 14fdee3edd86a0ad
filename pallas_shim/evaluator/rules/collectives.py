"""shard_map, and the collectives that its programs run together.

Every device's part runs as a program of one machine; see `machine`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator import scalar_types
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.machine.programs import emit_meeting, emit_programs
from pallas_shim.evaluator.program import ArrayType, Value
from pallas_shim.evaluator.registry import Unsupported, lowering_rule
from pallas_shim.evaluator.rules.axes import is_alone
from pallas_shim.jax_compat import meshes


@lowering_rule("shard_map")
def _shard_map(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    call = meshes.shard_map(eqn)
    if lowering.kernels:
        raise Unsupported("shard_map", "inside a kernel")
    outs = [lowering.type(v.aval) for v in eqn.outvars]
    if any(v.type.key_ndim for v in ins) or any(t.key_ndim for t in outs):
        return _of_keys(lowering, call, ins, outs)
    if any(not isinstance(v.type, ArrayType) for v in ins):
        raise Unsupported("shard_map", "with an operand that is a ref")
    return _emit(lowering, call, ins, outs)


def _emit(lowering: Lowering, call: meshes.ShardMap, ins: Any, outs: Any) -> Any:
    opened, _ = jax_compat.open_jaxpr(call.jaxpr)
    parts = [lowering.type(v.aval) for v in opened.invars]
    outer, lowering.mesh_axes = lowering.mesh_axes, tuple(call.mesh.shape)
    results = emit_programs(
        lowering, "device", call.sizes, ins, call.names_in, parts, outs, call.names_out,
        lambda args: lowering.inline(call.jaxpr, args),
    )  # fmt: skip
    lowering.mesh_axes = outer
    return results


def _of_keys(lowering: Lowering, call: meshes.ShardMap, ins: Any, outs: Any) -> Any:
    """Handles arrays of PRNG keys. The dimensions of a single key are never cut."""
    call = call._replace(
        names_in=tuple(_with_key(n, v.type) for n, v in zip(call.names_in, ins, strict=True)),
        names_out=tuple(_with_key(n, t) for n, t in zip(call.names_out, outs, strict=True)),
    )
    return _emit(lowering, call, ins, outs)


def _with_key(names: Any, type: Any) -> Any:
    return (*names, *[()] * type.key_ndim)


# -- collectives ------------------------------------------------------------------------------


def _meet(
    lowering: Lowering,
    eqn: Any,
    ins: Sequence[Value],
    combine: Callable[[list[list[Any]]], Sequence[Any]],
) -> list[Value]:
    """Emits a meeting of the programs along the axes of a collective. ``combine`` takes one list of
    operands per program and returns one list of results per program."""
    primitive = eqn.primitive.name
    axes = list(meshes.collective_axes(eqn))
    outs = [lowering.type(v.aval) for v in eqn.outvars]
    alone = [name for name in axes if _size(lowering, primitive, name) == 1]
    axes = [name for name in axes if name not in alone]
    if not axes:
        return _reshaped(lowering, ins, outs)
    machine = lowering.machine
    if any(machine.axis(name) is None for name in axes):
        raise Unsupported(primitive, f"between the cells of the axis {axes[0]!r}")
    if any(v.type.key_ndim for v in ins):
        raise Unsupported(primitive, "on an array of PRNG keys")
    name = f"{primitive} along {', '.join(map(str, axes))}"
    return list(
        emit_meeting(lowering, name, axes, ins, outs, combine, meshes.index_groups(eqn))
    )


def _size(lowering: Lowering, primitive: str, name: Any) -> int | None:
    """The size of the axis of that name. None if it isn't known."""
    if not _in_kernel(lowering, name):
        found = lowering.machine.axis(name)
        if found is not None:
            return found[1]
    return 1 if is_alone(lowering, primitive, name) else None


def _in_kernel(lowering: Lowering, name: Any) -> bool:
    return any(name in kernel.names for kernel in lowering.kernels)


def _reshaped(lowering: Lowering, ins: Any, outs: Any) -> list[Value]:
    """The result for a lone program: the operand, which may gain or lose an axis of size 1."""
    return [
        lowering.apply("reshape", [v], [t], {"new_sizes": t.shape, "dimensions": None})[0]
        if v.type != t
        else v
        for v, t in zip(ins, outs, strict=True)
    ]


def _same_for_all(make: Callable[[list[list[Any]]], list[Any]]) -> Any:
    return lambda brought: [make(brought)] * len(brought)


def _sum(arrays: Sequence[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """The sum in the order of ranks. Narrow types are summed in a wide type."""
    wide = scalar_types.wide(dtype)
    first, *rest = arrays
    total = np.array(first, wide)
    for array in rest:
        np.add(total, array, out=total, casting="unsafe")
    return total.astype(dtype, copy=False)


@lowering_rule("psum", "psum_invariant")
def _psum(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    positions = tuple(a for a in eqn.params["axes"] if isinstance(a, int))
    if positions:
        raise Unsupported(eqn.primitive.name, "over positions of a batch")
    types = [v.type for v in ins]

    def combine(brought: Any) -> Any:
        columns = zip(*brought, strict=True)
        return [_sum(column, t.dtype) for column, t in zip(columns, types, strict=True)]

    return _meet(lowering, eqn, ins, _same_for_all(combine))


@lowering_rule("pmax", "pmin")
def _extremum(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    pick = np.maximum if eqn.primitive.name == "pmax" else np.minimum

    def combine(brought: Any) -> Any:
        return [functools.reduce(pick, column) for column in zip(*brought, strict=True)]

    return _meet(lowering, eqn, ins, _same_for_all(combine))


@lowering_rule("all_gather", "all_gather_invariant", "all_gather_reduced")
def _all_gather(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    axis, tiled = eqn.params["all_gather_dimension"], eqn.params["tiled"]
    join = np.concatenate if tiled else np.stack

    def combine(brought: Any) -> Any:
        return [join(column, axis) for column in zip(*brought, strict=True)]

    return _meet(lowering, eqn, ins, _same_for_all(combine))


@lowering_rule("reduce_scatter")
def _reduce_scatter(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    axis, tiled = eqn.params["scatter_dimension"], eqn.params["tiled"]
    types = [v.type for v in ins]

    def combine(brought: Any) -> Any:
        size = len(brought)
        sums = [_sum(c, t.dtype) for c, t in zip(zip(*brought, strict=True), types, strict=True)]
        parts = [np.split(total, size, axis) for total in sums]
        if not tiled:
            parts = [[part.squeeze(axis) for part in of_one] for of_one in parts]
        return [list(of_rank) for of_rank in zip(*parts, strict=True)]

    return _meet(lowering, eqn, ins, combine)


@lowering_rule("all_to_all")
def _all_to_all(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    split, join = eqn.params["split_axis"], eqn.params["concat_axis"]

    def combine(brought: Any) -> Any:
        size = len(brought)
        parts = [[np.split(x, size, split) for x in of_rank] for of_rank in brought]
        return [
            [
                np.concatenate([of_sender[k][rank] for of_sender in parts], join)
                for k in range(len(brought[0]))
            ]
            for rank in range(size)
        ]

    return _meet(lowering, eqn, ins, combine)


@lowering_rule("ppermute")
def _ppermute(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    source = {int(to): int(of) for of, to in eqn.params["perm"]}
    types = [v.type for v in ins]
    zeros = [np.zeros(t.shape, t.dtype) for t in types]
    _refuse_groups(eqn)

    def combine(brought: Any) -> Any:
        return [
            brought[source[rank]] if rank in source else zeros for rank in range(len(brought))
        ]

    if all(_size(lowering, "ppermute", name) == 1 for name in meshes.collective_axes(eqn)):
        return list(ins) if source.get(0) == 0 else [lowering.const(zero) for zero in zeros]
    return _meet(lowering, eqn, ins, combine)


def _refuse_groups(eqn: Any) -> None:
    if meshes.index_groups(eqn) is not None:
        raise Unsupported(eqn.primitive.name, "among groups of indices")


@lowering_rule("pbroadcast")
def _pbroadcast(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    source = eqn.params.get("source", 0)
    return _meet(lowering, eqn, ins, _same_for_all(lambda brought: brought[source]))


@lowering_rule("pbroadcast_dynamic")
def _pbroadcast_dynamic(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    """Every program gets the first operand of one program. The second operand is the number of that
    program; the value in the first program counts."""

    def combine(brought: Any) -> Any:
        return [[brought[int(brought[0][1])][0]]] * len(brought)

    return _meet(lowering, eqn, ins, combine)
