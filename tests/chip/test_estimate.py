"""VMEM without the compiler: tiles, buffers, blocks and scratch."""

from __future__ import annotations

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim import settings
from pallas_shim.chip import api, estimate, tpus
from tests.chip.kernels import added, shape


@pytest.mark.parametrize(
    "sizes, dtype, size",
    [
        ((8, 128), np.float32, 4096),
        ((1, 1), np.float32, 128 * 4),  # one sublane
        ((3, 130), np.float32, 4 * 256 * 4),
        ((9, 128), np.float32, 16 * 128 * 4),
        ((2, 8, 128), np.float32, 2 * 4096),
        ((8, 128), ml_dtypes.bfloat16, 8 * 128 * 2),
        ((9, 128), ml_dtypes.bfloat16, 16 * 128 * 2),
        ((8, 128), np.int8, 8 * 128),
        ((1, 128), np.int8, 4 * 128),  # four elements share a word
        ((8, 128), np.bool_, 4096),
        ((8, 128), ml_dtypes.int4, 8 * 128 // 2),
        ((100,), np.float32, 128 * 4),
        ((), np.float32, 128 * 4),
    ],
)
def test_whole_tiles(sizes, dtype, size):
    assert estimate.padded(sizes, np.dtype(dtype)) == size


def held(call, *args):
    (site,) = api.kernels(call, *args)
    return estimate.vmem(site.equation)


def test_blocks_have_two_buffers(shim):
    assert [h.size for h in held(added(), shape(512, 256))] == [2 * 128 * 256 * 4] * 2


def test_a_block_that_stays_has_one(shim):
    """Along an axis of one cell, too; a scalar that is looked up may move it."""

    def sizes(index_map, grid=(4, 1), scalars=0):
        spec = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=scalars, grid=grid,
            in_specs=[pl.BlockSpec((8, 128), index_map)],
            out_specs=pl.BlockSpec((8, 128), lambda i, j, *_: (i, 0)),
        )  # fmt: skip
        call = pl.pallas_call(
            lambda *refs: refs[-1].__setitem__(..., refs[-2][...]), grid_spec=spec,
            out_shape=shape(8 * grid[0], 128),
        )  # fmt: skip
        args = [shape(4, dtype=np.int32)] * scalars
        return {h.what: h.size for h in held(call, *args, shape(64, 128))}["args[0]"]

    assert sizes(lambda i, j: (i, 0)) == sizes(lambda i, j: (j + i, 0)) == 2 * 4096
    assert sizes(lambda i, j: (j, 0)) == sizes(lambda i, j: (3, 0)) == 4096
    assert sizes(lambda i, j: (i, 0), grid=(1, 4)) == 4096


def test_a_kernel_without_a_grid_has_one(shim):
    call = pl.pallas_call(lambda x, o: o.__setitem__(..., x[...]), out_shape=shape(8, 128))
    assert [h.size for h in held(call, shape(8, 128))] == [4096, 4096]


def test_buffers_that_the_user_asked_for_scratch_and_other_memories(shim):
    three = pl.BlockSpec((8, 128), lambda i: (i, 0), pipeline_mode=pl.Buffered(3))
    two = pl.BlockSpec((8, 128), lambda i: (i, 0))
    hbm = pl.BlockSpec(memory_space=pl.ANY)

    def kernel(x_ref, y_ref, o_ref, scratch, scalars, semaphore):
        o_ref[...] = x_ref[...]

    call = pl.pallas_call(
        kernel, grid=(4,), in_specs=[three, hbm], out_specs=two,
        out_shape=shape(32, 128),
        scratch_shapes=[pltpu.VMEM((16, 200), np.float32), pltpu.SMEM((4,), np.int32),
                        pltpu.SemaphoreType.DMA],
    )  # fmt: skip
    found = held(call, shape(32, 128), shape(1024, 1024))
    assert [(h.what, h.size) for h in found] == [
        ("scratch", 16 * 256 * 4), ("args[0]" if found[1].what == "args[0]" else "x_ref", 3 * 4096),
        (found[2].what, 2 * 4096),
    ]  # fmt: skip


def test_other_kernels_have_no_estimate(shim):
    from tests.chip.kernels import FORMS

    function, args = FORMS["core_mapped"]()
    assert held(function, *args) is None
    assert jax.devices()[0].platform == "cpu"


def test_the_tpus_are_those_of_the_settings():
    assert tuple(tpus.TPUS) == tuple(settings.TPUS)


@pytest.mark.parametrize(
    "asked, devices, topology",
    [
        ("v6e", 1, "v6e:2x2"), ("v6e", 5, "v6e:2x4"), ("v5e", 16, "v5e:4x4"), ("v4", 8, "v4:2x2x1"),
        ("v4", 9, "v4:2x2x2"), ("v7x", 1, "tpu7x:2x2x1"), ("v5e:4x8", 1, "v5e:4x8"),
        ("v7x:2x2x2", 4, "tpu7x:2x2x2"),
    ],
)  # fmt: skip
def test_the_smallest_topology(asked, devices, topology):
    assert tpus.target(asked).topology_for(devices) == topology
