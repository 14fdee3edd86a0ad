"""Turns device ids and core indices into the numbers of the programs that they name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.machine.programs import KIND, NUMBER, Level, Owner, remote
from pallas_shim.evaluator.program import Effects, Value
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.evaluator.rules.axes import is_alone
from pallas_shim.jax_compat import meshes, state


def of_other(
    lowering: Lowering, eqn: Any, view: state.RefView, device_id: Any, core_index: Any = None
) -> state.RefView:
    """A view of the same ref in the program that the ids name. Returns ``view`` itself if they name
    the own program."""
    primitive = eqn.primitive.name
    owner = lowering.machine.owners.get(view.ref)
    if device_id is None and core_index is None and owner in (None, lowering.machine.core):
        return view
    if not lowering.machine.levels:
        if device_id is not None and not _is_here(lowering, primitive, device_id):
            raise Unsupported(primitive, "memory of another device, outside shard_map")
        if core_index is not None and not is_zero(core_index):
            raise Unsupported(primitive, "memory of another core")
        return view
    numbers = _numbers(lowering, eqn, device_id, core_index, owner)
    return view._replace(ref=remote(lowering, view.ref, numbers))


def of_first(lowering: Lowering, ref: Value, axes: Sequence[Any]) -> Value:
    """The ref of the program that is first along some axes. The programs along these axes have
    this memory in common."""
    machine = lowering.machine
    zero = lowering.const(np.int32(0))
    meant = {axis: (0, 1, 1, 1) for axis in axes}
    numbers = [
        _number(lowering, "memory in common", machine.levels[: depth + 1], meant, [zero])
        for depth in range(len(machine.levels))
    ]
    return remote(lowering, ref, numbers)


def of_core(lowering: Lowering, ref: Value, axis: Any, index: Value) -> Value:
    """The ref of the core with this index along an axis."""
    machine = lowering.machine
    found = machine.axis(axis)
    assert found is not None
    _, size = found
    meant = {axis: (0, 1, size, size)}
    numbers = [
        _number(lowering, "memory of a core", machine.levels[: depth + 1], meant, [index])
        for depth in range(len(machine.levels))
    ]
    return remote(lowering, ref, numbers)


def _is_here(lowering: Lowering, primitive: str, device_id: Any) -> bool:
    """Whether a device id can only name this device. That is so if no other device is known, or if
    the id gives places along axes of size 1."""
    named = state.device_axes(device_id)
    if named is None:
        return bool(lowering.axes) and all(size == 1 for size in lowering.axes.values())
    return all(is_alone(lowering, primitive, name) for name in named)


def is_zero(index: Any) -> bool:
    value = index.const if isinstance(index, Value) else index
    return value is not None and int(value) == 0


def _numbers(
    lowering: Lowering, eqn: Any, device_id: Any, core_index: Any, owner: Owner | None
) -> list[Value]:
    """The number, at each level, of the program that the ids name. ``owner``: the cores that the
    ref belongs to, if there are several kinds and the user named one."""
    machine, primitive = lowering.machine, eqn.primitive.name
    meant: dict[Any, Any] = {}  # for each axis, an operand and how to compute the index from it
    operands: list[Value] = []

    def give(axes: Sequence[Any], index: Any, sizes: dict[Any, int]) -> None:
        """``index`` counts along some axes. The last axis varies fastest."""
        index = index if isinstance(index, Value) else lowering.const(np.int32(index))
        operands.append(index)
        divisor, count = 1, math.prod(sizes[axis] for axis in axes)
        for axis in reversed(axes):
            meant[axis] = (len(operands) - 1, divisor, sizes[axis], count)
            divisor *= sizes[axis]

    devices = _axes(machine.levels, "device")
    cores = _axes(machine.levels, "core")
    if KIND in cores:
        del cores[KIND]
        of = owner or machine.core
        assert of is not None and machine.core is not None
        give((KIND,), of.kind, {KIND: of.kind + 1})
        for axis in cores.keys() - of.axes:
            give((axis,), 0, {axis: 1})
        cores = {axis: size for axis, size in cores.items() if axis in of.axes}
    if device_id is not None:
        said = meshes.device_id(eqn, device_id)
        if said.by_axes is not None:
            for axes, index in said.by_axes.items():
                known = {axis: (devices | cores).get(axis) for axis in axes}
                if all(size is None for size in known.values()):
                    if not all(is_alone(lowering, primitive, axis) for axis in axes):
                        raise Unsupported(primitive, f"another place along {axes}")
                    continue
                give(axes, index, {axis: size or 1 for axis, size in known.items()})
        elif said.coordinates is not None:
            if len(said.coordinates) != len(lowering.mesh_axes):
                raise Unsupported(
                    primitive,
                    f"a device id of {len(said.coordinates)} numbers in a mesh of "
                    f"{len(lowering.mesh_axes)} axes",
                )
            for axis, index in zip(lowering.mesh_axes, said.coordinates, strict=True):
                if axis not in devices:
                    raise Unsupported(primitive, f"a place along {axis!r}, which is XLA's")
                give((axis,), index, devices)
        else:
            if any(axis not in devices for axis in lowering.mesh_axes):
                raise Unsupported(primitive, "a number of a device, of which some are XLA's")
            give(lowering.mesh_axes, said.logical, devices)
    if core_index is not None:
        if cores:
            give(tuple(cores), core_index, cores)
        elif not is_zero(core_index):
            raise Unsupported(primitive, "memory of another core")
    if owner is not None and machine.core is not None and core_index is None:
        unsaid = cores.keys() - machine.core.axes - meant.keys()
        if unsaid:
            raise Unsupported(
                primitive, f"cores of another kind without a place along {sorted(unsaid)}"
            )
    return [
        _number(lowering, primitive, machine.levels[: depth + 1], meant, operands)
        for depth in range(len(machine.levels))
    ]


def _axes(levels: Sequence[Level], kind: str) -> dict[Any, int]:
    return {name: n for level in levels if level.kind == kind for name, n in level.sizes.items()}


def _number(
    lowering: Lowering,
    primitive: str,
    levels: Sequence[Level],
    meant: dict[Any, Any],
    operands: list[Value],
) -> Value:
    """The number, at the last of some levels, of the program with the indices in ``meant``. Returns
    the own program's number if ``meant`` has no axis of these levels."""
    axes = [(name, level) for level in levels for name in level.sizes]
    if not any(name in meant for name, _ in axes):
        return levels[-1].number
    own = [level.indices[name] for name, level in axes]
    steps = [(level.sizes[name], meant.get(name), at) for at, (name, level) in enumerate(axes)]
    given = len(operands)

    def number(*values: Any) -> Any:
        result = 0
        for size, index, at in steps:
            if index is None:
                here = int(values[given + at])
            else:
                operand, divisor, _, count = index
                whole = int(values[operand])
                if not 0 <= whole < count:
                    raise IndexError(
                        f"{primitive} reaches for device or core {whole}, of which there are "
                        f"{count}: numbers go from 0 to {count - 1}"
                    )
                here = whole // divisor % size
            result = result * size + here
        return np.int32(result)

    # The effect keeps the instruction in its place: a wrong number is an error only there.
    (result,) = lowering.memory(
        "program_number", [*operands, *own], [NUMBER], number, Effects(io=True)
    )
    return result
