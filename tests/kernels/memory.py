"""Memory spaces, copies between them, semaphores and scoped allocations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import tpu_sc as plsc

from tests.kernels.harness import case, floats, integers, pallas_call, struct

ANY = pl.BlockSpec(memory_space=pl.ANY)


@case()
def copy_whole_array():
    def kernel(x, out, sem):
        copy = pltpu.make_async_copy(x, out, sem)
        copy.start()
        copy.wait()

    f = pallas_call(
        kernel, struct(8, 16), in_specs=[ANY], out_specs=ANY,
        scratch_shapes=[pltpu.SemaphoreType.DMA],
    )
    return f, (floats(0, 8, 16),)


@case()
def double_buffered_copies():
    """x * 2 + 1, streamed from HBM through two VMEM slots each way."""
    rows, chunk = 40, 8

    def kernel(x, out, inputs, outputs, in_sems, out_sems):
        steps = rows // chunk

        def load(i, slot):
            return pltpu.make_async_copy(
                x.at[pl.ds(i * chunk, chunk)], inputs.at[slot], in_sems.at[slot]
            )

        def store(i, slot):
            return pltpu.make_async_copy(
                outputs.at[slot], out.at[pl.ds(i * chunk, chunk)], out_sems.at[slot]
            )

        load(0, 0).start()

        def body(i, _):
            slot = jax.lax.rem(i, 2)

            @pl.when(i + 1 < steps)
            def _():
                load(i + 1, 1 - slot).start()

            load(i, slot).wait()

            @pl.when(i >= 2)
            def _():
                store(i - 2, slot).wait()

            outputs[slot] = inputs[slot] * 2 + 1
            store(i, slot).start()

        jax.lax.fori_loop(0, steps, body, None)
        store(steps - 2, (steps - 2) % 2).wait()
        store(steps - 1, (steps - 1) % 2).wait()

    f = pallas_call(
        kernel,
        struct(rows, 16),
        in_specs=[ANY],
        out_specs=ANY,
        scratch_shapes=[
            pltpu.VMEM((2, chunk, 16), jnp.float32),
            pltpu.VMEM((2, chunk, 16), jnp.float32),
            pltpu.SemaphoreType.DMA((2,)),
            pltpu.SemaphoreType.DMA((2,)),
        ],
    )
    return f, (floats(0, rows, 16),)


@case()
def compare_exchange_over_hbm():
    """Halves of each row compared and swapped in place, streamed with grouped copies."""
    width, chunk = 64, 16

    def kernel(x, y, low, high, out_low, out_high, buffers, sems):
        rows = pl.ds(pl.program_id(0) * 4, 4)

        def copies(i, source):
            at = pl.multiple_of(i * chunk, chunk)
            return [
                pltpu.async_copy(
                    ref.at[rows, pl.ds(at, chunk)], buffers.at[k, jax.lax.rem(i, 2)],
                    sems.at[k, jax.lax.rem(i, 2)],
                )
                for k, ref in enumerate(source)
            ]

        first = copies(0, (x, y))
        for copy in first:
            copy.wait()

        @pl.loop(0, width // chunk)
        def _(i):
            slot = jax.lax.rem(i, 2)

            @pl.when(i + 1 < width // chunk)
            def _():
                for copy in copies(i + 1, (x, y)):
                    copy.wait()

            a, b = buffers[0, slot], buffers[1, slot]
            low[...], high[...] = jnp.minimum(a, b), jnp.maximum(a, b)
            to = pl.ds(i * chunk, chunk)
            pltpu.sync_copy(low, out_low.at[rows, to])
            pltpu.sync_copy(high, out_high.at[rows, to])

    def run(x, y):
        return pallas_call(
            lambda x, y, out_low, out_high, low, high, buffers, sems: kernel(
                x, y, low, high, out_low, out_high, buffers, sems
            ),
            (struct(8, width, dtype=np.int32),) * 2,
            grid=(2,),
            in_specs=[ANY, ANY],
            out_specs=(ANY, ANY),
            scratch_shapes=[
                pltpu.VMEM((4, chunk), jnp.int32),
                pltpu.VMEM((4, chunk), jnp.int32),
                pltpu.VMEM((2, 2, 4, chunk), jnp.int32),
                pltpu.SemaphoreType.DMA((2, 2)),
            ],
        )(x, y)

    return run, (integers(0, 8, width), integers(1, 8, width))


@case()
def kernel_inside_fori_loop():
    """A DMA kernel called again and again from an XLA loop, as streaming sorts do."""

    def kernel(step, x, out, buffer, sem):
        pltpu.async_copy(x, buffer, sem).wait()
        buffer[...] = buffer[...] + step[0]
        pltpu.async_copy(buffer, out, sem).wait()

    def run(x):
        call = pallas_call(
            kernel,
            struct(8, 8, dtype=np.int32),
            in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), ANY],
            out_specs=ANY,
            scratch_shapes=[pltpu.VMEM((8, 8), jnp.int32), pltpu.SemaphoreType.DMA],
        )
        return jax.lax.fori_loop(0, 5, lambda i, x: call(jnp.full((1,), i), x), x)

    return run, (integers(0, 8, 8),)


@case()
def row_gather_by_copies():
    def kernel(indices, table, out, sem):
        def row(i):
            return pltpu.make_async_copy(
                table.at[pl.ds(indices[i], 1)], out.at[pl.ds(i, 1)], sem
            )

        pl.loop(0, 6)(lambda i: row(i).start())
        pl.loop(0, 6)(lambda i: row(i).wait())

    f = pallas_call(
        kernel,
        struct(6, 16),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=(1,), in_specs=[ANY],
            out_specs=pl.BlockSpec((6, 16), lambda i, indices: (0, 0)),
            scratch_shapes=[pltpu.SemaphoreType.DMA],
        ),
    )
    return f, (np.array([4, 4, 0, 9, 2, 7], np.int32), floats(0, 10, 16))


@case()
def scoped_allocations():
    def kernel(x, out):
        def body(scratch, count):
            count[0] = 0

            @pl.loop(0, 4)
            def _(i):
                scratch[i] = x[i] * 2
                count[0] += i

            out[...] = scratch[...] + count[0]

        pl.run_scoped(body, pltpu.VMEM((4, 8), jnp.int32), pltpu.SMEM((1,), jnp.int32))

    f = pallas_call(kernel, struct(4, 8, dtype=np.int32))
    return f, (integers(0, 4, 8),)


@case()
def scoped_result():
    def kernel(x, out):
        @functools.partial(pl.run_scoped, acc=pltpu.VMEM((1, 8), jnp.int32))
        def total(acc):
            acc[...] = jnp.zeros_like(acc)
            for i in range(4):
                acc[...] += x[pl.ds(i, 1)]
            return acc[...]

        out[...] = total

    f = pallas_call(kernel, struct(1, 8, dtype=np.int32))
    return f, (integers(0, 4, 8),)


@case()
def scoped_copy_in_each_cell():
    """JAX's interpreter refuses ``program_id`` inside ``run_scoped``."""

    def kernel(x, out):
        def body(buffer, sem):
            i = pl.program_id(0)
            pltpu.async_copy(x.at[pl.ds(i * 4, 4), :], buffer, sem).wait()
            out[...] = buffer[...] + i

        pl.run_scoped(body, pltpu.VMEM((4, 8), jnp.int32), pltpu.SemaphoreType.DMA)

    f = pallas_call(
        kernel, struct(12, 8, dtype=np.int32), grid=(3,), in_specs=[ANY],
        out_specs=pl.BlockSpec((4, 8), lambda i: (i, 0)),
    )
    x = integers(0, 12, 8)
    return f, (x,), x + np.repeat(np.arange(3, dtype=np.int32), 4)[:, None]


@case()
def accumulate_in_hbm_output():
    def kernel(x, y, out, buffer, sem):
        del y
        i = pl.program_id(0)
        row = out.at[pl.ds(i % 2, 1)]
        pltpu.async_copy(row, buffer, sem).wait()
        buffer[...] += x[...]
        pltpu.async_copy(buffer, row, sem).wait()

    f = pallas_call(
        kernel, struct(2, 8, dtype=np.int32), grid=(6,),
        in_specs=[pl.BlockSpec((1, 8), lambda i: (i, 0)), ANY],
        out_specs=ANY,
        scratch_shapes=[pltpu.VMEM((1, 8), jnp.int32), pltpu.SemaphoreType.DMA],
        input_output_aliases={1: 0},
    )
    return f, (integers(0, 6, 8), integers(1, 2, 8))


@case()
def semaphores_count():
    def kernel(out, sem):
        pl.semaphore_signal(sem, 3)
        out[0] = pl.semaphore_read(sem)
        pl.semaphore_wait(sem, 2)
        out[1] = pl.semaphore_read(sem)
        pl.semaphore_wait(sem, 1)

    f = pallas_call(
        kernel, struct(2, dtype=np.int32), out_specs=pl.BlockSpec(memory_space=pltpu.SMEM),
        scratch_shapes=[pltpu.SemaphoreType.REGULAR],
    )
    return f, ()


@case(tpu=True)
def emitted_pipeline():
    """JAX's interpreter refuses ``emit_pipeline``."""

    def kernel(x, y, out):
        def body(x, y, out):
            out[...] = x[...] * y[...]

        block = pl.BlockSpec((8, 128), lambda i, j: (i, j))
        pltpu.emit_pipeline(
            body, grid=(2, 2), in_specs=[block, block], out_specs=[block],
        )(x, y, out)

    f = pallas_call(kernel, struct(16, 256), in_specs=[ANY, ANY], out_specs=ANY)
    x, y = floats(0, 16, 256), floats(1, 16, 256)
    return f, (x, y), x * y


@case(tpu=True)
def emitted_pipeline_with_sums():
    """JAX's interpreter refuses ``emit_pipeline``."""

    def kernel(x, out):
        def body(x, out):
            @pl.when(pl.program_id(1) == 0)
            def _():
                out[...] = jnp.zeros_like(out)

            out[...] += x[...]

        pltpu.emit_pipeline(
            body,
            grid=(2, 3),
            in_specs=[pl.BlockSpec((8, 128), lambda i, k: (i, k))],
            out_specs=[pl.BlockSpec((8, 128), lambda i, k: (i, 0))],
        )(x, out)

    f = pallas_call(kernel, struct(16, 128, dtype=np.int32), in_specs=[ANY], out_specs=ANY)
    x = integers(0, 16, 384)
    return f, (x,), x.reshape(16, 3, 128).sum(1, dtype=np.int32)


@case(tpu=True)
def emitted_pipeline_with_uneven_blocks():
    """JAX's interpreter refuses ``emit_pipeline``."""

    def kernel(x, out):
        def body(x, out):
            out[...] = 2 * x[...]

        block = pl.BlockSpec((16, 128), lambda i, j: (i, j))
        pltpu.emit_pipeline(body, grid=(3, 2), in_specs=[block], out_specs=[block])(x, out)

    f = pallas_call(kernel, struct(45, 200), in_specs=[ANY], out_specs=ANY)
    x = floats(0, 45, 200)
    return f, (x,), 2 * x


@case(tpu=True)
def what_a_pipelines_block_has_beyond_its_array():
    """Zeros: kernels mask one operand of a product, and rely on finite numbers in the other. The
    second block is copied over numbers of the first."""

    def kernel(x, y, out):
        def body(x, y, out):
            rows = jax.lax.broadcasted_iota(jnp.int32, y.shape, 0) + 128 * pl.program_id(0)
            y = jnp.where(rows < 200, y[...], 0)
            out[...] = jnp.dot(x[...], y, preferred_element_type=jnp.float32)
            out[:, 100:] = x[:, 100:]

        pltpu.emit_pipeline(
            body,
            grid=(2,),
            in_specs=[
                pl.BlockSpec((16, 128), lambda i: (0, i)),
                pl.BlockSpec((128, 128), lambda i: (i, 0)),
            ],
            out_specs=[pl.BlockSpec((16, 128), lambda i: (0, i))],
        )(x, y, out)

    f = pallas_call(kernel, struct(16, 256), in_specs=[ANY, ANY], out_specs=ANY)
    x, y = floats(0, 16, 200).round(), floats(1, 200, 128).round()
    want = np.hstack([x[:, :128] @ y[:128], x[:, 128:] @ y[128:]])
    want[:, 100:128] = x[:, 100:128]
    want[:, 228:] = 0
    return f, (x, y), want


@case()
def copies_of_dynamic_size():
    """JAX's interpreter refuses them. A copy goes as far as both arrays do."""

    def kernel(sizes, x, out, scratch, sem):
        scratch[...] = jnp.zeros_like(scratch)

        def each(i, _):
            rows = pl.ds(8 * i, sizes[i])
            copy_in = pltpu.make_async_copy(
                x.at[0].at[rows], scratch.at[pl.ds(0, sizes[i])], sem
            )
            copy_in.start()
            copy_in.wait()
            copy_out = pltpu.make_async_copy(
                scratch.at[pl.ds(0, sizes[i])], out.at[0, rows], sem
            )
            copy_out.start()
            copy_out.wait()

        jax.lax.fori_loop(0, 3, each, None)

    f = pallas_call(
        kernel,
        struct(1, 20, 128),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), ANY],
        out_specs=ANY,
        scratch_shapes=[pltpu.VMEM((8, 128), jnp.float32), pltpu.SemaphoreType.DMA],
    )
    x = floats(0, 1, 20, 128)
    want = x.copy()
    want[0, 2:8] = np.nan
    return f, (np.array([2, 8, 8], np.int32), x), want


@case()
def copies_of_dynamic_size_in_another_form():
    """Tiles by number, and rows of half words. A reshaped block of an array is no view of it."""

    def kernel(sizes, x, out, scratch, sem):
        scratch[...] = jnp.zeros_like(scratch)
        out[...] = jnp.ones_like(out)
        column = pl.ds(128 * pl.program_id(0), 128)
        tiles = x.reshape(4, 8, 256).at[pl.ds(1, sizes[0]), :, column]
        halves = pl.ds(sizes[1], sizes[2])
        for source, target in (
            (tiles, scratch.reshape(4, 8, 128).at[pl.ds(0, sizes[0])]),
            (tiles, out.reshape(4, 8, 128).at[pl.ds(2, sizes[0])]),
            (scratch.bitcast(jnp.uint16).at[halves], out.bitcast(jnp.uint16).at[halves]),
        ):
            copy = pltpu.make_async_copy(source, target, sem)
            copy.start()
            copy.wait()

    f = pallas_call(
        kernel,
        struct(32, 256),
        grid=(2,),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), ANY],
        out_specs=pl.BlockSpec((32, 128), lambda j: (0, j)),
        scratch_shapes=[pltpu.VMEM((32, 128), jnp.float32), pltpu.SemaphoreType.DMA],
    )
    x = floats(0, 32, 256)
    want = np.ones_like(x)
    want[16:32] = x[8:24]
    want[2:12] = x[10:20]
    return f, (np.array([2, 4, 20], np.int32), x), want


@case()
def copies_of_rows_by_indices():
    """As a SparseCore gathers and scatters them; JAX's interpreters have no such copies."""

    def kernel(x, rows, places, gathered, scattered, scratch, sem):
        for source, target in (
            (x.at[rows[...]], gathered),
            (x.bitcast(jnp.int32).at[rows.at[pl.ds(0, 4)], pl.ds(128, 128)], scratch),
            (scratch, scattered.bitcast(jnp.int32).at[places]),
        ):
            copy = pltpu.make_async_copy(source, target, sem)
            copy.start()
            copy.wait()

    block = pl.BlockSpec((8, 128), lambda i: (0, i))
    f = pallas_call(
        kernel,
        (struct(6, 256), struct(8, 256)),
        grid=(2,),
        in_specs=[ANY, pl.BlockSpec((6,), lambda i: (0,)), pl.BlockSpec((4,), lambda i: (0,))],
        out_specs=(pl.BlockSpec((6, 256), lambda i: (0, 0)), block),
        scratch_shapes=[pltpu.VMEM((4, 128), jnp.int32), pltpu.SemaphoreType.DMA],
    )
    x, rows, places = floats(0, 16, 256), np.array([7, 0, 15, 7, 3, 2]), np.array([5, 1, 7, 2])
    scattered = np.full((8, 256), np.nan, np.float32)
    scattered[places] = np.tile(x[rows[:4], 128:], 2)
    return f, (x, rows.astype(np.int32), places.astype(np.int32)), (x[rows], scattered)


@case()
def copies_of_elements_by_arrays_of_indices():
    """Several arrays, arrays of two dimensions, and a number beside an array, as in NumPy."""

    def kernel(x, i, j, both, grid, beside, apart, put, sem):
        i, j = i[...], j[...]
        for source, target in (
            (x.at[i, j], both),
            (x.at[pl.ds(1, 2), i.reshape(2, 2)], grid),
            (x.at[3, j], beside),
            (x.at[i, :, j], apart),
            (both, put.at[j, i]),
        ):
            copy = pltpu.make_async_copy(source, target, sem)
            copy.start()
            copy.wait()

    x, i, j = floats(0, 4, 5, 6), np.array([3, 0, 2, 0]), np.array([1, 4, 1, 0])
    put = np.full((5, 4, 6), np.nan, np.float32)
    put[j, i] = x[i, j]
    want = (x[i, j], x[1:3, i.reshape(2, 2)], x[3, j], x[i, :, j], put)
    f = pallas_call(
        kernel,
        tuple(struct(*w.shape) for w in want),
        scratch_shapes=[pltpu.SemaphoreType.DMA],
    )
    return f, (x, i.astype(np.int32), j.astype(np.int32)), want


if hasattr(plsc, "Indices"):  # JAX >= 0.10

    @case()
    def copies_by_indices_of_which_some_are_ignored():
        def kernel(x, i, gathered, added, scattered, sem):
            gathered[...] = jnp.zeros_like(gathered)
            added[...] = jnp.ones_like(added)
            scattered[...] = jnp.zeros_like(scattered)
            rows = plsc.Indices(i, ignored_value=-1)
            pltpu.async_copy(x.at[rows], gathered, sem).wait()
            pltpu.async_copy(x.at[rows], added, sem, add=True).wait()
            pltpu.async_copy(gathered, scattered.at[rows], sem).wait()

        x, i = floats(0, 9, 128), np.array([3, -1, 8, -1, 0, 3], np.int32)
        gathered, scattered = np.zeros((6, 128), np.float32), np.zeros_like(x)
        gathered[i >= 0] = scattered[i[i >= 0]] = x[i[i >= 0]]
        f = pallas_call(
            kernel,
            (struct(6, 128), struct(6, 128), struct(9, 128)),
            scratch_shapes=[pltpu.SemaphoreType.DMA],
        )
        want = (gathered, 1 + gathered, scattered)
        want[2][3] = gathered[5]
        return f, (x, i), want


if hasattr(pl, "select_ref"):  # JAX >= 0.10

    @case()
    def copies_from_one_of_several_refs():
        """JAX's interpreter refuses ``select_ref``."""

        def kernel(x0, x1, x2, out, sems):
            @pl.loop(0, 3)
            def _(i):
                left = (pl.select_ref(0, x.at[:, :8], x.at[:, 8:]) for x in (x0, x1, x2))
                source = pl.select_ref(i, *left).at[1:]
                sem = pl.select_ref(i % 2, sems.at[0], sems.at[1])
                pltpu.async_copy(source, out.at[i], sem).wait()

        f = pallas_call(
            kernel,
            struct(3, 3, 8),
            in_specs=[ANY] * 3,
            out_specs=ANY,
            scratch_shapes=[pltpu.SemaphoreType.DMA((2,))],
        )
        xs = [floats(i, 4, 16) for i in range(3)]
        return f, tuple(xs), np.stack([x[1:, :8] for x in xs])
