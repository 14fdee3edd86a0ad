"""Checks the installed JAX: its version, and that it has every private name that the shim uses.

Importing this module raises IncompatibleJax if either is wrong.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any

from pallas_shim.jax_compat.versions import OLDEST, TOO_NEW

# Every private name that jax_compat uses, by module or class. "a|b": the name differs between
# versions, and one of the two must exist. "a>=0.10": JAX has the name from 0.10 on, and the shim
# needs it only there.
PRIVATE_NAMES: dict[str, tuple[str, ...]] = {
    "jax._src.api": ("Inline>=0.11",),
    "jax._src.api_util": ("InternalFloatingPointError", "_non_static_arg_names", "debug_info"),
    "jax._src.array": ("ArrayImpl",),
    "jax._src.callback": ("_IOEffect", "_OrderedIOEffect", "_callback_op_sharding"),
    "jax._src.config": (
        "debug_infs",
        "debug_key_reuse",
        "debug_nans",
        "enable_x64",
        "jax_platforms",
        "no_execution",
        "no_tracing",
        "trace_context",
        "transfer_guard_host_to_device",
        "use_shardy_partitioner",
    ),
    "jax._src.compiler": ("_XLA_RUNTIME_ERROR_HANDLERS",),
    "jax._src.core": (
        "AbstractValue",
        "AxisEnv",
        "Jaxpr",
        "Literal",
        "Primitive",
        "ShapedArray",
        "Tracer",
        "Var",
        "aval_method",
        "eval_jaxpr",
        "get_axis_env",
        "new_jaxpr_eqn",
        "no_effects",
        "physical_aval",
        "shaped_abstractify",
        "trace_ctx",
        "trace_state_clean",
    ),
    "jax._src.debugging": ("_format_print_callback", "_make_flat_callback"),
    "jax._src.dispatch": ("check_special",),
    "jax._src.dtypes": (
        "canonicalize_dtype",
        "canonicalize_value",
        "dtype",
        "extended",
        "float0",
        "issubdtype",
        "prng_key",
    ),
    "jax._src.effects": ("ordered_effects",),
    "jax._src.ffi": ("build_ffi_lowering_function",),
    "jax._src.interpreters.mlir": (
        "_platform_specific_lowerings",
        "lower_jaxpr_to_module",
        "register_lowering",
        "set_sharding",
        "wrap_with_sharding_op",
    ),
    "jax._src.interpreters.partial_eval": (
        "DynamicJaxprTrace",
        "DynamicJaxprTracer",
        "_cached_abstract_eval",
        "const_fold_rules",
        "custom_staging_rules",
        "dce_jaxpr",
        "dce_rules",
        "forwarding_rules",
        "lower_jaxpr2>=0.12",
    ),
    "jax._src.interpreters.partial_eval.DynamicJaxprTrace": ("make_eqn", "new_const"),
    "jax._src.interpreters.partial_eval.DynamicJaxprTracer": ("get_const",),
    "jax._src.interpreters.partial_eval.JaxprStackFrame": ("add_eqn",),
    "jax._src.interpreters.pxla": (
        "ExecuteReplicated",
        "MeshExecutable",
        "get_default_device",
        "lower_sharding_computation",
    ),
    "jax._src.lax.lax": ("_ragged_dot_general_impl", "get_algorithm_compute_types"),
    "jax._src.lax.linalg": (
        "_cholesky_update_jax_fn",
        "_generic_lu_pivots_to_permutation",
        "_ormqr_lowering>=0.10",
        "_qr_lowering",
        "_symmetric_product_jax_fn",
    ),
    "jax._src.lax.scaled_dot": ("_scaled_dot_impl>=0.9.1",),
    "jax._src.lax.special": (
        "_up_and_broadcast",
        "igamma_grad_a_impl",
        "igamma_impl",
        "igammac_impl",
        "regularized_incomplete_beta_impl",
    ),
    "jax._src.lib._jax": ("collect_garbage",),
    "jax._src.lib.jax_jit": ("parse_arguments",),
    "jax._src.lib.xla_client": ("batched_device_put",),
    "jax._src.hardware_utils": ("num_available_tpu_chips_and_device_id",),
    "jax._src.literals": ("TypedInt", "TypedNdArray"),
    "jax._src.literals.TypedNdArray": ("tobytes>=0.9",),
    "jax._src.mesh": (
        "AbstractMesh",
        "Mesh",
        "empty_abstract_mesh",
        "empty_concrete_mesh",
        "get_abstract_mesh",
        "get_concrete_mesh",
    ),
    "jax._src.monitoring": (
        "unregister_event_duration_listener|_unregister_event_duration_listener_by_callback",
    ),
    "jax._src.pallas.core": ("_IndexMapFunc", "dynamic_grid_dim", "semaphore_dtype"),
    "jax._src.pallas.einshape": ("_einshape>=0.9.1",),
    "jax._src.pallas.hlo_interpreter": ("kernel_to_hlo_jaxpr", "pallas_call_hlo_interpret"),
    "jax._src.pallas.mpmd": ("_mpmd_map_fallback_lowering>=0.9.1", "mpmd_map_p>=0.9.1"),
    "jax._src.pallas.mosaic.tpu_info": ("infer_tiling>=0.9.1",),
    "jax._src.pallas.pallas_call": (
        "_pallas_call_lowering",
        "_trace_kernel_to_jaxpr",
        "pallas_call_p",
    ),
    "jax._src.pjit": (
        "PjitInfo",
        "PjitParams",
        "_cpp_pjit",
        "_cpp_pjit_cache_explicit_attributes",
        "_cpp_pjit_cache_fun_only",
        "_infer_params|_trace_for_jit",
        "_infer_params_cached|_trace_for_jit",
        "_pjit_call_impl_python",
        "_pjit_lower",
        "_run_python_pjit|_python_pjit_helper",
        "_trace_for_jit|_python_pjit_helper",
        "jit_p",
    ),
    "jax._src.random.core|jax._src.random": ("_gamma_impl",),
    "jax._src.random.philox2x32": ("_philox2x32_lowering>=0.10.2",),
    "jax._src.random.philox4x32": ("_philox4x32_lowering>=0.10.2",),
    "jax._src.random.prng": (
        "PRNGKeyArray",
        "random_bits_impl_base",
        "random_fold_in_impl_base",
        "random_seed_impl_base",
        "random_split_impl_base",
        "random_unwrap",
        "random_wrap",
    ),
    "jax._src.random.threefry4x32": ("_threefry4x32_lowering>=0.10.2",),
    "jax._src.sharding_impls": ("GSPMDSharding", "ShardingContext", "UnspecifiedValue"),
    "jax._src.sharding_impls.GSPMDSharding": ("get_replicated",),
    "jax._src.source_info_util": (
        "current",
        "is_user_filename",
        "new_source_info",
        "register_exclusion",
        "user_frame",
        "user_frames",
    ),
    "jax._src.state.discharge": ("_discharge_rules",),
    "jax._src.state.indexing": ("NDIndexer", "Slice"),
    "jax._src.state.types": ("AbstractRef", "AccumEffect", "TransformedRef", "WriteEffect"),
    "jax._src.traceback_util": ("register_exclusion",),
    "jax._src.tree_util": (
        "_registry",
        "tracing_registry|default_registry",
        "tree_map",
        "tree_unflatten",
    ),
    "jax._src.util": ("cache",),
    "jax._src.xla_bridge": ("_backend_factories", "_backends"),
}

# These modules import JAX's lowering for a TPU, which takes a tenth of a second. So scripts for
# other devices don't import them, and their names are checked when jax.experimental.pallas.tpu is
# imported, which imports them itself.
OF_A_TPU = frozenset({"jax._src.pallas.einshape", "jax._src.pallas.mosaic.tpu_info"})


class IncompatibleJax(ImportError):
    """This JAX is too old, too new, or lacks a private name; the message says which."""


def check() -> None:
    """Raises IncompatibleJax if the shim can't work with the installed JAX."""
    import jax

    if not supports(jax.__version__):
        raise IncompatibleJax(
            f"JAX {jax.__version__} isn't supported: install {OLDEST} or newer, "
            f"but older than {TOO_NEW}"
        )
    _check_names(PRIVATE_NAMES.keys() - OF_A_TPU)


def check_for_a_tpu() -> None:
    """Raises IncompatibleJax if JAX lacks a name that only kernels for a TPU need."""
    _check_names(OF_A_TPU)


def _check_names(places: Collection[str]) -> None:
    import jax

    missing = [
        f"{place}.{name}"
        for place, names in PRIVATE_NAMES.items()
        if place in places
        for name, _, since in (entry.partition(">=") for entry in names)
        if _numbers(since) <= _numbers(jax.__version__)
        and not any(_exists(p, n) for p in place.split("|") for n in name.split("|"))
    ]
    if missing:
        raise IncompatibleJax(
            f"JAX {jax.__version__} lacks {', '.join(missing)}, which pallas_shim uses; "
            "install another version of one of the two"
        )


def supports(version: str) -> bool:
    """Whether a version of JAX lies between the bounds in versions.py."""
    return _numbers(OLDEST) <= _numbers(version) < _numbers(TOO_NEW)


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split(".")
    end = next((i for i, part in enumerate(parts) if not part.isdigit()), len(parts))
    return tuple(map(int, parts[:end]))


def _exists(place: str, name: str) -> bool:
    found: Any
    try:
        found = importlib.import_module(place)
    except ImportError:
        parent, _, last = place.rpartition(".")
        try:
            found = getattr(importlib.import_module(parent), last, None)
        except ImportError:
            return False
    return hasattr(found, name)


check()
