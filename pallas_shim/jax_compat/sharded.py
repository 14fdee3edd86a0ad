"""The boundary for functions on a mesh of devices: sharded arrays in, sharded arrays out."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import config, core
from jax._src.array import ArrayImpl
from jax._src.random import prng
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from pallas_shim.jax_compat import meshes
from pallas_shim.jax_compat.arrays import Elsewhere, ResultType, put
from pallas_shim.jax_compat.jaxprs import (
    CALL_PRIMITIVES,
    KERNEL_PRIMITIVES,
    called_jaxpr,
    inner_jaxprs,
    open_jaxpr,
)

# For each dimension the axes of the mesh along which it is cut.
Names = tuple[tuple[Any, ...], ...]


class OnMesh(NamedTuple):
    """A function that holds a shard_map, and how its arguments and results are cut.

    It has the devices of the mesh, in the mesh's order, and for each argument and result the axes
    along which it is cut (None: unknown, or not cut).

    ``told_in`` and ``told_out`` are the shardings that the user gave to jit, None without one.
    ``whole``: the shard_map leaves no axis of the mesh to XLA.
    """

    mesh: Mesh
    devices: tuple[Any, ...]
    results: tuple[Names | None, ...]
    told_in: tuple[Any, ...]
    told_out: tuple[Any, ...]
    whole: bool


def on_mesh(
    jaxpr: Any, told_in: Sequence[Any], told_out: Sequence[Any], context: Any
) -> OnMesh | None:
    """Describes a jitted function that holds a shard_map. Returns None if it holds none.

    ``context``: the mesh that the call runs under, if there is one.

    Raises:
      Elsewhere: its devices aren't the devices of one mesh, or some aren't in this process.
    """
    opened, _ = open_jaxpr(jaxpr)
    found = list(_shard_maps(opened))
    if not found:
        return None
    concrete = [eqn.params["mesh"] for eqn in found if isinstance(eqn.params["mesh"], Mesh)]
    if context is not None and isinstance(context, Mesh) and not context.empty:
        concrete.append(context)
    if not concrete:
        raise Elsewhere("the devices of its shard_map's mesh aren't known")
    mesh = concrete[0]
    devices = tuple(mesh.devices.flat)
    if any(tuple(other.devices.flat) != devices for other in concrete):
        raise Elsewhere("its shard_maps are over meshes of different devices")
    if any(d.process_index != jax.process_index() for d in devices):
        raise Elsewhere("some devices of its mesh belong to another process")
    try:
        names = _Propagation(opened)
    except meshes.UnsupportedMesh as error:
        raise Elsewhere(str(error)) from error
    specs = [_along(mesh, names.of(v)) for v in opened.outvars]
    whole = all(
        size == 1 for eqn in found for size in meshes.shard_map(eqn).others.values()
    ) and all(dict(eqn.params["mesh"].shape) == dict(mesh.shape) for eqn in found)
    return OnMesh(mesh, devices, tuple(specs), tuple(told_in), tuple(told_out), whole)


def _along(mesh: Mesh, names: Names | None) -> Names | None:
    """These names if the mesh has them. A shard_map may use another mesh of the same devices."""
    known = names is not None and all(axis in mesh.shape for axes in names for axis in axes)
    return names if known else None


def _shard_maps(jaxpr: Any) -> Iterator[Any]:
    """The outermost shard_maps of a jaxpr. There are none in kernels, which may be long."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "shard_map":
            yield eqn
        elif eqn.primitive.name not in KERNEL_PRIMITIVES:
            for inner in inner_jaxprs(eqn):
                yield from _shard_maps(inner)


class _Propagation:
    """How XLA would cut the values of a function, where that is simple to say.

    It follows the operands and results of a shard_map through elementwise operations, transposes
    and reductions.
    """

    def __init__(self, jaxpr: Any):
        self.names: dict[Any, Names | None] = {}
        self._walk(jaxpr)

    def of(self, atom: Any) -> Names | None:
        return None if isinstance(atom, core.Literal) else self.names.get(atom)

    def _walk(self, jaxpr: Any) -> None:
        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            if name == "shard_map":
                call = meshes.shard_map(eqn)
                for var, cut in zip(eqn.invars, call.names_in, strict=True):
                    if not isinstance(var, core.Literal):
                        self.names.setdefault(var, cut)
                self.names.update(zip(eqn.outvars, call.names_out, strict=True))
            elif name in CALL_PRIMITIVES:
                inner, _ = open_jaxpr(called_jaxpr(eqn))
                if len(inner.invars) != len(eqn.invars):
                    continue
                given = dict(zip(inner.invars, map(self.of, eqn.invars), strict=True))
                self.names.update((k, v) for k, v in given.items() if v is not None)
                self._walk(inner)
                for outer, own in zip(eqn.invars, inner.invars, strict=True):
                    if not isinstance(outer, core.Literal) and self.of(outer) is None:
                        self.names[outer] = self.of(own)
                self.names.update(zip(eqn.outvars, map(self.of, inner.outvars), strict=True))
            else:
                for var in eqn.outvars:
                    self.names[var] = self._through(eqn, var)

    def _through(self, eqn: Any, out: Any) -> Names | None:
        name, p = eqn.primitive.name, eqn.params
        if name == "sharding_constraint":
            told = p["sharding"]
            return meshes.names(told.spec, out.aval) if isinstance(told, NamedSharding) else None
        cut = next(((v, n) for v in eqn.invars if (n := self.of(v)) and any(n)), None)
        if cut is None or not hasattr(out.aval, "shape"):
            return None
        var, names = cut
        if name == "transpose":
            return tuple(names[d] for d in p["permutation"])
        if name.startswith(("reduce_", "arg")) and "axes" in p and name != "reduce_precision":
            return tuple(n for d, n in enumerate(names) if d not in p["axes"])
        if name == "broadcast_in_dim":
            cut_out: list[tuple[Any, ...]] = [()] * out.aval.ndim
            for d, to in enumerate(p["broadcast_dimensions"]):
                if var.aval.shape[d] == out.aval.shape[to]:
                    cut_out[to] = names[d]
            return tuple(cut_out)
        if out.aval.shape == var.aval.shape:
            return names
        if out.aval.ndim and var.aval.shape[:1] == out.aval.shape[:1]:
            return (names[0], *[()] * (out.aval.ndim - 1))
        return None


# -- arguments --------------------------------------------------------------------------------


def read(
    args: Sequence[Any],
    dtypes: Sequence[np.dtype | np.ndarray],
    on: OnMesh,
    cut: Mapping[int, Names],
    *,
    any_platform: bool,
) -> list[Any]:
    """Reads the arguments as NumPy arrays, or as lists of their parts.

    An argument at a position in ``cut`` becomes the list of its parts, in the order of the mesh,
    if the devices hold it cut that way already. On a CPU only parts that have to be joined are
    copied, so the arrays must not be written to. For an unused argument, ``dtypes`` may have an
    array, which is then returned in place of the argument.

    Raises:
      Elsewhere: an array is committed to other devices, or against the shardings that jit was
        given, or not on CPUs; or jit must look at a value, as `arrays.read` says.
    """
    if not any_platform and on.devices[0].platform != "cpu":
        raise Elsewhere(f"it runs on devices of the platform {on.devices[0].platform}")
    values: list[Any] = []
    for position, (arg, dtype) in enumerate(zip(args, dtypes, strict=True)):
        if type(dtype) is np.ndarray:
            values.append(dtype)
            continue
        if type(arg) is prng.PRNGKeyArray:
            arg = arg._base_array
        if type(arg) is ArrayImpl:
            try:
                values.append(_parts(arg, position, on, cut.get(position)))
            except RuntimeError as error:
                raise Elsewhere(f"an argument has no value: {error}") from error
        elif config.transfer_guard_host_to_device.value not in (None, "allow"):
            raise Elsewhere("transfers to the device are guarded")
        elif isinstance(arg, (np.ndarray, np.generic)):
            values.append(np.asarray(arg).astype(dtype, copy=False))
        elif isinstance(arg, (bool, int, float, complex)):
            values.append(np.asarray(arg, dtype))
        else:
            raise Elsewhere(f"an argument is of the type {type(arg).__name__}")
    return values


def _parts(array: ArrayImpl, position: int, on: OnMesh, names: Names | None) -> Any:
    sharding = array.sharding
    if array._committed:
        if not array.is_fully_addressable or tuple(_devices(sharding)) != on.devices:
            raise Elsewhere("an argument is committed to other devices than those of its mesh")
        told = on.told_in[position]
        if told is not None and not sharding.is_equivalent_to(told, array.ndim):
            raise Elsewhere("an argument isn't sharded as jit was told")
    if names is not None and len(on.devices) > 1 and _devices(sharding) == list(on.devices):
        wanted = named(on, names)
        if sharding == wanted or sharding.is_equivalent_to(wanted, array.ndim):
            return [np.asarray(part) for part in array._arrays]
    return np.asarray(array)


def _devices(sharding: Any) -> list[Any]:
    return list(sharding._device_assignment)


def named(on: OnMesh, names: Names) -> NamedSharding:
    """The sharding of an array that is cut along these axes."""
    parts = [axes[0] if len(axes) == 1 else axes or None for axes in names]
    while parts and parts[-1] is None:
        parts.pop()
    return NamedSharding(on.mesh, PartitionSpec(*parts))


# -- results ----------------------------------------------------------------------------------


class Result(NamedTuple):
    """What `write` needs to know of one result."""

    type: ResultType
    sharding: Any
    indices: Sequence[Any]


def results(on: OnMesh, avals: Sequence[Any], types: Sequence[ResultType]) -> tuple[Result, ...]:
    """How results of a function are sharded."""
    found = []
    for aval, type, names, told in zip(avals, types, on.results, on.told_out, strict=True):
        explicit = _explicit(aval)
        if told is not None:
            sharding = told
        elif explicit is not None:
            sharding = NamedSharding(on.mesh, explicit)
        else:
            sharding = named(on, names or ())
        if tuple(_devices(sharding)) != on.devices:
            raise Elsewhere("jit was told to put a result on other devices")
        places = sharding.devices_indices_map(aval.shape)
        found.append(Result(type, sharding, [places[device] for device in on.devices]))
    return tuple(found)


def _explicit(aval: Any) -> PartitionSpec | None:
    """The spec in a type, if the mesh's axes have explicit types."""
    sharding = getattr(aval, "sharding", None)
    mesh = getattr(sharding, "mesh", None)
    if sharding is None or mesh is None or mesh.empty:
        return None
    return sharding.spec if getattr(mesh, "_any_axis_explicit", False) else None


def write(values: list[Any], wanted: Sequence[Result], on: OnMesh) -> list[Any]:
    """Makes sharded arrays from NumPy results.

    A result is an array, or the list of its parts if each device has a part of its own. Parts that
    should be replicas may differ.
    """
    out = []
    for value, ((aval, key_type), sharding, indices) in zip(values, wanted, strict=True):
        parts = value if type(value) is list else [value[index] for index in indices]
        # Memory that other code may still see is copied.
        shared = type(value) is not list or any(_is_shared(part) for part in parts)
        part_aval = aval.update(shape=np.shape(parts[0]), sharding=None)
        arrays = [
            put(part_aval, _on_one(device), (device,), part, True, shared)
            for device, part in zip(on.devices, parts, strict=True)
        ]
        array = ArrayImpl(aval, sharding, arrays, committed=True, _skip_checks=True)
        out.append(array if key_type is None else prng.PRNGKeyArray(key_type._impl, array))
    return out


_on_one = functools.cache(SingleDeviceSharding)

# The references to a part while `write` looks at it: the list, a generator's variable, a parameter
# and getrefcount's own argument.
_OWN_REFERENCES = 4


def _is_shared(part: Any) -> bool:
    """Whether something else may refer to a part's memory."""
    if type(part) is not np.ndarray:
        return False
    if sys.getrefcount(part) > _OWN_REFERENCES:
        return True
    room = part.base
    if room is None:
        return False
    # A part may be a view of a larger array, for alignment. It is not shared if only the part and
    # the variable here refer to that array.
    alone = type(room) is np.ndarray and room.base is None and sys.getrefcount(room) <= 3
    return not (alone and room.dtype == np.uint8 and room.nbytes <= part.nbytes + 64)


def is_cut_so(result: Result, names: Names, on: OnMesh) -> bool:
    """Whether parts that are cut this way are the devices' own parts of a result."""
    return on.whole and result.sharding.is_equivalent_to(named(on, names), len(names))
