"""The places in JAX where calls are taken over, in one form for every version."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import callback as jax_callback
from jax._src import config, core, effects, ffi, monitoring, pjit, source_info_util, traceback_util
from jax._src import dispatch as jax_dispatch
from jax._src.interpreters import mlir
from jax._src.pallas import pallas_call as jax_pallas_call
from jax._src.sharding_impls import GSPMDSharding, ShardingContext, UnspecifiedValue

from pallas_shim.jax_compat import meshes
from pallas_shim.jax_compat.checked import refused_grid, replaced_in_interpreter
from pallas_shim.jax_compat.communication import ASKED_FOR_HERE
from pallas_shim.jax_compat.pallas import kernel_jaxpr, kernel_name, kernel_source

try:
    from jax._src.pallas import mpmd
except ImportError:  # JAX < 0.9.1
    mpmd = None  # type: ignore[assignment]

# Primitives whose jaxpr is a Pallas kernel.
KERNEL_PRIMITIVES = frozenset({"pallas_call", "core_map", "mpmd_map"})

# What runs a jitted function on the path that jit's C++ cache doesn't serve, whether the call
# comes from the user or from the evaluation of an outer jaxpr.
JIT_CALL = (pjit, "_pjit_call_impl_python")

# What traces a kernel's function to its jaxpr.
KERNEL_TRACING = (jax_pallas_call, "_trace_kernel_to_jaxpr")

TRACE_EVENT = "/jax/core/compile/jaxpr_trace_duration"


# -- jaxprs that hold kernels -----------------------------------------------------------------


class Kernel(NamedTuple):
    """What names one kernel to the user."""

    name: str
    source: str | None
    grid: str


_kernels: weakref.WeakKeyDictionary[Any, tuple[Any, ...]] = weakref.WeakKeyDictionary()


def kernel_equations(jaxpr: Any) -> tuple[Any, ...]:
    """The equations of a jaxpr, and of those inside it, that call a kernel."""
    found = _kernels.get(jaxpr)
    if found is None:
        found = _kernels[jaxpr] = tuple(_find_kernels(getattr(jaxpr, "jaxpr", jaxpr)))
    return found


def _find_kernels(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in KERNEL_PRIMITIVES:
            yield eqn
        else:
            for inner in core.jaxprs_in_params(eqn.params):
                yield from kernel_equations(inner)


def inner_jaxprs(eqn: Any) -> Iterator[Any]:
    """The jaxprs that an equation holds."""
    return core.jaxprs_in_params(eqn.params)


def describe_kernel(eqn: Any) -> Kernel:
    """The name, definition and grid of the kernel that an equation calls."""
    if eqn.primitive.name != "pallas_call":
        return Kernel(kernel_name(eqn), kernel_source(eqn), "")
    grid = eqn.params["grid_mapping"].grid
    sizes = (str(size) if isinstance(size, int) else "?" for size in grid)
    return Kernel(kernel_name(eqn), kernel_source(eqn), f"({', '.join(sizes)})")


def talks(eqn: Any) -> bool:
    """Whether a kernel reaches other devices or cores."""
    jaxprs = eqn.params["jaxprs"] if "jaxprs" in eqn.params else (eqn.params["jaxpr"],)
    return any(map(meshes.talks, jaxprs))


# -- the interpret parameter ------------------------------------------------------------------

# Fields of InterpretParams that `checked_memory` hands on.
_HONOURED = frozenset(
    {"allow_hbm_allocation_in_run_scoped", "out_of_bounds_reads", "uninitialized_memory"}
)
# Fields that don't change what a correct kernel computes.
_WITHOUT_CONSEQUENCE = frozenset({"dma_execution_mode", "vector_clock_size"})


def unhonoured(eqn: Any) -> str | None:
    """What the user's ``interpret=`` asks for that only JAX's own interpreter does."""
    interpret = eqn.params.get("interpret", False)
    if isinstance(interpret, bool):
        return None
    name = type(interpret).__name__
    if name == ASKED_FOR_HERE:
        return "its devices talk to one another, as in JAX's TPU interpreter"
    if name != "InterpretParams":
        return f"interpret={name}(...) isn't for this evaluator"
    for field in dataclasses.fields(interpret):
        value = getattr(interpret, field.name)
        if field.name not in _HONOURED | _WITHOUT_CONSEQUENCE and value != field.default:
            return f"interpret=InterpretParams({field.name}={value!r}) isn't honoured here"
    replaced = replaced_in_interpreter()
    if replaced is not None:
        return f"somebody has replaced `{replaced}` in the interpreter of InterpretParams"
    refused = refused_grid(eqn) if eqn.primitive.name == "pallas_call" else None
    return None if refused is None else f"InterpretParams refuses it: {refused}"


# -- jit's calls ------------------------------------------------------------------------------


class JitCall(NamedTuple):
    """What a jitted call was compiled for, apart from its jaxpr: a key, and what it forbids.

    ``obstacle``: why the call needs XLA whatever its arguments, or None. ``sharded``: why it
    needs XLA unless it runs on a mesh; ``told_in`` and ``told_out`` are the shardings that the
    user gave, None where there is none, and ``mesh`` the one that it runs under, or None.
    """

    name: str
    donated: tuple[bool, ...]
    keep_unused: bool
    obstacle: str | None
    sharded: str | None = None
    told_in: tuple[Any, ...] = ()
    told_out: tuple[Any, ...] = ()
    mesh: Any = None


def describe_call(params: dict[str, Any]) -> JitCall:
    """Reads the parameters that `JIT_CALL` is given beside the arguments."""
    obstacle = sharded = None
    for key in ("in_shardings", "out_shardings"):
        if not all(isinstance(s, UnspecifiedValue) for s in params[key]):
            sharded = f"the user gave {key}"
    for key in ("in_layouts", "out_layouts"):
        if not all(layout is None for layout in params[key]):
            obstacle = f"the user gave {key}"
    if params["ctx_mesh"] is not None and not params["ctx_mesh"].empty:
        sharded = "it runs under a mesh"
    told_in, told_out = (
        tuple(None if isinstance(s, UnspecifiedValue) else s for s in params[key])
        for key in ("in_shardings", "out_shardings")
    )
    return JitCall(
        params["name"], tuple(params["donated_invars"]), params["keep_unused"], obstacle, sharded,
        told_in, told_out, params["ctx_mesh"],
    )  # fmt: skip


def call_key(params: dict[str, Any]) -> tuple[Any, ...]:
    """What tells calls of one jaxpr apart; cheap to make and to compare."""
    return (
        params["donated_invars"],
        params["in_shardings"],
        params["out_shardings"],
        params["in_layouts"],
        params["out_layouts"],
        params["ctx_mesh"],
        params["keep_unused"],
    )


def in_avals(jaxpr: Any) -> Sequence[Any]:
    return jaxpr.in_avals


def out_avals(jaxpr: Any) -> Sequence[Any]:
    return jaxpr.out_avals


def used_arguments(jaxpr: Any) -> set[int]:
    """The positions of a jaxpr's inputs that its results or effects depend on."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    used = {v for eqn in inner.eqns for v in eqn.invars if not isinstance(v, core.Literal)}
    used.update(v for v in inner.outvars if not isinstance(v, core.Literal))
    return {i for i, v in enumerate(inner.invars) if v in used}


def is_ordered(jaxpr: Any) -> bool:
    """Whether a jaxpr has effects that must wait for those of earlier calls."""
    return bool(effects.ordered_effects.filter_in(jaxpr.effects))


def execution_is_off() -> bool:
    return bool(config.no_execution.value)


def check_nans(name: str, results: Sequence[Any]) -> None:
    """Raises what jit does if jax_debug_nans or jax_debug_infs is set and there are some."""
    jax_dispatch.check_special(name, results)


# -- what JAX compiled already ----------------------------------------------------------------


def forget_calls() -> None:
    """Makes every jitted function ask Python again at its next call.

    If JAX compiled a function that holds a kernel, all that JAX compiled is dropped: that
    program would run the kernel as things were then.
    """
    for key in pjit._pjit_lower.cache_keys():
        jaxpr = key[0]()
        if jaxpr is not None and kernel_equations(jaxpr):
            jax.clear_caches()
            return
    type(pjit._cpp_pjit_cache_fun_only).clear_all()


# -- kernels in programs that XLA compiles ----------------------------------------------------


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
    """Has kernels that are compiled for a CPU run as ``choose`` says; returns the undoing.

    ``choose`` returns the function to call back, with NumPy arrays to NumPy arrays, and
    whether the outside world sees its calls; or None for JAX's own interpreter.
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
    """Which interpreter of JAX's takes a kernel whose user asked for none.

    Raises:
      NotImplementedError: only the TPU interpreter can, and JAX prepares for that when it
        traces the kernel.
    """
    if primitive is not jax_pallas_call.pallas_call_p or params.get("mesh") is not None:
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
    """A result of a call on the first of several devices, replicated to all.

    Else XLA may leave a result of the whole function on that one device, which JAX can't
    express where a mesh is set.
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


# -- what JAX shows of errors -----------------------------------------------------------------


@functools.cache
def hide_frames(directory: str) -> None:
    """Has JAX treat code in a directory as its own: not in the tracebacks that it shows, nor as
    the place of an operation. Not undone: JAX forgets none, and nothing else is there."""
    for util in (traceback_util, source_info_util):
        util.register_exclusion(os.path.join(directory, ""))


# -- how long JAX traced ----------------------------------------------------------------------


def listen_to_tracing(listener: Callable[[str, float], None]) -> Callable[[], None]:
    """Calls ``listener(function, seconds)`` after each tracing by jit; returns the undoing."""

    def on_event(event: str, duration_secs: float, **details: Any) -> None:
        if event == TRACE_EVENT:
            listener(str(details.get("fun_name")), duration_secs)

    jax.monitoring.register_event_duration_secs_listener(on_event)
    old = "_unregister_event_duration_listener_by_callback"  # before JAX 0.8.1
    names = ("unregister_event_duration_listener", old)
    unregister = next(getattr(monitoring, name) for name in names if hasattr(monitoring, name))
    return lambda: unregister(on_event)
