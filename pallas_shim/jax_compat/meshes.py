"""One normal form of shard_map, collectives and device ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import tree_util

from pallas_shim.jax_compat.jaxprs import equations, primitives
from pallas_shim.refusal import Refusal


class UnsupportedMesh(Refusal):
    """A shard_map that has no normal form; the message says why."""


class ShardMap(NamedTuple):
    """What each device of a mesh runs on its parts of the operands.

    ``sizes`` are the sizes of the manual axes, which the function can name, in the mesh's order.
    ``others`` are the axes that are left to XLA. ``names_in`` and ``names_out`` give the axes
    along which each dimension of each operand and result is cut.
    """

    jaxpr: Any
    mesh: Any
    sizes: dict[Any, int]
    others: dict[Any, int]
    names_in: tuple[tuple[tuple[Any, ...], ...], ...]
    names_out: tuple[tuple[tuple[Any, ...], ...], ...]


def shard_map(eqn: Any) -> ShardMap:
    """The normal form of a shard_map equation.

    Raises:
      UnsupportedMesh: the shard_map has no normal form.
    """
    p = eqn.params
    mesh, told = p["mesh"], _told(eqn)
    return ShardMap(
        p["jaxpr"],
        mesh,
        told,
        {name: size for name, size in mesh.shape.items() if name not in told},
        tuple(names(s, v.aval) for s, v in zip(p["in_specs"], eqn.invars, strict=True)),
        tuple(names(s, v.aval) for s, v in zip(p["out_specs"], eqn.outvars, strict=True)),
    )


def count(eqn: Any) -> int:
    """How many times a shard_map's function runs."""
    return math.prod(_told(eqn).values())


def axes(eqn: Any) -> dict[Any, int]:
    """The sizes of all axes of a shard_map's mesh, in the mesh's order."""
    return dict(eqn.params["mesh"].shape)


def _told(eqn: Any) -> dict[Any, int]:
    """The axes that a shard_map's function can name, with their sizes."""
    p = eqn.params
    manual = p["newly_manual_axes"] if "newly_manual_axes" in p else p["manual_axes"]
    return {name: size for name, size in p["mesh"].shape.items() if name in manual}


def names(spec: Any, aval: Any) -> tuple[tuple[Any, ...], ...]:
    """For each dimension, the axes along which a PartitionSpec cuts an array."""
    if getattr(spec, "unreduced", None) or getattr(spec, "reduced", None):
        raise UnsupportedMesh("an array whose parts are yet to be summed")
    parts = [_axes(part) for part in spec]
    return tuple(parts + [()] * (aval.ndim - len(parts)))


def _axes(part: Any) -> tuple[Any, ...]:
    if part is None:
        return ()
    if isinstance(part, str) or not isinstance(part, tuple):
        return (part,)
    return part


def collective_axes(eqn: Any) -> tuple[Any, ...]:
    """The axes along which a collective's programs meet."""
    p = eqn.params
    axes = p["axes"] if "axes" in p else p["axis_name"]
    return tuple(axes) if isinstance(axes, (tuple, list)) else (axes,)


class DeviceId(NamedTuple):
    """A device, in one of three forms.

    ``logical`` is a number among all devices. ``coordinates`` has one index for each axis of the
    mesh. ``by_axes`` gives an index along one axis or several; along the other axes it is the
    program's own.
    """

    logical: Any = None
    coordinates: tuple[Any, ...] | None = None
    by_axes: dict[tuple[Any, ...], Any] | None = None


def device_id(eqn: Any, given: Any) -> DeviceId:
    """The device id that a copy or a signal was given, by its type."""
    if isinstance(given, dict):
        return DeviceId(
            by_axes={k if isinstance(k, tuple) else (k,): v for k, v in given.items()}
        )
    if getattr(eqn.params["device_id_type"], "name", "") == "LOGICAL":
        return DeviceId(logical=given)
    return DeviceId(coordinates=tuple(tree_util.tree_leaves(given)))


_MEETS = frozenset({"get_barrier_semaphore", "barrier", "sc_fetch_and_add"})
_MAY_REACH_OTHERS = frozenset({"dma_start", "semaphore_signal"})


def talks(jaxpr: Any) -> bool:
    """Whether a kernel reaches other devices or cores, or can be reached."""
    from pallas_shim.jax_compat import state

    names = primitives(jaxpr)
    if not names.isdisjoint(_MEETS):
        return True
    if names.isdisjoint(_MAY_REACH_OTHERS):
        return False
    for eqn in equations(jaxpr):
        name = eqn.primitive.name
        if name in _MAY_REACH_OTHERS:
            if state.device_id(eqn, eqn.invars) is not None:
                return True
            if name == "semaphore_signal":
                *_, core_index = eqn.params["args_tree"].unflatten(eqn.invars)
                if core_index is not None:
                    return True
    return False


def shares_semaphores(avals: Sequence[Any]) -> bool:
    """Whether a kernel has a semaphore among these parameters, that others may have signalled."""
    return any(str(aval.memory_space).startswith("semaphore") for aval in avals)


def argument_names(jaxpr: Any) -> Sequence[str]:
    """The user's names of a function's arguments. There may be fewer, if some aren't known."""
    info = getattr(jaxpr, "debug_info", None)
    return tuple(getattr(info, "arg_names", None) or ())


def index_groups(eqn: Any) -> tuple[tuple[int, ...], ...] | None:
    """The groups of indices along a collective's axes that meet. None: all of them meet."""
    groups = eqn.params.get("axis_index_groups")
    return None if groups is None else tuple(tuple(map(int, np.ravel(g))) for g in groups)
