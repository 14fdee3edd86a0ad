"""The kernels that are broken: right ones, from this repository's suites and from JAX."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu
from jax.experimental.pallas.ops.gpu import attention as gpu_attention
from jax.experimental.pallas.ops.gpu import decode_attention, layer_norm, rms_norm, softmax
from jax.experimental.pallas.ops.tpu import example_kernel, flash_attention, matmul, megablox
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from tests.kernels import blocks, control, memory, numeric, refs, transforms
from tests.kernels.harness import abstract_tpu, floats, integers, struct
from tests.machine import cases as machine
from tests.mutation import operators

# Of each operator, at most so many mutants of a kernel.
PER_OPERATOR = 2

Made = tuple[Callable[..., Any], tuple[Any, ...]]
Build = Callable[[], Made]

# The suite's kernels that JAX's TPU interpreter runs, and whose results are wholly defined.
SUITE = {
    blocks: (
        "transposing_index_maps", "edge_blocks_stick_out", "edge_block_masked_row_sums",
        "squeezed_dimensions", "element_blocks_overlap", "scalar_prefetch_gather",
        "scalar_prefetch_block_sparse_matmul", "dynamic_grid",
        "input_output_aliases_partial_update", "scratch_persists_over_the_grid",
        "three_dimensional_grid_order", "scalar_in_smem_and_pytrees",
    ),
    control: (
        "fori_loop_over_rows", "fori_loop_with_dynamic_bounds", "while_loop_collatz_per_cell",
        "cond_and_switch", "nested_when_and_loops", "scan_in_a_kernel",
    ),
    memory: (
        "copy_whole_array", "double_buffered_copies", "compare_exchange_over_hbm",
        "row_gather_by_copies", "scoped_allocations", "scoped_copy_in_each_cell",
        "accumulate_in_hbm_output",
    ),
    numeric: (
        "matmul_float32", "softmax", "layer_norm", "attention_bfloat16_causal",
        "cumulative_sum_with_carry", "histogram_by_one_hot",
    ),
    refs: (
        "dynamic_slices", "strided_slices", "scalar_loads_and_stores", "list_of_refs_in_a_loop",
        "an_alias_in_hbm_is_one_memory", "an_alias_in_blocks_of_one_cell_each",
    ),
    transforms: ("vmap_of_kernel", "vmap_of_kernel_with_scratch"),
}  # fmt: skip

# Its kernels that talk. Each runs its function by jax.jit.
DEVICES = (
    "ring_all_gather[2]", "ring_all_gather[4]", "ring_all_gather_in[vmem]", "permute_by[logical]",
    "permute_by[dict]", "permute_in_two_dimensions[one axis]", "ring_reduce_scatter[3]",
    "slices_on_both_sides", "memory_of_run_scoped", "a_grid_that_talks",
    "devices_that_do_different_things", "cores_that_pass_something_on[2]",
)  # fmt: skip


class _Caught(Exception):
    pass


def _caught(run: Callable[[], None]) -> Made:
    """The function that ``run`` hands to jax.jit, and the operands of its first call."""

    def jit(function: Any, *_: Any, **__: Any) -> Any:
        def call(*args: Any) -> None:
            raise _Caught(function, args)

        return call

    real, jax.jit = jax.jit, jit  # type: ignore[assignment]
    try:
        run()
    except _Caught as caught:
        function, args = caught.args
        return function, args
    finally:
        jax.jit = real
    raise AssertionError("it didn't call jax.jit")


def _ops() -> Iterator[tuple[str, Build]]:
    """Kernels that JAX ships, at the smallest shapes that have several blocks."""
    sizes = flash_attention.BlockSizes(
        **dict.fromkeys(("block_q", "block_k_major", "block_k"), 128), block_b=1
    )
    attend = functools.partial(
        flash_attention.flash_attention, block_sizes=sizes, causal=True, sm_scale=0.125
    )
    yield "flash_attention", lambda: (attend, tuple(floats(i, 1, 1, 256, 64) for i in range(3)))

    def splashed() -> Made:
        mask = masks.MultiHeadMask([masks.CausalMask((256, 256))])
        of = splash.BlockSizes(**dict.fromkeys(("block_q", "block_kv", "block_kv_compute"), 128))
        f = splash.make_splash_mha_single_device(mask, block_sizes=of)
        return lambda q, k, v: f(q, k, v), tuple(floats(i, 1, 256, 64) for i in range(3))

    yield "splash_attention", splashed
    product = functools.partial(matmul.matmul, block_shape=(128, 128), block_k=128)
    yield "matmul", lambda: (product, (floats(0, 256, 256), floats(1, 256, 256)))
    groups = np.array([0, 70, 128, 58], np.int32)
    gmm = functools.partial(megablox.gmm, tiling=(128, 128, 128))
    yield "gmm", lambda: (lambda x, y, n: gmm(x, y, n, jnp.float32),
                          (floats(0, 256, 128), floats(1, 4, 128, 128), groups))  # fmt: skip
    yield "double", lambda: (example_kernel.double, (floats(0, 8, 128),))

    def paged() -> Made:
        pages = [floats(i, 1, 8, 16, 128) for i in range(2)]
        table = np.random.default_rng(0).permutation(8).reshape(2, 4).astype(np.int32)
        f = functools.partial(paged_attention, pages_per_compute_block=2)
        return lambda *a: f(*a), (floats(5, 2, 8, 128), *pages, np.array([64, 17], np.int32), table)

    yield "paged_attention", paged

    yield "gpu.attention", lambda: (
        lambda q, k, v: gpu_attention.mha(q, k, v, None, sm_scale=0.25, causal=True),
        tuple(floats(i, 1, 256, 1, 32) for i in range(3)),
    )
    yield "gpu.decode_attention", lambda: (
        lambda *a: decode_attention.mqa(*a, sm_scale=0.2, k_splits=4, return_residuals=True)[0],
        (floats(0, 1, 32, 32), floats(1, 1, 256, 32), floats(2, 1, 256, 32)),
    )
    norms = (floats(0, 2, 2, 384), floats(1, 384), floats(2, 384))
    yield "gpu.layer_norm", lambda: (lambda *a: layer_norm.layer_norm(*a), norms)
    yield "gpu.rms_norm", lambda: (lambda *a: rms_norm.rms_norm(*a), norms)
    yield "gpu.softmax", lambda: (softmax.softmax, (floats(0, 6, 200),))


def _triton() -> Iterator[tuple[str, Build]]:
    """What people write for Triton: masks at the ends of arrays."""

    def add(x, y, out):
        at = pl.ds(pl.program_id(0) * 16, 16)
        kept = pl.program_id(0) * 16 + jnp.arange(16) < x.shape[0]
        a, b = (plgpu.load(ref.at[at], mask=kept, other=0.0) for ref in (x, y))
        plgpu.store(out.at[at], a + b, mask=kept)

    def stencil(x, out):
        start, n = pl.program_id(0) * 16, x.shape[0]
        where = start + jnp.arange(16)
        kept = [
            plgpu.load(x.at[pl.ds(start + d, 16)], mask=(where + d < n), other=0.0)
            for d in (0, 1, 2)
        ]
        plgpu.store(out.at[pl.ds(start, 16)], sum(kept), mask=where < n)

    def call(kernel: Any, n: int) -> Any:
        return pl.pallas_call(
            kernel, out_shape=struct(n), grid=(pl.cdiv(n, 16),),
            compiler_params=plgpu.CompilerParams(),
        )  # fmt: skip

    yield "add", lambda: (call(add, 40), (floats(0, 40), floats(1, 40)))
    yield "stencil", lambda: (call(stencil, 40), (floats(0, 40),))


def _tpu() -> Iterator[tuple[str, Build]]:
    """What people write for TPUs, and the suites above don't have."""

    def two_slots(x, out, buffer, sem):
        """Fetches the next cell's rows while this one's are used."""
        i, n = pl.program_id(0), pl.num_programs(0)

        def fetch(i, slot):
            rows = x.at[pl.ds(i * 8, 8)]
            return pltpu.make_async_copy(rows, buffer.at[slot], sem.at[slot])

        @pl.when(i == 0)
        def _():
            fetch(0, 0).start()

        @pl.when(i + 1 < n)
        def _():
            fetch(i + 1, (i + 1) % 2).start()

        fetch(i, i % 2).wait()
        out[...] = buffer[i % 2] * 2

    def prefetched() -> Made:
        call = pl.pallas_call(
            two_slots, out_shape=struct(32, 128), grid=(4,),
            in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
            out_specs=pl.BlockSpec((8, 128), lambda i: (i, 0)),
            scratch_shapes=[pltpu.VMEM((2, 8, 128), jnp.float32), pltpu.SemaphoreType.DMA((2,))],
        )  # fmt: skip
        return call, (floats(0, 32, 128),)

    yield "rows_fetched_ahead", prefetched

    def column_sums(x, out, total):
        @pl.when(pl.program_id(1) == 0)
        def _():
            total[...] = jnp.zeros_like(total)

        total[...] += jnp.sum(x[...], 0, keepdims=True)

        @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
        def _():
            out[...] = total[...]

    def sums() -> Made:
        call = pl.pallas_call(
            column_sums, out_shape=struct(1, 512, dtype=np.int32), grid=(4, 3),
            in_specs=[pl.BlockSpec((8, 128), lambda j, i: (i, j))],
            out_specs=pl.BlockSpec((1, 128), lambda j, i: (0, j)),
            scratch_shapes=[pltpu.VMEM((1, 128), jnp.int32)],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        )  # fmt: skip
        return call, (integers(0, 24, 512),)

    yield "column_sums", sums

    def pipelined() -> Made:
        def kernel(x, out):
            def body(x, out):
                out[...] = x[...] * 2

            block = pl.BlockSpec((8, 128), lambda i: (i, 0))
            pltpu.emit_pipeline(body, grid=(4,), in_specs=[block], out_specs=[block])(x, out)

        spec = pl.BlockSpec(memory_space=pl.ANY)
        call = pl.pallas_call(kernel, out_shape=struct(32, 128), in_specs=[spec], out_specs=spec)
        return call, (floats(0, 32, 128),)

    yield "emit_pipeline", pipelined


def kernels() -> dict[str, Build]:
    """What makes each kernel's function and its arguments, by name."""
    found: dict[str, Build] = {}
    for module, names in SUITE.items():
        for name in names:
            case = getattr(module, name)
            title = module.__name__.rpartition(".")[2]
            found[f"{title}.{name}"] = lambda case=case: case.build()[:2]
    for prefix, many in (("ops", _ops()), ("triton", _triton()), ("tpu", _tpu())):
        found.update({f"{prefix}.{name}": build for name, build in many})
    for name in DEVICES:
        found[f"devices.{name}"] = functools.partial(_caught, machine.CASES[name])
    return found


class Pooled:
    """A kernel of the pool, traced, and its mutants."""

    def __init__(self, name: str) -> None:
        f, args = kernels()[name]()
        self.name = name
        self.args = jax.tree.leaves(args)
        self.devices = name.startswith("devices.")
        look = contextlib.nullcontext() if self.devices else abstract_tpu()
        with look:
            self.jaxpr = jax.make_jaxpr(f)(*args)

    @functools.cached_property
    def mutants(self) -> dict[str, operators.Mutant]:
        """By operator and place, in a fixed order."""
        made: dict[str, operators.Mutant] = {}
        for mutant in operators.mutants(self.jaxpr, PER_OPERATOR):
            key = f"{mutant.operator}: {mutant.place}"
            made[f"{key} again" if key in made else key] = mutant
        return made
