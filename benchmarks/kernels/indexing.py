"""Gathers and running sums."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.kernel import Built, Kernel, integers, normal


def rows_looked_up(rows: int, wanted: int) -> Built:
    """Each cell copies the row that a prefetched index names."""

    def kernel(_, table_ref, out_ref):
        out_ref[...] = table_ref[...]

    f = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((wanted, 1, 256), jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(wanted,),
            in_specs=[pl.BlockSpec((1, 1, 256), lambda i, which: (which[i], 0, 0))],
            out_specs=pl.BlockSpec((1, 1, 256), lambda i, which: (i, 0, 0)),
        ),
    )
    return f, (integers(0, rows, wanted), normal(rows, 1, 256))


def lanes_gathered(rows: int) -> Built:
    def kernel(x_ref, index_ref, out_ref):
        out_ref[...] = jnp.take_along_axis(x_ref[...], index_ref[...], axis=1)

    spec = pl.BlockSpec((8, 128), lambda i: (i, 0))
    f = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((rows, 128), jnp.float32),
        grid=(rows // 8,),
        in_specs=[spec, spec],
        out_specs=spec,
    )
    return f, (normal(rows, 128), integers(0, 128, rows, 128))


def running_sum(rows: int, columns: int) -> Built:
    """Blocks of rows, each going on from the sums that the block above it left in scratch."""

    def kernel(x_ref, out_ref, sums_ref):
        @pl.when(pl.program_id(0) == 0)
        def _start():
            sums_ref[...] = jnp.zeros_like(sums_ref)

        out_ref[...] = jnp.cumsum(x_ref[...], axis=0) + sums_ref[...]
        sums_ref[...] = out_ref[-1:, :]

    spec = pl.BlockSpec((64, columns), lambda i: (i, 0))
    f = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((rows, columns), jnp.float32),
        grid=(rows // 64,),
        in_specs=[spec],
        out_specs=spec,
        scratch_shapes=[pltpu.VMEM((1, columns), jnp.float32)],
    )
    return f, (normal(rows, columns),)


def histogram(size: int, bins: int) -> Built:
    """A loop over single elements, each of which is read, counted and written."""

    def kernel(x_ref, out_ref):
        out_ref[...] = jnp.zeros_like(out_ref)

        def count(i, _):
            out_ref[x_ref[i]] += 1
            return 0

        lax.fori_loop(0, size, count, 0)

    f = pl.pallas_call(kernel, jax.ShapeDtypeStruct((bins,), jnp.int32))
    return f, (integers(0, bins, size),)


KERNELS: dict[str, Kernel] = {
    "rows looked up, 512 of 4096": Kernel(lambda: rows_looked_up(4096, 512)),
    "lanes gathered 256x128": Kernel(lambda: lanes_gathered(256)),
    "running sum 1024x256": Kernel(lambda: running_sum(1024, 256)),
    "histogram of 2,000 numbers": Kernel(lambda: histogram(2000, 64)),
}
