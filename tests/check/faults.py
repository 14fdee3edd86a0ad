"""Kernels that are right, each with wrong ones beside it that JAX's interpreter runs in silence.

A fault is a function of ``right``: whether to make the right kernel. It returns the function to run
and its arguments. ``FAULTS`` has what a checked run says of the wrong one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu

FAULTS: dict[str, tuple[str, Callable[[bool], Any]]] = {}

ROWS, COLUMNS = 16, 128
ANY = pl.BlockSpec(memory_space=pl.ANY)
WHOLE = pl.BlockSpec((8, COLUMNS), lambda *_: (0, 0))
BY_ROWS = pl.BlockSpec((8, COLUMNS), lambda i, *_: (i, 0))


def fault(rule: str) -> Callable[[Any], Any]:
    def add(make: Any) -> Any:
        FAULTS[make.__name__] = (rule, make)
        return make

    return add


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def out(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def parallel(*semantics: str) -> Any:
    make = getattr(pltpu, "CompilerParams", None) or pltpu.TPUCompilerParams
    return make(dimension_semantics=semantics)


# -- bounds -----------------------------------------------------------------------------------


def double(x_ref, o_ref):
    o_ref[...] = x_ref[...] * 2


@fault("bounds/block-outside")
def an_index_map_of_elements(right):
    where = pl.BlockSpec((8, COLUMNS), lambda i: (i if right else i * 8, 0))
    f = pl.pallas_call(
        double, out(ROWS, COLUMNS), grid=(2,), in_specs=[where], out_specs=BY_ROWS,
        interpret=True,
    )
    return f, (floats(ROWS, COLUMNS),)


@fault("bounds/block-outside")
def a_prefetched_index_of_a_block(right):
    def kernel(at_ref, x_ref, o_ref):
        o_ref[...] = x_ref[...]

    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, grid=(2,),
        in_specs=[pl.BlockSpec((8, COLUMNS), lambda i, at: (at[i], 0))], out_specs=BY_ROWS,
    )
    f = pl.pallas_call(kernel, out(ROWS, COLUMNS), grid_spec=spec, interpret=True)
    return f, (np.array([1, 0 if right else 2], np.int32), floats(ROWS, COLUMNS))


@fault("bounds/outside-ref")
def a_dynamic_slice(right):
    def kernel(at_ref, x_ref, o_ref):
        o_ref[...] = x_ref[pl.ds(at_ref[0], 8)]

    f = pl.pallas_call(kernel, out(8, COLUMNS), interpret=True)
    return f, (np.array([8 if right else 9], np.int32), floats(ROWS, COLUMNS))


@fault("bounds/outside-ref")
def a_slice_in_a_loop(right):
    def kernel(x_ref, o_ref):
        def body(i, _):
            o_ref[pl.ds(i * 8, 8)] = x_ref[pl.ds(i * 8, 8)]

        jax.lax.fori_loop(0, 2 if right else 3, body, None)

    f = pl.pallas_call(kernel, out(ROWS, COLUMNS), interpret=True)
    return f, (floats(ROWS, COLUMNS),)


@fault("bounds/outside-ref")
def one_element(right):
    def kernel(at_ref, o_ref, counts):
        counts[0] = 0
        counts[at_ref[0]] = 1
        o_ref[0] = counts[0]

    f = pl.pallas_call(
        kernel, jax.ShapeDtypeStruct((1,), jnp.int32), interpret=True,
        scratch_shapes=[pltpu.SMEM((2,), jnp.int32)],
    )
    return f, (np.array([1 if right else 2], np.int32),)


@fault("bounds/outside-ref")
def a_copy_of_rows(right):
    def kernel(at_ref, x_ref, o_ref, sem):
        copy = pltpu.make_async_copy(x_ref.at[pl.ds(at_ref[0], 8)], o_ref, sem)
        copy.start()
        copy.wait()

    f = pl.pallas_call(
        kernel, out(8, COLUMNS), interpret=True,
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), ANY],
        scratch_shapes=[pltpu.SemaphoreType.DMA],
    )
    return f, (np.array([8 if right else 12], np.int32), floats(ROWS, COLUMNS))


@fault("bounds/outside-ref")
def rows_by_an_array_of_indices(right):
    def kernel(at_ref, x_ref, o_ref):
        o_ref[...] = x_ref[at_ref[...], jax.lax.broadcasted_iota(jnp.int32, (8,), 0)]

    f = pl.pallas_call(kernel, out(8), interpret=True)
    return f, (np.arange(8, 16 if right else 0, 1 if right else -1, np.int32)
               + (0 if right else 10), floats(ROWS, COLUMNS))  # fmt: skip


# -- uninitialized ----------------------------------------------------------------------------


@fault("uninitialized/read-before-write")
def a_sum_that_never_starts(right):
    def kernel(x_ref, o_ref):
        if right:

            @pl.when(pl.program_id(0) == 0)
            def _():
                o_ref[...] = jnp.zeros_like(o_ref)

        o_ref[...] += x_ref[...]

    f = pl.pallas_call(
        kernel, out(8, COLUMNS), grid=(2,), in_specs=[BY_ROWS], out_specs=WHOLE, interpret=True
    )
    return f, (floats(ROWS, COLUMNS),)


@fault("uninitialized/read-before-write")
def scratch_half_full(right):
    def kernel(x_ref, o_ref, scratch):
        scratch[0:4] = x_ref[0:4]
        rows = jax.lax.broadcasted_iota(jnp.int32, (8, COLUMNS), 0)
        o_ref[...] = jnp.where(rows < 4, scratch[...], 0) if right else scratch[...]

    f = pl.pallas_call(
        kernel, out(8, COLUMNS), scratch_shapes=[pltpu.VMEM((8, COLUMNS), jnp.float32)],
        interpret=True,
    )
    return f, (floats(8, COLUMNS),)


@fault("uninitialized/read-before-write")
def a_scope_of_integers(right):
    def kernel(x_ref, o_ref):
        def scope(count):
            if right:
                count[0] = 0
            count[1] = 1
            count[0] += x_ref[0]
            o_ref[0] = count[0] + count[1]

        pl.run_scoped(scope, pltpu.SMEM((2,), jnp.int32))

    shape = jax.ShapeDtypeStruct((1,), jnp.int32)
    return pl.pallas_call(kernel, shape, interpret=True), (np.array([7], np.int32),)


@fault("uninitialized/outside-array")
def the_last_block_is_half_full(right):
    def kernel(x_ref, o_ref):
        i = pl.program_id(0)

        @pl.when(i == 0)
        def _():
            o_ref[...] = jnp.zeros_like(o_ref)

        rows = jax.lax.broadcasted_iota(jnp.int32, (8, COLUMNS), 0) + 8 * i
        x = jnp.where(rows < 12, x_ref[...], 0) if right else x_ref[...]
        o_ref[...] += x.sum(0, keepdims=True)

    f = pl.pallas_call(
        kernel, out(1, COLUMNS), grid=(2,), in_specs=[BY_ROWS],
        out_specs=pl.BlockSpec((1, COLUMNS), lambda i: (0, 0)), interpret=True,
    )
    return f, (floats(12, COLUMNS),)


@fault("uninitialized/never-written")
def a_block_without_a_cell(right):
    f = pl.pallas_call(
        double, out(ROWS, COLUMNS), grid=(2 if right else 1,), in_specs=[BY_ROWS],
        out_specs=BY_ROWS, interpret=True,
    )
    return f, (floats(ROWS, COLUMNS),)


@fault("uninitialized/never-written")
def rows_that_no_copy_writes(right):
    def kernel(x_ref, o_ref, sem):
        rows = ROWS if right else 8
        copy = pltpu.make_async_copy(
            x_ref.at[pl.ds(0, rows)], o_ref.at[pl.ds(0, rows)], sem
        )
        copy.start()
        copy.wait()

    f = pl.pallas_call(
        kernel, out(ROWS, COLUMNS), in_specs=[ANY], out_specs=ANY,
        scratch_shapes=[pltpu.SemaphoreType.DMA], interpret=True,
    )
    return f, (floats(ROWS, COLUMNS),)


@fault("uninitialized/never-written")
def rows_that_somebody_uses(right):
    def kernel(x_ref, o_ref):
        o_ref[0:4] = x_ref[0:4]

    call = pl.pallas_call(kernel, out(8, COLUMNS), interpret=True)
    return (lambda x: call(x)[: 4 if right else 5].sum()), (floats(8, COLUMNS),)


# -- races ------------------------------------------------------------------------------------


@fault("races/block-of-two")
def a_sum_over_a_parallel_axis(right):
    def kernel(x_ref, o_ref):
        @pl.when(pl.program_id(0) == 0)
        def _():
            o_ref[...] = jnp.zeros_like(o_ref)

        o_ref[...] += x_ref[...]

    f = pl.pallas_call(
        kernel, out(8, COLUMNS), grid=(2,), in_specs=[BY_ROWS], out_specs=WHOLE, interpret=True,
        compiler_params=parallel("arbitrary" if right else "parallel"),
    )
    return f, (floats(ROWS, COLUMNS),)


@fault("races/block-of-two")
def prefetched_blocks_of_a_parallel_axis(right):
    def kernel(at_ref, x_ref, o_ref):
        o_ref[...] = x_ref[...]

    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, grid=(2,), in_specs=[BY_ROWS],
        out_specs=pl.BlockSpec((8, COLUMNS), lambda i, at: (at[i], 0)),
    )
    f = pl.pallas_call(
        kernel, out(ROWS, COLUMNS), grid_spec=spec, interpret=True,
        compiler_params=parallel("parallel"),
    )
    at = np.array([1, 0 if right else 1], np.int32)
    return (lambda at, x: f(at, x)[8:]), (at, floats(ROWS, COLUMNS))


@fault("races/carried-over-parallel")
def scratch_from_the_first_cell(right):
    def kernel(x_ref, o_ref, scratch):
        @pl.when(pl.program_id(0) == 0)
        def _():
            scratch[...] = x_ref[...]

        o_ref[...] = scratch[...] + x_ref[...]

    f = pl.pallas_call(
        kernel, out(ROWS, COLUMNS), grid=(2,), in_specs=[BY_ROWS], out_specs=BY_ROWS,
        scratch_shapes=[pltpu.VMEM((8, COLUMNS), jnp.float32)], interpret=True,
        compiler_params=parallel("arbitrary" if right else "parallel"),
    )
    return f, (floats(ROWS, COLUMNS),)


@fault("races/cells")
def copies_of_parallel_cells_to_one_place(right):
    def kernel(x_ref, o_ref, sem):
        at = pl.program_id(0) * 8 if right else 0
        copy = pltpu.make_async_copy(x_ref, o_ref.at[pl.ds(at, 8)], sem)
        copy.start()
        copy.wait()

    call = pl.pallas_call(
        kernel, out(ROWS, COLUMNS), grid=(2,), in_specs=[BY_ROWS], out_specs=ANY,
        scratch_shapes=[pltpu.SemaphoreType.DMA], interpret=True,
        compiler_params=parallel("parallel"),
    )
    return (lambda x: call(x)[:8]), (floats(ROWS, COLUMNS),)


@fault("races/cells")
def cores_that_write_one_place(right):
    mesh = pltpu.create_tensorcore_mesh("core", num_cores=2)

    def kernel(x_ref, o_ref):
        def scope(buffer, sem):
            number = jax.lax.axis_index("core")
            buffer[...] = jnp.full_like(buffer, 1.0 if right else number.astype(jnp.float32))
            copy = pltpu.make_async_copy(buffer, o_ref, sem)
            copy.start()
            copy.wait()

        pl.run_scoped(scope, pltpu.VMEM((8, COLUMNS), jnp.float32), pltpu.SemaphoreType.DMA)

    def f(x):
        @pl.run_state
        def run(refs):
            @pl.core_map(mesh)
            def _():
                kernel(*refs)

        return run((x, jnp.zeros_like(x)))[1]

    return f, (floats(8, COLUMNS),)


# -- blocks -----------------------------------------------------------------------------------


@fault("blocks/revisited-block")
def a_sum_in_blocks_that_come_back(right):
    def kernel(x_ref, o_ref):
        @pl.when(pl.program_id(1 if right else 0) == 0)
        def _():
            o_ref[...] = jnp.zeros_like(o_ref)

        o_ref[...] += x_ref[...]

    def x_map(a, b):
        return (a, b) if right else (b, a)

    def o_map(a, b):
        return (a if right else b, 0)

    f = pl.pallas_call(
        kernel, out(ROWS, COLUMNS), grid=(2, 2), interpret=True,
        in_specs=[pl.BlockSpec((8, COLUMNS), x_map)],
        out_specs=pl.BlockSpec((8, COLUMNS), o_map),
    )
    return f, (floats(ROWS, 2 * COLUMNS),)


@fault("blocks/alias-disagrees")
def a_block_that_the_cell_before_wrote(right):
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] * 2

    step = 0 if right else 1
    f = pl.pallas_call(
        kernel, out(4 * 8, COLUMNS), grid=(3,), interpret=True, input_output_aliases={0: 0},
        in_specs=[BY_ROWS], out_specs=pl.BlockSpec((8, COLUMNS), lambda i: (i + step, 0)),
    )
    return f, (floats(4 * 8, COLUMNS),)


@fault("blocks/index-map-input-written")
def a_table_that_a_cell_changes(right):
    def kernel(at_ref, x_ref, o_ref):
        at_ref[1] = at_ref[1] if right else 1 - at_ref[1]
        o_ref[...] = x_ref[...]

    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, grid=(2,), out_specs=BY_ROWS,
        in_specs=[pl.BlockSpec((8, COLUMNS), lambda i, at: (at[i], 0))],
    )
    f = pl.pallas_call(kernel, out(ROWS, COLUMNS), grid_spec=spec)
    return f, (np.array([1, 0], np.int32), floats(ROWS, COLUMNS))


# -- sync -------------------------------------------------------------------------------------


def copying(kernel: Any, semaphores: int = 1, out_specs: Any = None) -> Any:
    """A kernel with an array in HBM, a buffer in VMEM and semaphores."""
    return pl.pallas_call(
        kernel, out(ROWS, COLUMNS), in_specs=[ANY], out_specs=out_specs or pl.BlockSpec(),
        interpret=True,
        scratch_shapes=[
            pltpu.VMEM((ROWS, COLUMNS), jnp.float32),
            pltpu.SemaphoreType.DMA((semaphores,)),
        ],
    )  # fmt: skip


@fault("sync/read-before-wait")
def a_load_before_the_wait(right):
    def kernel(x_ref, o_ref, buffer, sem):
        copy = pltpu.make_async_copy(x_ref, buffer, sem.at[0])
        copy.start()
        if right:
            copy.wait()
        o_ref[...] = buffer[...] * 2
        if not right:
            copy.wait()

    return copying(kernel), (floats(ROWS, COLUMNS),)


@fault("sync/read-before-wait")
def the_other_half_is_awaited(right):
    def kernel(x_ref, o_ref, buffer, sem):
        def half(i):
            rows = pl.ds(i * 8, 8)
            return pltpu.make_async_copy(x_ref.at[rows], buffer.at[rows], sem.at[i])

        half(0).start()
        half(1).start()
        half(0 if right else 1).wait()
        o_ref[0:8] = buffer[0:8] * 2
        half(1 if right else 0).wait()
        o_ref[8:16] = buffer[8:16] * 2

    return copying(kernel, 2), (floats(ROWS, COLUMNS),)


@fault("sync/read-before-wait")
def two_copies_on_one_semaphore(right):
    def kernel(x_ref, o_ref, buffer, sem):
        def half(i):
            rows = pl.ds(i * 8, 8)
            return pltpu.make_async_copy(x_ref.at[rows], buffer.at[rows], sem.at[0])

        half(0).start()
        half(1).start()
        half(0).wait()
        if right:
            half(1).wait()
        o_ref[0:8] = buffer[0:8] * 2
        if not right:
            half(1).wait()
        o_ref[8:16] = buffer[8:16] * 2

    return copying(kernel), (floats(ROWS, COLUMNS),)


@fault("sync/source-changed-in-flight")
def a_source_that_changes(right):
    def kernel(x_ref, o_ref, buffer, sem):
        buffer[...] = jnp.ones_like(buffer)
        copy = pltpu.make_async_copy(buffer, o_ref, sem.at[0])
        copy.start()
        if right:
            copy.wait()
        buffer[3, :] = jnp.zeros((COLUMNS,))
        if not right:
            copy.wait()

    return copying(kernel, out_specs=ANY), (floats(ROWS, COLUMNS),)


@fault("sync/target-written-in-flight")
def a_target_that_is_written(right):
    def kernel(x_ref, o_ref, buffer, sem):
        copy = pltpu.make_async_copy(x_ref.at[pl.ds(0, 8)], buffer.at[pl.ds(0, 8)], sem.at[0])
        copy.start()
        buffer[8:16] = jnp.ones((8, COLUMNS))
        if not right:
            buffer[7:9] = jnp.ones((2, COLUMNS))
        copy.wait()
        o_ref[...] = buffer[...]

    return copying(kernel), (floats(ROWS, COLUMNS),)


@fault("sync/target-written-in-flight")
def a_copy_over_a_copy(right):
    def kernel(x_ref, o_ref, buffer, sem):
        first = pltpu.make_async_copy(x_ref.at[pl.ds(0, 8)], buffer.at[pl.ds(0, 8)], sem.at[0])
        second = pltpu.make_async_copy(
            x_ref.at[pl.ds(8, 8)], buffer.at[pl.ds(8 if right else 4, 8)], sem.at[1]
        )
        first.start()
        second.start()
        first.wait()
        second.wait()
        o_ref[0:12] = buffer[0:12]
        o_ref[12:16] = buffer[12:16] if right else jnp.zeros((4, COLUMNS))

    return copying(kernel, 2), (floats(ROWS, COLUMNS),)


@fault("sync/waited-twice")
def a_second_wait(right):
    def kernel(x_ref, o_ref, buffer, sem):
        copy = pltpu.make_async_copy(x_ref, buffer, sem.at[0])
        copy.start()
        copy.wait()
        if not right:
            copy.wait()
        o_ref[...] = buffer[...]

    return copying(kernel), (floats(ROWS, COLUMNS),)


@fault("sync/wait-without-copy")
def a_wait_on_another_semaphore(right):
    def kernel(x_ref, o_ref, buffer, sem):
        pltpu.make_async_copy(x_ref, buffer, sem.at[0]).start()
        pltpu.make_async_copy(x_ref, buffer, sem.at[0 if right else 1]).wait()
        if not right:
            pltpu.make_async_copy(x_ref, buffer, sem.at[0]).wait()
        o_ref[...] = buffer[...]

    return copying(kernel, 2), (floats(ROWS, COLUMNS),)


@fault("sync/copy-left-in-flight")
def a_copy_without_a_wait(right):
    def kernel(x_ref, o_ref, buffer, sem):
        copy = pltpu.make_async_copy(x_ref, o_ref, sem.at[0])
        copy.start()
        if right:
            copy.wait()

    return copying(kernel, out_specs=ANY), (floats(ROWS, COLUMNS),)


@fault("sync/semaphore-left")
def a_signal_without_a_wait(right):
    def kernel(x_ref, o_ref, sem):
        pl.semaphore_signal(sem, 2)
        pl.semaphore_wait(sem, 2 if right else 1)
        o_ref[...] = x_ref[...]

    f = pl.pallas_call(
        kernel, out(8, COLUMNS), scratch_shapes=[pltpu.SemaphoreType.REGULAR], interpret=True
    )
    return f, (floats(8, COLUMNS),)


# -- GPU --------------------------------------------------------------------------------------


def on_gpu(kernel: Any, shape: Any, **kwargs: Any) -> Any:
    return pl.pallas_call(
        kernel, shape, interpret=True, compiler_params=plgpu.CompilerParams(), **kwargs
    )


@fault("races/cells")
def a_sum_of_all_cells(right):
    def kernel(x_ref, zero_ref, o_ref):
        total = x_ref[...].sum()
        if right:
            plgpu.atomic_add(o_ref, (0,), total)
        else:
            o_ref[0] += total

    block = pl.BlockSpec((8,), lambda i: (i,))
    call = on_gpu(
        kernel, out(1), grid=(2,), in_specs=[block, pl.BlockSpec()], input_output_aliases={1: 0}
    )
    return call, (floats(16), np.zeros(1, np.float32))


@fault("races/cells")
def elements_of_two_cells(right):
    def kernel(x_ref, o_ref):
        i = pl.program_id(0)
        o_ref[pl.ds(i * (8 if right else 4), 8)] = x_ref[pl.ds(i * 8, 8)]

    call = on_gpu(kernel, out(16), grid=(2,))
    return (lambda x: call(x)[:12]), (floats(16),)


@fault("races/cells")
def an_alias_that_another_cell_reads(right):
    def kernel(x_ref, o_ref):
        i = pl.program_id(0)
        at = i if right else 1 - i
        o_ref[pl.ds(i * 8, 8)] = x_ref[pl.ds(at * 8, 8)] + 1

    return on_gpu(kernel, out(16), grid=(2,), input_output_aliases={0: 0}), (floats(16),)


@fault("bounds/outside-ref")
def a_mask_that_is_missing(right):
    def kernel(x_ref, o_ref):
        i = pl.program_id(0)
        inside = i * 8 + jnp.arange(8) < 12
        x = plgpu.load(x_ref.at[pl.ds(i * 8, 8)], mask=inside, other=0.0)
        plgpu.store(o_ref.at[pl.ds(i * 8, 8)], x * 2, mask=inside if right else None)

    return on_gpu(kernel, out(12), grid=(2,)), (floats(12),)


@fault("bounds/outside-array")
def a_block_outside_on_a_gpu(right):
    block = pl.BlockSpec((8,), lambda i: (i if right else i + 1,))
    call = on_gpu(
        double, out(16), grid=(2,), in_specs=[block], out_specs=pl.BlockSpec((8,), lambda i: (i,))
    )
    return (lambda x: call(x)[:8]), (floats(16),)


@fault("bounds/outside-array")
def a_store_of_a_whole_block(right):
    def kernel(x_ref, o_ref):
        inside = pl.program_id(0) * 8 + jnp.arange(8) < 12
        x = plgpu.load(x_ref.at[...], mask=inside, other=0.0)
        plgpu.store(o_ref.at[...], x * 2, mask=inside if right else None)

    block = pl.BlockSpec((8,), lambda i: (i,))
    return on_gpu(kernel, out(12), grid=(2,), in_specs=[block], out_specs=block), (floats(12),)
