"""Exports single kernels for a TPU that isn't there: JAX's own lowering, for a generation."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export
from jax._src import compiler, config, core
from jax._src.state.types import AbstractRef
from jax.experimental import pallas
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from pallas_shim.jax_compat import meshes
from pallas_shim.jax_compat.hooks import tpu_info
from pallas_shim.jax_compat.jaxprs import (
    KERNEL_PRIMITIVES,
    held_jaxprs,
    inner_jaxprs,
    open_jaxpr,
    primitives,
    with_equations,
    with_jaxprs,
)
from pallas_shim.jax_compat.pallas import kernel_jaxpr


class Site(NamedTuple):
    """A kernel as it stands in a program: the equation that calls it, and what surrounds it.

    ``axes``: the named axes of the devices around it, with their sizes. ``x64``: whether JAX's
    64-bit types were on.
    """

    equation: Any
    axes: tuple[tuple[Any, int], ...]
    x64: bool


class JittedFunction(NamedTuple):
    """A jitted function with kernels, as it was called. ``donated``: the numbers of the arguments
    that it may overwrite. ``is_sharded``: JAX was told how to cut arguments over devices."""

    name: str
    jaxpr: Any
    donated: tuple[int, ...]
    is_sharded: bool
    x64: bool


def jitted(jaxpr: Any, call: Any) -> JittedFunction:
    """The function that is called now. ``call``: its `call_info.JitCall`."""
    donated = tuple(place for place, is_donated in enumerate(call.donated) if is_donated)
    is_sharded = call.sharded is not None or "shard_map" in primitives(jaxpr)
    return JittedFunction(call.name, jaxpr, donated, is_sharded, bool(config.enable_x64.value))


def sites(jaxpr: Any, axes: Mapping[Any, int] = MappingProxyType({})) -> Iterator[Site]:
    """The kernels of a jaxpr and of the jaxprs inside it. ``axes``: those around the jaxpr."""
    yield from _sites(getattr(jaxpr, "jaxpr", jaxpr), axes)


def _sites(jaxpr: Any, axes: Mapping[Any, int]) -> Iterator[Site]:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in KERNEL_PRIMITIVES:
            yield site(eqn, axes)
            continue
        around = {**axes, **meshes.axes(eqn)} if eqn.primitive.name == "shard_map" else axes
        for inner in inner_jaxprs(eqn):
            yield from _sites(getattr(inner, "jaxpr", inner), around)


def site(eqn: Any, axes: Mapping[Any, int]) -> Site:
    """The site of a kernel that JAX lowers or runs now."""
    return Site(eqn, tuple(axes.items()), bool(config.enable_x64.value))


def devices_of(kernel: Site) -> int:
    """The number of devices that run the kernel together."""
    return math.prod(size for _, size in kernel.axes)


def alone(kernel: Site) -> Any:
    """A jaxpr of nothing but the kernel."""
    eqn = kernel.equation
    invars = [core.Var(v.aval) for v in eqn.invars]
    outvars = [core.Var(v.aval) for v in eqn.outvars]
    info = kernel_jaxpr(eqn).debug_info._replace(arg_names=None, result_paths=None)
    replaced = eqn.replace(invars=invars, outvars=outvars, effects=core.no_effects)
    return core.Jaxpr((), invars, outvars, [replaced], debug_info=info)


def obstacle(kernel: Site) -> str | None:
    """Why a kernel is none for a TPU, or None."""
    params = kernel.equation.params
    given = params.get("compiler_params")
    # Before JAX 0.10 there may be some for each kind of device.
    kinds = {type(each).__module__ for each in (given.values() if _is_dict(given) else [given])}
    if kinds and all("triton" in kind or "mosaic_gpu" in kind for kind in kinds):
        return f"its compiler_params are for a GPU ({', '.join(sorted(kinds))})"
    for mesh in (params.get("mesh"), *params.get("meshes", ())):
        if "mosaic_gpu" in type(mesh).__module__:
            return "it runs on the threads of a GPU"
    return None


def hollow(kernel: Site) -> Site:
    """The pallas_call with the same operands, blocks and scratch, whose body does nothing."""
    eqn = kernel.equation
    nothing = eqn.params["jaxpr"].replace(eqns=[], effects=core.no_effects)
    return kernel._replace(equation=eqn.replace(params={**eqn.params, "jaxpr": nothing}))


def vmem_limit(kernel: Site) -> int | None:
    """The bytes of VMEM that a kernel's compiler_params let its blocks take; None: they don't
    say."""
    given = kernel.equation.params.get("compiler_params")
    for each in given.values() if _is_dict(given) else [given]:
        limit: int | None = getattr(each, "vmem_limit_bytes", None)
        if limit is not None:
            return limit
    return None


def _is_dict(value: Any) -> bool:
    return isinstance(value, Mapping) or type(value).__name__ == "FrozenDict"


# Frames in these directories are JAX's lowering of a kernel for a TPU, and what that calls.
_OF_LOWERING = tuple(
    os.path.join(os.path.dirname(jax.__file__), *parts)
    for parts in (
        ("_src", "pallas", "core.py"),  # of core_map
        ("_src", "pallas", "mosaic", ""),
        ("experimental", "mosaic", ""),
        ("_src", "tpu_custom_call.py"),
    )
)


def is_refusal(error: BaseException) -> bool:
    """Whether JAX's lowering for a TPU raised an error, and not what stands around it."""
    entry = error.__traceback__
    while entry is not None:
        if entry.tb_frame.f_code.co_filename.startswith(_OF_LOWERING):
            return True
        entry = entry.tb_next
    return False


def compile_error(message: str) -> Exception:
    """The exception that JAX raises when the compiler refuses a program with this message."""
    error = jax.errors.JaxRuntimeError(message)
    for handle in compiler._XLA_RUNTIME_ERROR_HANDLERS:
        handled: Exception | None = handle(error)
        if handled is not None:
            handled.__cause__ = error
            return handled
    return error


def serializes() -> str | None:
    """Why JAX can't write modules as bytes here, or None."""
    if importlib.util.find_spec("flatbuffers") is None:
        return "JAX needs the package flatbuffers to hand a kernel to the compiler"
    return None


def exported(kernel: Site, device_kind: str, cores: int) -> Any:
    """The `jax.export.Exported` of one kernel for a TPU.

    The module takes and returns the kernel's operands and results (of one device, if there are
    several).

    Args:
      kernel: the kernel, traced for any platform or interpreter.
      device_kind: JAX's name of the TPU's kind.
      cores: the number of TensorCores in one of its devices.

    Raises: whatever JAX's lowering for a TPU raises for this kernel.
    """
    eqn = kernel.equation
    changed = {"interpret": False} if "interpret" in eqn.params else {}
    params = {**eqn.params, **changed}
    refs = [isinstance(v.aval, AbstractRef) for v in eqn.invars]
    avals = [v.aval.inner_aval if ref else v.aval for v, ref in zip(eqn.invars, refs, strict=True)]

    def call(*args: Any) -> list[Any]:
        if not eqn.outvars and not any(refs):
            # JAX drops what has no result. In a program, run_state keeps it.
            def bind(_: Any) -> None:
                eqn.primitive.bind(*args, **params)

            return [pallas.run_state(bind)(0)]
        held = [jax.new_ref(x) if ref else x for x, ref in zip(args, refs, strict=True)]
        out = eqn.primitive.bind(*held, **params)
        read = [x[...] for x, ref in zip(held, refs, strict=True) if ref]
        return [*out, *read]

    function: Any = call
    sharding = None
    if kernel.axes:
        mesh, everywhere = _mesh(kernel), PartitionSpec()
        function = jax.shard_map(
            call, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False
        )
        sharding = NamedSharding(mesh, everywhere)
    arguments = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for a in avals]
    with tpu_info.pretended(device_kind, cores), config.enable_x64(kernel.x64):
        return export.export(jax.jit(function), platforms=["tpu"])(*arguments)


# Constants of at least so many bytes become arguments of an exported function.
_LARGE = 1 << 20


def exported_whole(function: JittedFunction, device_kind: str, cores: int) -> Any:
    """The `jax.export.Exported` of a function with all its kernels for a TPU, on one device. Large
    constants come after its arguments.

    Args:
      function: a function whose kernels were traced for any platform or interpreter.
      device_kind: JAX's name of the TPU's kind.
      cores: the number of TensorCores in one of its devices.

    Raises: whatever JAX's lowering for a TPU, or export, raises for this function.
    """
    if function.is_sharded:
        raise NotImplementedError("it runs on several devices")
    jaxpr, consts = open_jaxpr(_not_interpreted(function.jaxpr))
    is_large = [getattr(const, "nbytes", 0) >= _LARGE for const in consts]
    large = [const for const, chosen in zip(consts, is_large, strict=True) if chosen]
    count = len(jaxpr.invars)

    def call(*args: Any) -> list[Any]:
        given = iter(args[count:])
        held = [
            next(given) if chosen else const for const, chosen in zip(consts, is_large, strict=True)
        ]
        return core.eval_jaxpr(jaxpr, held, *args[:count])

    arguments = [
        jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (*[v.aval for v in jaxpr.invars], *large)
    ]
    with tpu_info.pretended(device_kind, cores), config.enable_x64(function.x64):
        return export.export(jax.jit(call), platforms=["tpu"])(*arguments)


def _not_interpreted(jaxpr: Any) -> Any:
    """The jaxpr with its kernels left to the TPU's compiler."""
    opened, _ = open_jaxpr(jaxpr)
    equations = []
    for eqn in opened.eqns:
        if eqn.primitive.name in KERNEL_PRIMITIVES:
            if "interpret" in eqn.params:
                eqn = eqn.replace(params={**eqn.params, "interpret": False})
        else:
            eqn = with_jaxprs(eqn, {
                id(held): _not_interpreted(held)
                for held in held_jaxprs(eqn)
                if not KERNEL_PRIMITIVES.isdisjoint(primitives(held))
            })  # fmt: skip
        equations.append(eqn)
    return with_equations(jaxpr, equations)


def _mesh(kernel: Site) -> Any:
    """A mesh with the axes around the kernel. Types in its jaxpr may name the kind of its devices,
    so it is of the devices that are here, if there are enough."""
    names, sizes = zip(*kernel.axes, strict=True)
    here = jax.devices()[: math.prod(sizes)]
    if len(here) < math.prod(sizes):
        return AbstractMesh(sizes, names)
    return Mesh(np.reshape(np.array(here, object), sizes), names)
