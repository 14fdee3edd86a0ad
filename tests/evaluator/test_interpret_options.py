"""Options of pltpu.InterpretParams that change what a kernel does, against JAX's interpreter."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
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


# -- skip_floating_point_ops ------------------------------------------------------------------


SKIPPING = pltpu.InterpretParams(skip_floating_point_ops=True)


def test_floats_are_infinite_and_the_rest_is_computed():
    """What is copied or isn't computed stays, as do literals."""

    def kernel(x, n, o, copied, whole, few, s):
        pltpu.sync_copy(x, copied)
        count = lax.fori_loop(0, 3, lambda i, c: (c[0] + n[0, i], c[1] * 2.0), (0, x[0, 0]))[0]
        whole[...] = n[...] * 2 + count + (x[...] > 5.0).astype(jnp.int32)
        o[...] = (x[...] * 2.0) @ x[...].T
        few[0] = 0.5
        few[1] = lax.cond(n[0, 0] > 0, lambda: x[0, 0], lambda: x[0, 1])
        pltpu.store(s.at[...], x[...], mask=n[...] > 2)
        few[2] = jnp.sum(s[...]).astype(jnp.float32)

    call = pl.pallas_call(
        kernel, interpret=SKIPPING,
        out_shape=[f32(8, 8), f32(8, 8), jax.ShapeDtypeStruct((8, 8), jnp.int32), f32(4)],
        in_specs=[pl.BlockSpec(memory_space=VMEM)] * 2,
        out_specs=[pl.BlockSpec(memory_space=s) for s in (VMEM, VMEM, VMEM, SMEM)],
        scratch_shapes=[VMEM((8, 8), jnp.float32)],
    )  # fmt: skip
    check(call, [numbers(8, 8), numbers(8, 8).astype(jnp.int32)])


def test_a_function_whose_results_are_whole_is_computed():
    """Its operands are infinite."""

    @jax.custom_jvp
    def rounded(x):
        return (jnp.tanh(x) + 0.5).astype(jnp.int32), x + 1

    rounded.defjvp(lambda *_: None)

    def kernel(x, o, p):
        o[...], p[...] = rounded(x[...])

    out = [jax.ShapeDtypeStruct((8, 128), jnp.int32), f32(8, 128)]
    check(pl.pallas_call(kernel, out_shape=out, interpret=SKIPPING), [numbers(8, 128)])


# -- grid_point_recorder ----------------------------------------------------------------------


def recorded(call, *args):
    """The cells of a call and their cores, as JAX and the evaluator tell the user's recorder."""
    seen = []

    def recorder(*given):  # a token comes first since JAX 0.10
        *token, cell, core = given
        seen.append((int(core), tuple(map(int, cell))))
        return token[0] if token else ()

    f = call(recorder)
    jax.block_until_ready(jax.jit(f)(*args))
    want = sorted(seen, key=lambda one: one[0])  # JAX's cores run at the same time
    seen.clear()
    run(f, *args)
    return want, seen


@pytest.mark.parametrize("semantics, cores, seed", [
    (("arbitrary", "arbitrary"), 1, None), (("parallel", "arbitrary"), 3, None),
    (("parallel", "parallel"), 2, 7),
])  # fmt: skip
def test_a_recorder_of_cells(semantics, cores, seed):
    name = "num_cores_or_threads"
    name = name if name in OPTIONS else "num_cores_per_device"

    def kernel(o):
        o[...] = jnp.full_like(o, pl.program_id(0))

    def call(recorder):
        options = {"grid_point_recorder": recorder, "random_seed": seed, name: cores}
        return pl.pallas_call(
            kernel, out_shape=f32(32, 256), grid=(4, 2),
            out_specs=spec((8, 128), lambda i, j: (i, j)),
            compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
            interpret=pltpu.InterpretParams(**options),
        )  # fmt: skip

    want, got = recorded(call)
    assert got == want * 2  # as lowered, and optimised


def test_a_recorder_without_a_grid():
    def kernel(o):
        o[...] = jnp.zeros_like(o)

    def call(recorder):
        options = pltpu.InterpretParams(grid_point_recorder=recorder)
        return pl.pallas_call(kernel, out_shape=f32(8, 128), interpret=options)

    want, got = recorded(call)
    assert got == want * 2 == [(0, ())] * 2


def test_a_recorder_of_the_cores_of_a_mesh():
    def call(recorder):
        options = pltpu.InterpretParams(grid_point_recorder=recorder)

        def body(refs):
            @pl.core_map(pltpu.create_tensorcore_mesh("core", num_cores=2), interpret=options)
            def _():
                pltpu.sync_copy(refs[0], refs[1])

        return lambda x: pl.run_state(body)((x, jnp.zeros_like(x)))[1]

    want, got = recorded(call, numbers(8, 128))
    assert got == want * 2
