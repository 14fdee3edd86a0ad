"""Options of pltpu.InterpretParams that change what a kernel does, against JAX's interpreter."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tests.evaluator.test_interpret_params import ANYWHERE, check_raises, f32, numbers, run, spec
from tests.oracle import compare

OPTIONS = {field.name for field in dataclasses.fields(pltpu.InterpretParams)}
VMEM, SMEM = pltpu.VMEM, pltpu.SMEM


def check(call, *arguments):
    """That results are JAX's, for each of some arguments."""
    of_jax = jax.jit(call)
    for args in arguments:
        for a, b in zip(run(call, *args), jax.tree.leaves(of_jax(*args)), strict=True):
            compare(a, np.asarray(b))


# -- buffer_bounds ----------------------------------------------------------------------------


@pytest.fixture
def padded(monkeypatch):
    """JAX has to know the TPU whose tiles they are, in any of its threads."""
    if "buffer_bounds" not in OPTIONS:
        pytest.skip("this JAX has no such option")
    info = sys.modules["jax._src.pallas.mosaic.tpu_info"]
    chip = info.chip_version_from_device_kind("TPU v6e")
    monkeypatch.setitem(info.registry, "cpu", lambda: info.get_tpu_info_for_chip(chip, 1))
    yield lambda **options: pltpu.InterpretParams(buffer_bounds="padded", **options)
    info.get_tpu_info.cache_clear()


@pytest.mark.parametrize("options", [
    {"out_of_bounds_reads": "raise"},
    {"out_of_bounds_reads": "uninitialized", "uninitialized_memory": "zero"},
])  # fmt: skip
def test_accesses_beside_a_buffer_in_its_tiles(padded, options):
    """Of a buffer of 10 x 150, which has tiles of 16 x 256."""

    def kernel(at, x, mask, o, s):
        rows, columns = pl.ds(at[0], 8), pl.ds(at[1], 128)
        s[...] = jnp.zeros_like(s)
        pltpu.sync_copy(x, s.at[rows, pl.ds(0, 128)])
        o[0] = s[rows, columns]
        o[1] = s[rows, pl.ds(0, 128)]
        s[rows, columns] = x[...]
        pltpu.sync_copy(s.at[rows, columns], o.at[2])
        pltpu.store(s.at[rows, columns], 2 * x[...], mask=mask[...] > 0)
        o[3] = s[rows, columns]

    call = pl.pallas_call(
        kernel, out_shape=f32(4, 8, 128), interpret=padded(**options),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, scratch_shapes=[VMEM((10, 150), jnp.float32)]
        ),
    )  # fmt: skip
    rest = numbers(8, 128), numbers(8, 128) % 3
    check(call, *[(jnp.int32([start, 128]), *rest) for start in (0, 1, 3, 8)])


@pytest.mark.parametrize("moved", ["input", "output"])
def test_blocks_beside_their_array(padded, moved):
    """Blocks of 5 rows, of an array of 10: the third is in its tiles."""

    def kernel(x, o):
        o[...] = x[...] + 1

    blocks = [spec((5, 128), lambda i: (i, 0)), spec((5, 128), lambda i: (i + 1, 0))]
    given, made = blocks[::-1] if moved == "input" else blocks
    call = pl.pallas_call(
        kernel, out_shape=f32(10, 128), grid=(2,), in_specs=[given], out_specs=made,
        interpret=padded(),
    )  # fmt: skip
    check(call, [numbers(10, 128)])


@pytest.mark.parametrize("access", ["read", "write"])
def test_outside_the_tiles(padded, access):
    def kernel(at, x, o, s):
        if access == "write":
            pltpu.sync_copy(x, s.at[pl.ds(at[0], 8)])
        o[...] = s[pl.ds(at[0], 8)]

    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, scratch_shapes=[VMEM((10, 128), jnp.float32)]
    )
    error = {"read": IndexError, "write": ValueError}[access]
    check_raises(
        error, f"Out-of-bounds {access}", kernel, f32(8, 128), jnp.int32([9]), numbers(8, 128),
        grid_spec=grid_spec, interpret=padded(),
    )


def test_a_block_outside_the_tiles(padded):
    def kernel(x, o):
        o[...] = x[...]

    block = spec((5, 128), lambda i: (i, 0))
    check_raises(
        IndexError, "Out-of-bounds block index", kernel, f32(20, 128), numbers(10, 128), grid=(4,),
        in_specs=[block], out_specs=block, interpret=padded(),
    )


def test_scalar_memory_has_no_tiles(padded):
    def kernel(x, o, s):
        pltpu.sync_copy(x.at[0], s.at[10])
        o[0, :] = o[0, :]

    check_raises(
        ValueError, "Out-of-bounds write", kernel, f32(8, 128), numbers(8, 128),
        in_specs=[ANYWHERE], scratch_shapes=[SMEM((10, 128), jnp.float32)], interpret=padded(),
    )
