"""Grids and blocks: how arrays are cut, which cell sees what, and what persists between cells."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tests.kernels.harness import case, floats, integers, pallas_call, struct


@case()
def vector_add_many_blocks():
    def kernel(x, y, out):
        out[...] = x[...] + y[...]

    spec = pl.BlockSpec((32,), lambda i: (i,))
    f = pallas_call(
        kernel, struct(2048), grid=(64,), in_specs=[spec, spec], out_specs=spec
    )
    return f, (floats(0, 2048), floats(1, 2048))


@case()
def no_grid_no_specs():
    def kernel(x, y, total, product):
        total[...] = x[...] + y[...]
        product[...] = x[...] * y[...]

    f = pallas_call(kernel, (struct(5, 3), struct(5, 3)))
    return f, (floats(0, 5, 3), floats(1, 5, 3))


@case()
def transposing_index_maps():
    def kernel(x, out):
        out[...] = x[...].T

    f = pallas_call(
        kernel,
        struct(24, 32),
        grid=(4, 3),
        in_specs=[pl.BlockSpec((8, 8), lambda i, j: (i, j))],
        out_specs=pl.BlockSpec((8, 8), lambda i, j: (j, i)),
    )
    return f, (floats(0, 32, 24),)


@case()
def blocks_of_a_float8_that_numpy_takes_for_its_own():
    """Blocks that lie evenly, and blocks that don't."""

    def kernel(x, y, out):
        out[...] = x[...].astype(jnp.float32) + y[...].astype(jnp.float32)

    f = pallas_call(
        kernel,
        struct(32, 16),
        grid=(4, 2),
        in_specs=[
            pl.BlockSpec((8, 8), lambda i, j: (i, j)),
            pl.BlockSpec((8, 8), lambda i, j: (i * i % 3, j)),
        ],
        out_specs=pl.BlockSpec((8, 8), lambda i, j: (i, j)),
    )
    return f, tuple(jnp.asarray(floats(i, 32, 16), jnp.float8_e5m2) for i in range(2))


@case()
def edge_blocks_stick_out():
    def kernel(x, y, out):
        out[...] = x[...] * 2 + y[...]

    block = pl.BlockSpec((8, 128), lambda i, j: (i, j))
    row = pl.BlockSpec((1, 128), lambda i, j: (0, j))
    f = pallas_call(
        kernel, struct(19, 200), grid=(3, 2), in_specs=[block, row], out_specs=block
    )
    return f, (floats(0, 19, 200), floats(1, 1, 200))


@case()
def edge_block_masked_row_sums():
    width, block = 75, 32

    def kernel(x, out):
        j = pl.program_id(0)

        @pl.when(j == 0)
        def _():
            out[...] = jnp.zeros_like(out)

        column = j * block + jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        kept = jnp.where(column < width, x[...], 0)
        out[...] += jnp.sum(kept, axis=1, keepdims=True)

    f = pallas_call(
        kernel,
        struct(8, 1, dtype=np.int32),
        grid=(pl.cdiv(width, block),),
        in_specs=[pl.BlockSpec((8, block), lambda j: (0, j))],
        out_specs=pl.BlockSpec((8, 1), lambda j: (0, 0)),
    )
    return f, (integers(0, 8, width),)


@case()
def squeezed_dimensions():
    def kernel(x, bias, out):
        assert x.shape == (8, 16) and bias.shape == (16,)
        out[...] = x[...] + bias[...]

    f = pallas_call(
        kernel,
        struct(3, 16, 16),
        grid=(3, 2),
        in_specs=[
            pl.BlockSpec((None, 8, 16), lambda b, i: (b, i, 0)),
            pl.BlockSpec((pl.squeezed, 16), lambda b, i: (b, 0)),
        ],
        out_specs=pl.BlockSpec((None, 8, 16), lambda b, i: (b, i, 0)),
    )
    return f, (floats(0, 3, 16, 16), floats(1, 3, 16))


@case()
def element_blocks_overlap():
    def kernel(x, out):
        out[...] = x[:8] + x[1:9] + x[2:10]

    f = pallas_call(
        kernel,
        struct(32, 4, dtype=np.int32),
        grid=(4,),
        in_specs=[pl.BlockSpec((pl.Element(10), 4), lambda i: (i * 8, 0))],
        out_specs=pl.BlockSpec((8, 4), lambda i: (i, 0)),
    )
    return f, (integers(0, 34, 4),)


@case()
def bounded_slices_start_anywhere():
    def kernel(x, y, out):
        out[...] = x[...] + y[...]

    f = pallas_call(
        kernel,
        struct(4, 3, 4, dtype=np.int32),
        grid=(4,),
        in_specs=[
            pl.BlockSpec((pl.BoundedSlice(3), 4), lambda i: (pl.ds(i * 2 + 1, 3), 0)),
            pl.BlockSpec((pl.BoundedSlice(3), 4), lambda i: (pl.ds(2, 3), 0)),
        ],
        out_specs=pl.BlockSpec((None, 3, 4), lambda i: (i, 0, 0)),
    )
    x, y = integers(0, 11, 4), integers(1, 11, 4)
    # JAX's interpreter doesn't know such blocks.
    return f, (x, y), np.stack([x[start : start + 3] + y[2:5] for start in (1, 3, 5, 7)])


@case()
def scalar_prefetch_gather():
    def kernel(indices, x, out):
        out[...] = x[...] + indices[pl.program_id(0)].astype(jnp.float32)

    f = pallas_call(
        kernel,
        struct(6, 1, 8),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(6,),
            in_specs=[pl.BlockSpec((1, 1, 8), lambda i, indices: (indices[i], 0, 0))],
            out_specs=pl.BlockSpec((1, 1, 8), lambda i, indices: (i, 0, 0)),
        ),
    )
    return f, (np.array([3, 0, 9, 9, 1, 5], np.int32), floats(0, 10, 1, 8))


@case()
def scalar_prefetch_block_sparse_matmul():
    def kernel(rows, columns, x, y, zeros, out, sums):
        del zeros
        step = pl.program_id(1)
        row = rows[step]

        @pl.when((step == 0) | (row != rows[jnp.maximum(step - 1, 0)]))
        def _():
            sums[...] = jnp.zeros_like(sums)

        sums[...] += jnp.dot(x[...], y[...], preferred_element_type=jnp.float32)
        out[...] = sums[...]

    def matmul(rows, columns, blocks, y):
        return pallas_call(
            kernel,
            struct(24, 16),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=(2, 4),
                in_specs=[
                    pl.BlockSpec((None, 8, 8), lambda n, s, rows, columns: (s, 0, 0)),
                    pl.BlockSpec((8, 8), lambda n, s, rows, columns: (columns[s], n)),
                    pl.BlockSpec((8, 8), lambda n, s, rows, columns: (rows[s], n)),
                ],
                out_specs=pl.BlockSpec((8, 8), lambda n, s, rows, columns: (rows[s], n)),
                scratch_shapes=[pltpu.VMEM((8, 8), jnp.float32)],
            ),
            input_output_aliases={4: 0},
        )(rows, columns, blocks, y, jnp.zeros((24, 16)))

    return matmul, (
        np.array([0, 0, 2, 2], np.int32),
        np.array([1, 2, 0, 2], np.int32),
        integers(0, 4, 8, 8, dtype=np.float32),
        integers(1, 24, 16, dtype=np.float32),
    )


@case()
def dynamic_grid():
    def kernel(x, out):
        @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
        def _():
            out[...] = jnp.zeros_like(out)

        out[...] += x[...] * (1 + pl.program_id(1)) + pl.num_programs(0)

    def run(n, m, x):
        return pallas_call(
            kernel,
            struct(8, 8, dtype=np.int32),
            grid=(n, m),
            in_specs=[pl.BlockSpec((8, 8), lambda i, j: (i, 0))],
            out_specs=pl.BlockSpec((8, 8), lambda i, j: (0, 0)),
        )(x)

    return run, (np.int32(3), np.int32(2), integers(0, 32, 8))


@case()
def dynamic_grid_of_an_array():
    """JAX's interpreter refuses a size that isn't a scalar."""

    def run(n, x):
        def kernel(x, out):
            out[...] = x[...] + pl.num_programs(0)

        block = pl.BlockSpec((8,), lambda i: (i,))
        out = struct(32, dtype=np.int32)
        return pallas_call(kernel, out, grid=(n,), in_specs=[block], out_specs=block)(x)

    x = integers(0, 32)
    return run, (np.array([4], np.int32), x), x + 4


@case()
def input_output_aliases_partial_update():
    def kernel(x, y, out):
        del y
        out[...] = x[...] * 10

    def run(x, y):
        # Only blocks 1 and 3 of y are written; the others keep what y held.
        return pallas_call(
            kernel,
            struct(4, 8),
            grid=(2,),
            in_specs=[
                pl.BlockSpec((1, 8), lambda i: (i, 0)),
                pl.BlockSpec((1, 8), lambda i: (2 * i + 1, 0)),
            ],
            out_specs=pl.BlockSpec((1, 8), lambda i: (2 * i + 1, 0)),
            input_output_aliases={1: 0},
        )(x, y), y + 1

    return run, (floats(0, 2, 8), floats(1, 4, 8))


@case()
def scratch_persists_over_the_grid():
    def kernel(x, out, count, before):
        i = pl.program_id(0)

        @pl.when(i == 0)
        def _():
            count[0] = 0
            before[...] = jnp.zeros_like(before)

        out[...] = before[...] + count[0]
        before[...] = x[...]
        count[0] += 1

    f = pallas_call(
        kernel,
        struct(5, 8, dtype=np.int32),
        grid=(5,),
        in_specs=[pl.BlockSpec((1, 8), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((1, 8), lambda i: (i, 0)),
        scratch_shapes=[pltpu.SMEM((1,), jnp.int32), pltpu.VMEM((1, 8), jnp.int32)],
    )
    return f, (integers(0, 5, 8),)


@case()
def three_dimensional_grid_order():
    def kernel(out, count):
        i, j, k = (pl.program_id(axis) for axis in range(3))

        @pl.when((i == 0) & (j == 0) & (k == 0))
        def _():
            count[0] = 0

        out[i, j, k] = count[0]
        count[0] = count[0] + 1

    f = pallas_call(
        kernel,
        struct(2, 3, 4, dtype=np.int32),
        grid=(2, 3, 4),
        out_specs=pl.BlockSpec(memory_space=pltpu.SMEM),
        scratch_shapes=[pltpu.SMEM((1,), jnp.int32)],
    )
    return f, ()


@case()
def scalar_in_smem_and_pytrees():
    def kernel(params, x, out):
        scale, shift = params
        out["scaled"][...] = x[...] * scale[0]
        out["shifted"][...] = x[...] + shift[0, 1]

    smem = pl.BlockSpec(memory_space=pltpu.SMEM)
    block = pl.BlockSpec((4, 8), lambda i: (i, 0))
    f = pallas_call(
        kernel,
        {"scaled": struct(8, 8), "shifted": struct(8, 8)},
        grid=(2,),
        in_specs=[(smem, smem), block],
        out_specs={"scaled": block, "shifted": block},
    )
    params = (np.array([3], np.float32), np.array([[1, 2]], np.float32))
    return f, (params, floats(0, 8, 8))


@case()
def output_block_revisited():
    def kernel(x, out):
        @pl.when(pl.program_id(1) == 0)
        def _():
            out[...] = jnp.full_like(out, -(2**31))

        out[...] = jnp.maximum(out[...], x[...])

    f = pallas_call(
        kernel,
        struct(16, 8, dtype=np.int32),
        grid=(2, 3),
        in_specs=[pl.BlockSpec((None, 8, 8), lambda i, k: (k, i, 0))],
        out_specs=pl.BlockSpec((8, 8), lambda i, k: (i, 0)),
    )
    return f, (integers(0, 3, 16, 8, low=-(2**31), high=2**31 - 1),)


@case()
def scalar_prefetch_that_cells_write_to():
    def kernel(counts, x, out):
        i = pl.program_id(0)
        counts[0] += 1
        out[...] = x[...] * counts[0] + counts[1]
        counts[1] = i

    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, grid=(4,),
        in_specs=[pl.BlockSpec((1, 8), lambda i, counts: (i * counts[0], 0))],
        out_specs=pl.BlockSpec((1, 8), lambda i, counts: (i, 0)),
    )  # fmt: skip
    f = pallas_call(kernel, struct(4, 8, dtype=np.int32), grid_spec=spec)
    return f, (np.array([1, 5], np.int32), integers(0, 4, 8))
