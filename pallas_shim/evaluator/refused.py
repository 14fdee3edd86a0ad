"""Primitives that have no rule, and why.

Outside a kernel, XLA runs the function that holds such a primitive, and calls the evaluator for
its kernels. Inside a kernel, the primitive leaves the kernel to JAX.
"""

from __future__ import annotations

from pallas_shim.evaluator.registry import Unsupported

# Families that XLA runs, for functions around a kernel.
_BY_XLA = {
    "it is for the devices of a mesh, and XLA runs it": (
        "xla_pmap full_to_shard shard_to_full ppermute_start ppermute_done "
        "psend precv pgather ragged_all_to_all psum_start psum_done psum_invariant_start "
        "all_gather_start all_gather_done all_gather_reduced_start "
        "all_to_all_start all_to_all_done reduce_scatter_start reduce_scatter_done "
        "pbroadcast_start pbroadcast_done unreduced_psum "
        "unreduced_psum_start unreduced_pmax unreduced_pmin unreduced_reduce_scatter "
        "unreduced_reduce_scatter_start inspect_sharding"
    ),
    "it calls compiled code": "ffi_call call_exported tpu_custom_call",
    "it orders effects of a compiled program": "after_all create_token",
    "its sizes are known when XLA compiles": "dim_as_value dimension_size shape_assertion",
    "its numbers come from a state in XLA that changes with each call": "rng_uniform",
    "only XLA has Jacobi's method": "eigh_jacobi",
}

_NOWHERE = {
    "it needs cuDNN on a GPU": (
        "cudnn_fusion scaled_matmul scaled_matmul_wrapper dot_product_attention_fwd "
        "dot_product_attention_fwd_wrapper dot_product_attention_bwd "
        "dot_product_attention_bwd_wrapper dot_product_attention_fp8_fwd "
        "dot_product_attention_fp8_fwd_wrapper dot_product_attention_fp8_bwd "
        "dot_product_attention_fp8_bwd_wrapper"
    ),
    "it is code for a GPU": "elementwise_inline_asm elementwise_inline_asm_p",
    "the length of the queue of a TPU's matrix unit isn't documented": (
        "matmul_lhs_fifo matmul_pop_fifo"
    ),
    "it belongs to Mosaic GPU": "jaxpr_call",
    "the shim makes emit_pipeline emit its equations instead": "emit_pipeline pipeline_body",
    "JAX's fuser removes it before the kernel is called": ("pack_dtype unpack_dtype"),
    "JAX removes it before it compiles": (
        "new_box box_get box_set new_log log_read log_extend accum_grad_in_ref "
        "call_hi_primitive_linearized custom_jvp_call_jaxpr custom_lin custom_transpose_call "
        "vmap remove_memory_space zeros_like bias_fwd bias_bwd"
    ),
    "it belongs to an extended dtype other than PRNG keys": "to_edtype from_edtype",
    "its result has undefined contents and a linear type": "create_linear",
    "it marks code that must not run": "unreachable",
}


def _by_name(table: dict[str, str]) -> dict[str, str]:
    return {name: reason for reason, names in table.items() for name in names.split()}


BY_XLA = _by_name(_BY_XLA)
NOWHERE = _by_name(_NOWHERE)


def refusal(primitive: str) -> Unsupported:
    """The error for a primitive without a rule."""
    reason = BY_XLA.get(primitive) or NOWHERE.get(primitive) or "the evaluator has no rule for it"
    return Unsupported(primitive, reason)
