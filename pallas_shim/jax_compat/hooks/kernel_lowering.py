"""Changes how kernels are lowered in programs that XLA compiles for a CPU."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import callback as jax_callback
from jax._src import config, core, ffi, source_info_util
from jax._src.interpreters import mlir
from jax._src.pallas import pallas_call as jax_pallas_call
from jax._src.sharding_impls import GSPMDSharding, ShardingContext

from pallas_shim.jax_compat.pallas import kernel_jaxpr

try:
    from jax._src.pallas import mpmd
except ImportError:  # JAX < 0.9.1
    mpmd = None  # type: ignore[assignment]


class KernelLowering(NamedTuple):
    """A kernel in a program that is being compiled for a CPU.

    ``equation`` calls the kernel; ``jaxpr`` is nothing but that equation. ``function``
    names the program; ``obstacle``: why it can't call back here, if it can't. ``axes``
    has the sizes of the axes of the devices that the program is for, as far as they have names.
    """

    equation: Any
    jaxpr: Any
    function: str
    obstacle: str | None
    axes: Mapping[Any, int]


Callback = Callable[..., Sequence[np.ndarray]]


def register_kernel_lowering(
    choose: Callable[[KernelLowering], tuple[Callback, bool] | None],
) -> Callable[[], None]:
    """Runs kernels that are compiled for a CPU as ``choose`` says; returns the undoing.

    ``choose`` returns the function to call back, from NumPy arrays to NumPy arrays, and whether the
    outside world sees its calls. It returns None for JAX's own interpreter.
    """
    stock: dict[Any, Callable[..., Any]] = {
        jax_pallas_call.pallas_call_p: jax_pallas_call._pallas_call_lowering
    }
    if mpmd is not None:
        stock[mpmd.mpmd_map_p] = mpmd._mpmd_map_fallback_lowering

    def register(primitive: Any, stock_rule: Callable[..., Any]) -> None:
        def rule(ctx: Any, *operands: Any, **params: Any) -> Any:
            chosen = choose(_kernel_lowering(ctx, params))
            if chosen is None:
                params["interpret"] = params["interpret"] or _interpreter(primitive, params)
                return stock_rule(ctx, *operands, **params)
            return _call_back(ctx, operands, *chosen)

        mlir.register_lowering(primitive, rule, platform="cpu")

    for primitive, stock_rule in stock.items():
        register(primitive, stock_rule)

    def undo() -> None:
        for primitive in stock:
            del mlir._platform_specific_lowerings["cpu"][primitive]

    return undo


def _interpreter(primitive: Any, params: dict[str, Any]) -> bool:
    """JAX's interpreter for a kernel whose user asked for none.

    Raises:
      NotImplementedError: only the TPU interpreter can run it, and JAX prepares for that when it
        traces the kernel.
    """
    if primitive is not jax_pallas_call.pallas_call_p or params.get("mesh") is not None:
        meshes = (params.get("mesh"), *params.get("meshes", ()))
        if any("mosaic_gpu" in type(mesh).__module__ for mesh in meshes):
            raise NotImplementedError(
                "a kernel for Mosaic GPU that pallas_shim can't run needs a GPU: JAX has no "
                "interpreter for it"
            )
        raise NotImplementedError(
            "a kernel on the cores of a mesh that pallas_shim can't run needs JAX's TPU "
            "interpreter: pass interpret=pltpu.InterpretParams()"
        )
    return True


def _kernel_lowering(ctx: Any, params: dict[str, Any]) -> KernelLowering:
    invars = [core.Var(aval) for aval in ctx.avals_in]
    outvars = [core.Var(aval) for aval in ctx.avals_out]
    source = source_info_util.new_source_info().replace(traceback=ctx.traceback)
    equation = core.new_jaxpr_eqn(
        invars, outvars, ctx.primitive, params, core.no_effects, source
    )
    info = kernel_jaxpr(equation).debug_info._replace(arg_names=None, result_paths=None)
    jaxpr = core.Jaxpr((), invars, outvars, [equation], debug_info=info)
    module = ctx.module_context
    function = module.module.operation.attributes["sym_name"].value
    mesh = getattr(module.axis_context, "mesh", None)
    axes = {} if mesh is None else dict(mesh.shape)
    obstacle = None
    if module.lowering_parameters.for_export or len(module.platforms) > 1:
        obstacle = "an exported program can't call back this process"
    elif mesh is not None and module.axis_context.manual_axes != frozenset(mesh.axis_names):
        obstacle = "XLA can't partition a callback along the axes that shard_map leaves to it"
    return KernelLowering(equation, jaxpr, function, obstacle, axes)


def _call_back(ctx: Any, operands: Any, callback: Callback, seen: bool) -> Any:
    """Emits a call of ``callback`` from XLA's own thread, with NumPy views of XLA's buffers."""
    module = ctx.module_context
    sharding = jax_callback._callback_op_sharding(module.axis_context, None, ctx.avals_out)
    physical = dataclasses.replace(
        ctx,
        avals_in=[core.physical_aval(aval) for aval in ctx.avals_in],
        avals_out=[core.physical_aval(aval) for aval in ctx.avals_out],
    )
    module.add_host_callback(callback)
    # JAX's emit_python_callback would convert the results to the types that are canonical on
    # XLA's thread, where the user's thread-local jax.enable_x64 doesn't reach.
    emit = ffi.build_ffi_lowering_function("xla_ffi_python_cpu_callback", has_side_effect=seen)
    call = emit(physical, *operands, index=np.uint64(len(module.host_callbacks) - 1))
    if sharding is not None:
        _set_sharding(module, call, sharding)
    if len(ctx.tokens_in):
        # InterpretParams gives kernels an ordered effect, for the state of JAX's interpreter.
        ctx.set_tokens_out(ctx.tokens_in)
    return [
        _on_all_devices(physical, value, aval)
        for value, aval in zip(call.results, physical.avals_out, strict=True)
    ]


def _on_all_devices(ctx: Any, value: Any, aval: Any) -> Any:
    """Replicates a result of a call on the first of several devices to all of them.

    Otherwise XLA may leave a result of the whole function on that one device. JAX can't express
    that if a mesh is set.
    """
    axes = ctx.module_context.axis_context
    if not isinstance(axes, ShardingContext) or axes.num_devices == 1:
        return value
    replicated = GSPMDSharding.get_replicated(axes.device_assignment or jax.devices())
    if config.use_shardy_partitioner.value:
        sharding = replicated._to_sdy_sharding(aval.ndim)
    else:
        sharding = replicated._to_xla_hlo_sharding(aval.ndim).to_proto()
    return mlir.wrap_with_sharding_op(ctx, value, aval, sharding)


def _set_sharding(module: Any, call: Any, sharding: Any) -> None:
    set_sharding: Callable[..., None] = mlir.set_sharding
    if len(inspect.signature(set_sharding).parameters) == 3:
        set_sharding(module, call, sharding)
    else:  # before JAX 0.10.1
        set_sharding(call, sharding)
