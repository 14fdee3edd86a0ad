"""Why a test fails under the shim, where its own message doesn't say it.

The first row counts one of whose patterns (of `fnmatch`) fits FILE::CLASS::TEST, and whose failure
(a regular expression) is found in the message, in all modes.
"""

from __future__ import annotations

import fnmatch
import re
from typing import NamedTuple


class Reason(NamedTuple):
    text: str
    failure: str
    tests: str


# These pass with the TPU's compiler (--compile).
_REFUSED = "expects that JAX refuses the kernel when it compiles it for a TPU; here it runs"
_OVERFLOWS = "expects that a TPU's memory overflows; here the kernel runs"

_FAR = r"Not equal to tolerance rtol=(1e-0|0\.005)|Arrays are not equal"

REASONS = (
    Reason(
        "counts what XLA compiles, loads or is handed; what runs in NumPy needs none of it",
        r"AssertionError: (0 != [12]$|1 != [02]|[2-9] != [13]$|no logs of level|"
        r"1 not greater than|\{'device_put|\[\] has length of 0)",
        """
            api_test::JitTest::test_jit_cache_clear
            api_test::JitTest::test_jit_lower_no_pruning
            api_test::JitTest::test_jit_with_pruned_args*
            api_test::APITest::test_grad_of_jit_compilation_caching*
            api_test::APITest::test_internal_device_put_with_device
            api_test::APITest::test_jit_compilation_time_logging
            api_test::APITest::test_nested_jit_hoisting
            api_test::APITest::test_vmap_caching
            random_test::KeyArrayTest::test_cpp_dispatch_split
            api_test::Remat*Test::test_fwd_caching*
            api_test::Remat*Test::test_linearize_caching
        """,
    ),
    Reason(
        "numeric: compares a derivative with a finite difference of float32, which is as far off "
        "as the function's last bits; XLA's are others",
        r"Not equal to tolerance rtol=0\.001",
        "api_test::APITest::test_jit_forwarding_correctness*",
    ),
    Reason(
        "numeric: betainc is made of many rounded steps, and is as far off as XLA's; see limits.md",
        r"Not equal to tolerance rtol=1e-06",
        "lax_test::LaxTest::testOp34[4-7]",
    ),
    Reason(
        _REFUSED,
        r"AssertionError: \w+ not raised|DMAs with bool dtypes are not supported|does not match",
        """
            ops_test::OpsTest::test_f16_true_divide_unsupported
            pallas_test::PallasCallTest::test_block_spec_valid_block_shapes*
            pallas_test::PallasCallBoundedSliceIndexingTest::test_block_spec_bounded_slice_static
            pallas_test::PallasControlFlowTest::test_scan_with_extensive_*
            tpu_ops_test::OpsTest::test_unsigned_dtype_dot_raises*
            tpu_pallas_state_test::CoreMapTest::test_empty_core_map_raises_error
            tpu_pallas_test::PallasCallDMATest::test_cannot_squeeze_lane_sublane
            tpu_pallas_test::MiscellaneousTest::test_roll_partial_with_dynamic_shift*
            tpu_pallas_test::MiscellaneousTest::test_lane_dynamic_slice
            tpu_pallas_test::PallasCallPoisonTest::test_scalar_integer_addition*
            tpu_pallas_test::PallasCallPoisonTest::test_vector_integer_addition*
            tpu_pallas_test::PallasCallPoisonTest::test_set_internal_scratch_size
            tpu_pallas_test::PallasScalarIOpsTest::test_*_op_canonicalization*
            tpu_pallas_test::PallasCallTPUBooleanTest::test_bool_dma_not_implemented
            tpu_sparsecore_pallas_test::*::test_2d_vmem_column_write
            tpu_sparsecore_pallas_test::*::test_cumsum_2d_not_supported*
            tpu_sparsecore_pallas_test::*::test_invalid_gather_*
            tpu_sparsecore_pallas_test::*::test_scalar_load_*
            tpu_sparsecore_pallas_test::*::test_scalar_store_*
            tpu_side_effects_test::SideEffectsTest::test_invalid_side_effect_type
        """,
    ),
    Reason(
        "expects that JAX refuses a kernel without an interpreter on a CPU; here it runs",
        r"ValueError not raised|multiple of 32",
        "tpu_sparsecore_pallas_test::*::test_*sparsecore_availability_check",
    ),
    Reason(
        "needs a newer libtpu than JAX pins, and says so where it can ask for it",
        r"failed to legalize operation 'arith.cmpi'",
        "tpu_ops_test::OpsTest::test_scalar_comparison*",
    ),
    Reason(
        "its reference is a product that XLA doesn't have on a CPU",
        r"Unsupported element type for DotThunk",
        "tpu_fusible_matmul_test::FusibleMatmulTest::test_matmul_out_transpose*",
    ),
    Reason(
        "expects JAX's error for a place that isn't said; here another error names it",
        r"pass interpret=pltpu.InterpretParams",
        "tpu_pallas_mpmd_test::MpmdTest::test_parallel_subkernels_semaphores_missing_subcore_axis",
    ),
    Reason(
        _OVERFLOWS,
        r"AssertionError: JaxRuntimeError not raised",
        """
            tpu_pallas_test::PallasCallTest::test_vmem_limit
            tpu_pallas_test::PallasCallPoisonTest::test_automatic_single_buffering
            tpu_pallas_test::PallasCallPoisonTest::test_vmem_oom_error_message_*
        """,
    ),
    Reason(
        "reads the program that JAX lowers or XLA compiles for a TPU; its values are right",
        r"has length of 0|has no attribute 'group'|not found in '|Regex didn't match|where None|"
        r"AssertionError: -?[\d.]+ != -?[\d.]+|is not used in output_operand_alias",
        """
            pallas_test::PallasCallInputOutputAliasingTest::test_vector_input_output_aliasing
            tpu_pallas_memory_space_test::*::test_*memory_space_constraint*
            tpu_side_effects_test::SideEffectsTest::test_side_effecting_dce
            tpu_pallas_state_test::CoreMapTest::test_kernel_with_output_memory_space_*
            tpu_pallas_state_test::PinnedBufferTest::test_basic
            tpu_pallas_distributed_test::PallasKernelMetadataDistributedTest::test_mesh_axes_*
            tpu_pallas_test::TPUPipelineModeTest::test_two_input_vadd*
            tpu_pallas_test::PallasKernelMetadataTest::test_metadata_is_preserved*
            tpu_pallas_test::PallasCallTest::test_cost_analysis*
            tpu_pallas_test::PallasCallTest::test_fori_loop_unroll_partial_*
            tpu_pallas_test::PallasCallPoisonTest::test_allow_input_fusion
            tpu_pallas_test::PallasCallTraceTest::test_*
        """,
    ),
    Reason(
        "its reference, which XLA computes on a CPU, keeps in float32 what is bfloat16 in the "
        "kernel and on a TPU",
        r"Mismatched elements: \d+ / \d+ \((6|99)",
        """
            tpu_fusible_matmul_test::FusibleMatmulTest::test_dot_*dot_fusion*
            tpu_fusible_matmul_test::FusibleMatmulTest::test_matmul_lhs_transpose_add*
        """,
    ),
    Reason(
        "wants sums equal to a few units in the last place, as when a TPU computes both sides; "
        "here they are rounded in another order",
        _FAR,
        """
            ops_test::OpsTest::test_dot*
            ops_test::OpsTest::test_jnp_einsum_grad_y_pallas
            tpu_ops_test::OpsTest::test_fuse_transposed_lhs_in_matmul
            tpu_fusible_matmul_test::*
            tpu_pallas_pipeline_test::PallasCall*::test_*matmul*
            tpu_pallas_pipeline_test::PaddedPipelineEmitterTest::test_padded_matmul_float32
            tpu_pallas_state_test::PallasCallStatefulTest::test_stateful_matmul
            tpu_pallas_test::PallasMegacoreTest::test_megacore_splitting
        """,
    ),
    Reason(
        "wants sums equal to a few units in the last place; hypothesis looks for the smallest "
        "product that differs for longer than the limit",
        r"its process crashed, or was ended after",
        "tpu_pallas_pipeline_test::PaddedPipelineEmitter*Test::test_padded_matmul_float32",
    ),
    Reason(
        "compares a matrix product with XLA's within 1e-7, less than the rounding of a sum; XLA's "
        "order depends on its version and the shape, that of BLAS on its threads. With "
        "PALLAS_NUMPY_SCOPE=all both sides are computed here, and it passes",
        _FAR,
        """
            ops_test::OpsInterpretTest::test_dot*
            ops_test::OpsInterpretTest::test_jnp_einsum_grad_y_pallas
        """,
    ),
    Reason(
        "wants results of XLA's functions bit by bit; here they are within 4 units",
        rf"{_FAR}|distinct failures",
        """
            ops_test::OpsTest::test_unary_primitives_exp*
            ops_test::OpsTest::test_unary_primitives_log*
            ops_test::OpsTest::test_unary_primitives_rsqrt
            ops_test::OpsTest::test_unary_primitives_sin
            ops_test::OpsTest::test_unary_primitives_tanh
            tpu_pallas_random_test::ThreefryTest::test_pallas_matches_jax_threefry*
            tpu_pallas_test::PallasCallPoisonTest::test_custom_vjp
            tpu_sparsecore_pallas_test::*::test_unary_ops_exp
        """,
    ),
    Reason(
        "wants the error that XLA makes of a callback's; here it is the kernel's own IndexError",
        r"Out-of-bounds read",
        """
            tpu_pallas_interpret_test::InterpretTest::test_core_map_exception_no_hang
            tpu_pallas_interpret_distributed_test::InterpretDistributedTest::test_that_*exception*
        """,
    ),
    Reason(
        "reads memory that nobody wrote: a bool there is False, as in JAX's interpreter",
        r"Array\(False",
        "tpu_pallas_test::PallasCallPoisonTest::test_poison_buffers",
    ),
    Reason(
        "hypothesis draws mostly sizes that the test itself refuses",
        r"FailedHealthCheck",
        "tpu_pallas_pipeline_test::PaddedPipelineEmitter*Test::test_padded_matmul_*",
    ),
    Reason(
        "the kernel rounds keys and values to bfloat16, the reference doesn't on a CPU: JAX's TPU "
        "interpreter gives the same",
        r"Not equal to tolerance rtol=0.02",
        "tpu_paged_attention_kernel_test::PagedAttentionKernelTest::test_paged_attention*",
    ),
)


class Fault(NamedTuple):
    """What a finding of a check is, in a kernel that JAX's tests take for right. ``what``: a
    pattern for kind/rule."""

    text: str
    what: str
    tests: str


FAULTS = (
    Fault(
        "the kernel leaves a part of its result, or all of it, unwritten; the test doesn't look at "
        "that part",
        "uninitialized/never-written",
        """
            indexing_test::*::test_multi_indexing_interpreter_only
            indexing_test::*::test_store*_with_dynamic_2nd_minor_index
            indexing_test::*::test_strided_load_and_store*
            ops_test::*::test_scalar_compare*
            pallas_test::PallasControlFlowTest::test_nested_while_loop
            pallas_test::PallasControlFlowTest::test_while_loop_carry_memref_*
            pallas_test::PallasTPUTest::test_out_shape_is_*
            tpu_pallas_async_test::PallasCallAsyncCopyTest::test_device_id_as_axis_dict0
            tpu_pallas_mpmd_test::*::test_mpmd_map_semaphore_mesh_enforcement
            tpu_pallas_mpmd_test::*::test_parallel_subkernels_semaphores*
            tpu_sparsecore_pallas_test::*::test_gather_1d_to_transformed_dst*
            tpu_sparsecore_pallas_test::*::test_load_transformed_ref
            tpu_sparsecore_pallas_test::*::test_scalar_load_emulated*
            tpu_sparsecore_pallas_test::*::test_scalar_store_vmem
            tpu_sparsecore_pallas_test::*::test_store_compressed*
            tpu_sparsecore_pallas_test::*::test_write_to_transformed_ref
            tpu_pallas_pipeline_test::*::test_squeezed_block_spec_has_correct_shape
            tpu_pallas_pipeline_test::*::test_trivial_window_representation_strips_*
            tpu_pallas_test::PallasCallScalarPrefetchTest::test_scalar_prefetch_calling_convention*
            tpu_pallas_test::PallasCallDMATest::test_can_*semaphore*
            tpu_pallas_test::PallasCallDMATest::test_select_ref_nested
            tpu_pallas_test::PallasCallDMATest::test_unused_dma_descriptor_error
            tpu_pallas_test::PallasCallDMATest::test_can_have_unspecified_memory_spaces
            tpu_pallas_test::PallasCallPoisonTest::test_*_operation*
            tpu_pallas_test::PallasScalarIOpsTest::test_*_op_canonicalization*
        """,
    ),
    Fault(
        "each device sets its output to zero, and nothing orders that with the copy into it that "
        "its neighbour may already have started; the test's own comment says so",
        "races/*",
        """
            tpu_pallas_distributed_test::*::test_interpret_remote_dma_ppermute*
            tpu_pallas_distributed_test::*::test_interpret_remote_dma_asymmetrical_indexer
        """,
    ),
    Fault(
        "a device waits for what its left neighbour sends, and never for its right one to have "
        "used what it got: two steps later it may copy into the same slot too early",
        "races/*",
        "tpu_sparsecore_pallas_distributed_test::DistributedMpmdTest::test_mpmd_reduce_scatter",
    ),
    Fault(
        "the kernel reads a ref at -1 and means its end, as only the interpreter does; the test's "
        "own comment says that it is for the interpreter",
        "bounds/outside-ref",
        "indexing_test::*::test_multi_indexing_interpreter_only",
    ),
    Fault(
        "three outputs serve as scratch memory, and all cells along the parallel axis of the heads "
        "write the same block of each; outside jit, nothing tells that nobody uses them",
        "races/block-of-two",
        "tpu_splash_attention_kernel*_test::*::test_splash_attention*",
    ),
    Fault(
        "the test reads 16 x 256 elements of 8 x 128, to see that the compiler's checks of bounds "
        "can be turned off",
        "bounds/outside-ref",
        "tpu_ops_test::OpsTest::test_disable_bounds_check",
    ),
    Fault(
        "each of 16 subcores copies a row of its number, of an array that has 8",
        "bounds/outside-ref",
        "tpu_pallas_mpmd_test::MpmdTest::test_copy_with_cross_core_signaling",
    ),
    Fault(
        "each of 16 subcores copies a row of its number, of a device's shard that has 2 rows, "
        "since there are 8 devices",
        "bounds/outside-ref",
        "tpu_sparsecore_pallas_test::*::test_pl_kernel_in_shmap_explicit_mesh",
    ),
)


def fault(test: str, what: str) -> str | None:
    """Why that finding in FILE::CLASS::TEST is a true one, if a row says it."""
    for row in FAULTS:
        named = any(fnmatch.fnmatchcase(test, pattern) for pattern in row.tests.split())
        if named and fnmatch.fnmatchcase(what, row.what):
            return row.text
    return None


def explained(test: str, message: str) -> str | None:
    """Why FILE::CLASS::TEST failed with that message, if a row says it."""
    for row in REASONS:
        if _names(row, test) and re.search(row.failure, message):
            return row.text
    return None


def expects_refusal(test: str) -> bool:
    """Whether FILE::CLASS::TEST is one of those that expect a kernel to be refused."""
    return any(row.text in (_REFUSED, _OVERFLOWS) and _names(row, test) for row in REASONS)


def _names(row: Reason, test: str) -> bool:
    return any(fnmatch.fnmatchcase(test, pattern) for pattern in row.tests.split())
