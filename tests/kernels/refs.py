"""Refs: what a kernel can read and write through them, and the views it can take."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as plgpu

from tests.kernels.harness import case, floats, integers, pallas_call, struct

ANY = pl.BlockSpec(memory_space=pl.ANY)


@case()
def slices_of_slices():
    def kernel(x, out):
        out[...] = jnp.zeros_like(out)
        inner = x.at[pl.ds(4, 8)].at[2:6, pl.ds(1, 4)]
        target = out.at[pl.ds(8, 8), 4:]
        target.at[1:5, :4][...] = inner[...] * 2
        target[7] = x[0, 4:]

    f = pallas_call(kernel, struct(16, 12))
    return f, (floats(0, 16, 12),)


@case()
def constant_starts_that_stick_out_of_a_view():
    def kernel(x, out):
        # No Python int, which JAX would check while it traces.
        start = jnp.int32(3)
        out[...] = jnp.zeros_like(out)
        out.at[:, :].at[:6][pl.ds(start, 5), 0] = x.at[2:, :].at[:, 1:][pl.ds(start, 5), start]

    f = pallas_call(kernel, struct(8, 4))
    return f, (floats(0, 8, 4),)


@case()
def dynamic_slices():
    def kernel(starts, x, out):
        out[...] = jnp.full_like(out, -1)
        for k in range(3):
            out.at[k][pl.ds(k, 4)] = x[starts[k], pl.ds(starts[k] + 1, 4)]

    f = pallas_call(
        kernel,
        struct(3, 8, dtype=np.int32),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), pl.BlockSpec()],
    )
    return f, (np.array([5, 0, 2], np.int32), integers(0, 8, 16))


@case()
def strided_slices():
    def kernel(x, evens, odds, out):
        evens[...] = x[pl.ds(0, 8, 2), :]
        odds[...] = x[pl.ds(1, 8, stride=2)]
        out[...] = jnp.zeros_like(out)
        out[pl.ds(0, 4, 4), :] = x[pl.ds(3, 4, 3), :]

    f = pallas_call(kernel, (struct(8, 8), struct(8, 8), struct(16, 8)))
    return f, (floats(0, 16, 8),)


@case()
def indices_outside_beside_strided_slices():
    """JAX goes element by element: what is outside isn't stored, and read from the edge."""

    def kernel(place, x, out):
        far = jnp.int32(9)
        out[...] = jnp.zeros_like(out)
        out[pl.ds(far, 2), pl.ds(0, 2, 2)] = x[0:2, 0:2]
        out[place[0], pl.ds(1, 2, 2)] = x[place[0], pl.ds(0, 2, 2)]
        out[place[1], pl.ds(0, 2, 2)] = x[far, pl.ds(1, 2, 2)]
        out[pl.ds(place[0] - 1, 3), pl.ds(1, 2, 2)] = x[pl.ds(place[1], 3), pl.ds(0, 2, 2)]
        out.at[:4][far, pl.ds(0, 2, 2)] = x[1, 0:2]

    smem = pl.BlockSpec(memory_space=pltpu.SMEM)
    f = pallas_call(kernel, struct(8, 4), in_specs=[smem, pl.BlockSpec()])
    return f, (np.array([7, 2], np.int32), floats(0, 8, 4))


@case()
def constant_strided_slices_that_stick_out():
    def kernel(x, out, wrapped):
        # JAX checks these while it traces only if they stick out at the end.
        out[...] = x[pl.ds(np.int32(-3), 4, 2), :]
        wrapped[...] = jnp.zeros_like(wrapped)
        wrapped[pl.ds(np.int32(-1), 4, 2), :] = x[:4]
        past = jax.lax.optimization_barrier(jnp.int32(5))
        wrapped[pl.ds(past, 4, 2), :] = x.at[1:][pl.ds(past, 4, 2), :]

    f = pallas_call(kernel, (struct(4, 4), struct(8, 4)))
    return f, (floats(0, 8, 4),)


@case()
def integer_and_array_indices():
    def kernel(rows, x, out, last):
        out[...] = x[rows[...]]
        last[...] = x[-1, jnp.arange(3), 2]

    f = pallas_call(kernel, (struct(5, 4, 6, dtype=np.int32), struct(3, dtype=np.int32)))
    return f, (np.array([2, 0, 2, 7, 1], np.int32), integers(0, 8, 4, 6))


@case()
def array_indices_in_stores():
    def kernel(rows, x, out):
        out[...] = jnp.zeros_like(out)
        out[rows[...], :] = x[...]

    f = pallas_call(kernel, struct(8, 6, dtype=np.int32))
    return f, (np.array([6, 1, 4], np.int32), integers(0, 3, 6))


@case()
def scalar_loads_and_stores():
    def kernel(x, out):
        total = jnp.int32(0)
        for i in range(4):
            total = total + x[i]
            out[3 - i] = total

    smem = pl.BlockSpec(memory_space=pltpu.SMEM)
    f = pallas_call(kernel, struct(4, dtype=np.int32), in_specs=[smem], out_specs=smem)
    return f, (integers(0, 4),)


@case()
def read_modify_write_keeps_the_value_read():
    def kernel(x, out):
        out[...] = x[...]
        before = out[...]
        out[...] = out[...] * 2
        out[:4] = before[4:] + out[:4]
        first = out[0]
        out[0] = out[1]
        out[1] = first

    f = pallas_call(kernel, struct(8, 8, dtype=np.int32))
    return f, (integers(0, 8, 8),)


@case()
def bitcast_view():
    """JAX's interpreter refuses stores through a bitcast."""

    def kernel(x, out, scratch):
        scratch[...] = x[...]
        bits = scratch.bitcast(jnp.int32)
        bits[...] = bits[...] ^ ((bits[...] >> 31) & 0x7FFFFFFF)
        out[...] = bits[...]

    f = pallas_call(
        kernel,
        struct(8, 128, dtype=np.int32),
        scratch_shapes=[pltpu.VMEM((8, 128), jnp.float32)],
    )
    x = floats(0, 8, 128)
    bits = x.view(np.int32)
    return f, (x,), bits ^ ((bits >> 31) & 0x7FFFFFFF)


@case()
def bitcast_to_narrow_view():
    def kernel(x, out):
        out[...] = x.bitcast(jnp.int16)[...]

    f = pallas_call(kernel, struct(16, 128, dtype=np.int16))
    return f, (integers(0, 8, 128, low=-(2**31), high=2**31 - 1),)


@case()
def reshaped_view():
    """JAX's interpreter refuses stores through a reshape."""

    def kernel(x, out):
        flat = x.reshape(16, 128)
        out.at[:8].reshape(2, 4, 128)[...] = x[:, :4, :]
        out.at[8:][...] = flat[8:]

    f = pallas_call(kernel, struct(16, 128, dtype=np.int32))
    x = integers(0, 2, 8, 128)
    return f, (x,), np.concatenate([x[:, :4].reshape(8, 128), x[1]])


@case()
def reshaped_view_read():
    def kernel(x, out):
        out[...] = x.reshape(16, 128)[...]

    f = pallas_call(kernel, struct(16, 128, dtype=np.int32))
    return f, (integers(0, 2, 8, 128),)


@case()
def transposed_view():
    """JAX's interpreter refuses slices of a transposed view."""

    def kernel(x, out):
        out[...] = x.transpose((1, 0))[2:6]

    f = pallas_call(kernel, struct(4, 8))
    x = floats(0, 8, 8)
    return f, (x,), x.T[2:6]


@case()
def transposed_view_and_an_element_whose_indices_are_the_permutation():
    """JAX's interpreter refuses stores to a transposed view."""

    def kernel(x, out, again):
        out.transpose((1, 0))[...] = x[...]
        out[1, 0] = 5.0
        again[...] = out[...]
        again.transpose((1, 0))[...] = x[...]
        again[0, 1] = again[1, 0]

    f = pallas_call(kernel, (struct(8, 4), struct(8, 4)))
    x = floats(0, 4, 8)
    want, again = x.T.copy(), x.T.copy()
    want[1, 0], again[0, 1] = 5.0, x[0, 1]
    return f, (x,), (want, again)


@case()
def masked_load_and_store():
    def kernel(x, out):
        i = pl.program_id(0)
        at = i * 8 + jnp.arange(8)
        values = plgpu.load(x.at[pl.ds(i * 8, 8)], mask=at < 20, other=-1.0)
        plgpu.store(out.at[pl.ds(i * 8, 8)], values * 2, mask=at % 3 != 0)

    def run(x, y):
        return pallas_call(
            lambda x, y, out: kernel(x, out), struct(24), grid=(3,), input_output_aliases={1: 0}
        )(x, y)

    return run, (floats(0, 24), floats(1, 24))


@case()
def masked_tpu_store():
    def kernel(x, y, out):
        del y
        mask = (jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) + pl.program_id(0)) % 2 == 0
        pltpu.store(out.at[...], pltpu.load(x.at[...]) + 1, mask=mask)

    spec = pl.BlockSpec((8, 16), lambda i: (i, 0))
    f = pallas_call(
        kernel, struct(16, 16), grid=(2,), in_specs=[spec, spec], out_specs=spec,
        input_output_aliases={1: 0},
    )
    return f, (floats(0, 16, 16), floats(1, 16, 16))


@case()
def list_of_refs_in_a_loop():
    def kernel(*refs):
        *inputs, out = refs
        out[...] = jnp.zeros_like(out)
        for k, ref in enumerate(inputs):
            out[...] += ref[...] * (k + 1)

    f = pallas_call(kernel, struct(8, 8, dtype=np.int32))
    return f, tuple(integers(k, 8, 8) for k in range(4))


@case()
def booleans_and_selects():
    def kernel(x, mask, out, flags):
        out[...] = jnp.where(mask[...], x[...], -x[...])
        flags[...] = (x[...] > 0) & mask[...]

    f = pallas_call(kernel, (struct(8, 8, dtype=np.int32), struct(8, 8, dtype=np.bool_)))
    return f, (integers(0, 8, 8), integers(1, 8, 8) > 0)


@case()
def interleave_and_pack_bfloat16():
    def kernel(x, y, packed, low):
        bits = [
            jax.lax.bitcast_convert_type(v[...], jnp.uint16).astype(jnp.uint32) for v in (x, y)
        ]
        packed[...] = (bits[0] << 16) | bits[1]
        low[...] = jax.lax.bitcast_convert_type(
            (packed[...] & 0xFFFF).astype(jnp.uint16), jnp.bfloat16
        )

    f = pallas_call(
        kernel, (struct(8, 16, dtype=np.uint32), struct(8, 16, dtype=jnp.bfloat16))
    )
    dtype = ml_dtypes.bfloat16
    return f, (floats(0, 8, 16, dtype=dtype), floats(1, 8, 16, dtype=dtype))


@case()
def roll_and_repeat():
    def kernel(x, shift, rolled, by, tiled):
        rolled[...] = pltpu.roll(x[...], 3, axis=1)
        by[...] = pltpu.roll(x[...], shift[0], axis=0)
        tiled[...] = jnp.tile(x[...], (1, 2))

    f = pallas_call(
        kernel,
        (struct(8, 128), struct(8, 128), struct(8, 256)),
        in_specs=[pl.BlockSpec(), pl.BlockSpec(memory_space=pltpu.SMEM)],
    )
    return f, (floats(0, 8, 128), np.array([5], np.int32))


@case()
def refs_of_the_caller():
    """JAX's interpreter loses what such a kernel writes."""

    def f(x):
        def body(refs):
            x_ref, out_ref = refs

            def start(sem):
                pltpu.make_async_copy(x_ref.at[2], out_ref.at[1], sem).start()

            def wait(sem):
                pltpu.make_async_copy(x_ref.at[2], out_ref.at[1], sem).wait()

            sem_spec = pl.BlockSpec(memory_space=pltpu.SEMAPHORE)
            sem = pl.pallas_call(
                start, out_shape=pltpu.SemaphoreType.DMA(()), out_specs=sem_spec
            )()
            pl.pallas_call(wait, out_shape=(), in_specs=[sem_spec])(sem)

        return pl.run_state(body)((x, jnp.zeros_like(x[:2])))[1]

    x = floats(0, 4, 8, 128)
    return f, (x,), np.stack([np.zeros_like(x[0]), x[2]])


@case()
def refs_of_the_caller_beside_scalar_prefetch_and_a_grid():
    def f(place, x):
        def body(refs):
            x_ref, out_ref = refs

            def kernel(place, y, z):
                z[...] = y[...] + 1
                out_ref[pl.program_id(0)] = x_ref[place[pl.program_id(0)]]

            spec = pl.BlockSpec((1, 8), lambda i, place: (i, 0))
            grid_spec = pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1, grid=(3,), in_specs=[spec], out_specs=spec
            )
            y = x_ref[:3]
            z = pl.pallas_call(kernel, grid_spec=grid_spec, out_shape=struct(3, 8))(place, y)
            x_ref[:3] = z

        return pl.run_state(body)((x, jnp.zeros_like(x[:3])))

    x, place = floats(0, 4, 8), np.array([3, 0, 2], np.int32)
    return f, (place, x), (np.concatenate([x[:3] + 1, x[3:]]), x[place])


@case()
def an_alias_in_hbm_is_one_memory():
    """What a TPU does, and JAX's interpreter doesn't: the output is what the input ref got."""

    def f(x):
        def kernel(x_ref, out_ref, scratch):
            pltpu.sync_copy(x_ref.at[0], scratch)
            pltpu.sync_copy(scratch, x_ref.at[1])

        return pl.pallas_call(
            kernel,
            in_specs=[ANY],
            out_specs=ANY,
            out_shape=struct(2, 8, 128),
            scratch_shapes=[pltpu.VMEM((8, 128), jnp.float32)],
            input_output_aliases={0: 0},
        )(x)

    x = floats(0, 2, 8, 128)
    return f, (x,), np.stack([x[0], x[0]])


@case()
def an_alias_shows_what_earlier_cells_wrote():
    """What a TPU does, and JAX's interpreter since 0.11.2: a sum over every third cell."""

    def f(x, zeros):
        def kernel(x, before, out):
            out[...] = before[...] + x[...]

        third = pl.BlockSpec((8, 128), lambda i: (i % 3, 0))
        return pl.pallas_call(
            kernel,
            grid=(6,),
            in_specs=[pl.BlockSpec((8, 128), lambda i: (i, 0)), third],
            out_specs=third,
            out_shape=struct(24, 128),
            input_output_aliases={1: 0},
        )(x, zeros)

    x = floats(0, 48, 128)
    return f, (x, np.zeros((24, 128), np.float32)), x[:24] + x[24:]


def _added_to_an_alias(grid, index_map):
    def kernel(x, before, out):
        out[...] = before[...] * 2 + x[...]

    block = pl.BlockSpec((8, 16), index_map)
    return pallas_call(
        kernel, struct(24, 32), grid=grid, in_specs=[block, block], out_specs=block,
        input_output_aliases={1: 0},
    ), (floats(0, 24, 32), floats(1, 24, 32))  # fmt: skip


@case()
def an_alias_in_blocks_of_one_cell_each():
    return _added_to_an_alias((2, 1, 3), lambda i, j, k: (k, i))


@case()
def an_alias_in_blocks_that_come_again():
    return _added_to_an_alias((2, 2, 3), lambda i, j, k: (k, i))


@case()
def an_alias_in_blocks_past_its_end():
    return _added_to_an_alias((2, 5), lambda i, j: (j, i))


@case()
def a_load_larger_than_its_ref():
    """JAX's interpreter refuses it."""

    def kernel(start, x, out):
        # JAX itself refuses such a slice from a constant, since 0.12.
        out[...] = x[pl.ds(start[0], 6), :]

    smem = pl.BlockSpec(memory_space=pltpu.SMEM)
    f = pallas_call(kernel, struct(6, 4), in_specs=[smem, pl.BlockSpec()])
    x = floats(0, 4, 4)
    return f, (np.zeros(1, np.int32), x), np.concatenate([x, np.full((2, 4), np.nan, np.float32)])


if hasattr(pl, "select_ref"):  # JAX >= 0.10 has strides of 0

    @case()
    def a_load_in_steps_of_nothing():
        """JAX's interpreter refuses it. Each row is the one that the slice starts at."""

        def kernel(start, x, out):
            out[0] = x[pl.ds(2, 3, 0), :]
            out[1] = x[pl.ds(start[0], 3, 0), :]

        smem = pl.BlockSpec(memory_space=pltpu.SMEM)
        f = pallas_call(kernel, struct(2, 3, 8), in_specs=[smem, pl.BlockSpec()])
        x = floats(0, 4, 8)
        return f, (np.array([1], np.int32), x), np.stack([x[[2] * 3], x[[1] * 3]])


@case()
def a_store_function_through_a_bitcast_of_a_slice():
    """JAX's interpreter refuses it."""
    store = getattr(plgpu, "store", None) or pl.store

    def kernel(x, out):
        out[...] = jnp.zeros_like(out)
        store(out.at[:8, :128].bitcast(jnp.int16), x[...])

    f = pallas_call(kernel, struct(8, 256, dtype=np.int32))
    x = integers(0, 16, 128, dtype=np.int16)
    low, high = (x[i::2].astype(np.uint16).astype(np.uint32) for i in (0, 1))
    want = (low | high << 16).astype(np.int32)
    return f, (x,), np.concatenate([want, np.zeros_like(want)], axis=1)
