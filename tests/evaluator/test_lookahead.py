"""Blocks that a TPU fetches before the cell runs that reads them.

What the values have to be is in JAX's issue 39179 (a table that the kernel rewrites), and follows
from how a pipeline works (an input that is an output, too). JAX can't run these kernels here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.evaluator import passes
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower

N = 5
X = jnp.broadcast_to(jnp.arange(N, dtype=jnp.float32)[:, None, None], (N, 8, 128))
ROW = (None, 8, 128)


def run(f, *args):
    """The first element of each block, with passes and without."""
    jaxpr = jax.make_jaxpr(f)(*args)
    arrays = [np.asarray(a) for a in args]
    (plain,) = Executable(lower(jaxpr))(*arrays)
    (optimised,) = Executable(passes.optimise(lower(jaxpr)))(*arrays)
    np.testing.assert_array_equal(plain, optimised)
    return plain[:, 0, 0].tolist()


def rewritten_table(interpret, mode, grid=(N,), place=lambda i: i):
    def kernel(table, x_ref, o_ref):
        for i in range(1, N):
            table[i] = 4
        o_ref[...] = x_ref[...]

    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, grid=grid,
        in_specs=[
            pl.BlockSpec(ROW, lambda *a: (a[-1][place(*a[:-1])], 0, 0), pipeline_mode=mode)
        ],
        out_specs=pl.BlockSpec(ROW, lambda *a: (place(*a[:-1]), 0, 0)),
    )  # fmt: skip
    call = pl.pallas_call(
        kernel, grid_spec=spec, out_shape=jax.ShapeDtypeStruct(X.shape, X.dtype),
        interpret=interpret,
    )  # fmt: skip
    return run(call, jnp.arange(N, dtype=jnp.int32), X)


@pytest.mark.parametrize("checked", [False, True])
def test_the_next_block_is_found_before_the_cell_runs(checked):
    interpret = pltpu.InterpretParams() if checked else False
    assert rewritten_table(interpret, None) == [0, 1, 4, 4, 4]
    assert rewritten_table(interpret, pl.Buffered(2)) == [0, 1, 4, 4, 4]
    assert rewritten_table(interpret, pl.Buffered(1)) == [0, 4, 4, 4, 4]


def test_the_interpreter_sees_the_operands_themselves():
    assert rewritten_table(True, None) == [0, 1, 2, 3, 4]


def test_the_next_cell_of_a_grid_of_several_axes():
    assert rewritten_table(False, None, (1, N, 1), lambda i, j, k: j) == [0, 1, 4, 4, 4]


def aliased(read, write, mode=None, interpret=False):
    """Each cell adds one to the block that ``read`` names, and writes the block of ``write``."""

    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] + 1

    call = pl.pallas_call(
        kernel, grid=(N,), interpret=interpret, input_output_aliases={0: 0},
        in_specs=[pl.BlockSpec(ROW, lambda i: (read(i), 0, 0), pipeline_mode=mode)],
        out_specs=pl.BlockSpec(ROW, lambda i: (write(i), 0, 0)),
        out_shape=jax.ShapeDtypeStruct(X.shape, X.dtype),
    )  # fmt: skip
    return run(call, jnp.zeros_like(X))


def test_a_block_that_the_last_cell_wrote_was_fetched_before():
    def last(i):
        return jnp.maximum(i - 1, 0)

    assert aliased(last, lambda i: i) == [1, 1, 1, 1, 1]
    assert aliased(last, lambda i: i, pl.Buffered(1)) == [1, 2, 3, 4, 5]


def test_a_block_that_an_earlier_cell_wrote_is_seen():
    assert aliased(lambda i: jnp.maximum(i - 2, 0), lambda i: i) == [1, 1, 1, 2, 2]


def test_a_block_that_stays_is_not_fetched_again():
    assert aliased(lambda i: i // 2, lambda i: i // 2) == [1, 1, 1, 0, 0]


def test_a_block_of_its_own_cell_alone():
    assert aliased(lambda i: i, lambda i: i) == [1] * N
