"""Kernels of every form in which a script can hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, PartitionSpec

FORMS: dict[str, Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]] = {}


def form(make):
    FORMS[make.__name__] = make
    return make


def shape(*sizes: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def add_one(x_ref, o_ref):
    o_ref[...] = x_ref[...] + 1


def added(interpret: Any = False, **options: Any):
    """x + 1 in blocks of 128 rows."""
    block = pl.BlockSpec((128, 256), lambda i: (i, 0))
    return pl.pallas_call(
        add_one, grid=(4,), in_specs=[block], out_specs=block, out_shape=shape(512, 256),
        interpret=interpret, **options,
    )  # fmt: skip


def bad_blocks(interpret: Any = True):
    """Blocks of 100 x 100, which no TPU has."""
    block = pl.BlockSpec((100, 100), lambda i: (i, 0))
    return pl.pallas_call(
        add_one, grid=(5,), in_specs=[block], out_specs=block, out_shape=shape(500, 300),
        interpret=interpret,
    )  # fmt: skip


@form
def no_interpreter():
    return jax.jit(added()), (shape(512, 256),)


@form
def interpreted():
    return jax.jit(added(interpret=True)), (shape(512, 256),)


@form
def interpret_params():
    return jax.jit(added(interpret=pltpu.InterpretParams())), (shape(512, 256),)


@form
def vmapped():
    return jax.jit(jax.vmap(added(interpret=True))), (shape(3, 512, 256),)


@form
def scanned():
    call = pl.pallas_call(add_one, out_shape=shape(8, 128), interpret=True)
    return jax.jit(lambda x: jax.lax.scan(lambda c, _: (call(c), None), x, length=3)[0]), (
        shape(8, 128),
    )


@form
def differentiated():
    def square(x_ref, o_ref):
        o_ref[...] = x_ref[...] * x_ref[...]

    call = pl.pallas_call(square, out_shape=shape(8, 128), interpret=True)
    return jax.jit(lambda x: jax.jvp(call, (x,), (x,))[1]), (shape(8, 128),)


@form
def compiler_params():
    params = pltpu.CompilerParams(dimension_semantics=("parallel",))
    return jax.jit(added(compiler_params=params)), (shape(512, 256),)


@form
def scalar_prefetch():
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(4,),
        in_specs=[pl.BlockSpec((8, 128), lambda i, rows: (rows[i], 0))],
        out_specs=pl.BlockSpec((8, 128), lambda i, rows: (i, 0)),
    )

    def double(rows_ref, x_ref, o_ref):
        o_ref[...] = x_ref[...] * 2

    call = pl.pallas_call(double, grid_spec=spec, out_shape=shape(32, 128), interpret=True)
    return jax.jit(call), (shape(4, dtype=np.int32), shape(32, 128))


@form
def pipelined():
    block = pl.BlockSpec((128, 256), lambda i: (i, 0))

    def kernel(x_ref, o_ref):
        pltpu.emit_pipeline(add_one, grid=(4,), in_specs=[block], out_specs=[block])(x_ref, o_ref)

    hbm = pl.BlockSpec(memory_space=pl.ANY)
    call = pl.pallas_call(kernel, in_specs=[hbm], out_specs=hbm, out_shape=shape(512, 256))
    return jax.jit(call), (shape(512, 256),)


@form
def core_mapped():
    mesh = pltpu.create_tensorcore_mesh("core", num_cores=1)

    def function(x):
        def body(refs):
            x_ref, o_ref = refs

            @pl.core_map(mesh)
            def _():
                pltpu.sync_copy(x_ref, o_ref)

        return pl.run_state(body)((x, jnp.zeros_like(x)))[1]

    return jax.jit(function), (shape(8, 128),)


@form
def ring():
    """Each of the devices sends its part to the next one."""
    count = len(jax.devices())
    kinds = getattr(pltpu, "DeviceIdType", None) or pl.DeviceIdType

    def kernel(x_ref, o_ref, sent, received):
        after = jax.lax.rem(jax.lax.axis_index("x") + 1, count)
        copy = pltpu.make_async_remote_copy(
            x_ref, o_ref, sent, received, device_id=(after,), device_id_type=kinds.MESH
        )
        copy.start()
        copy.wait()

    hbm = pl.BlockSpec(memory_space=pl.ANY)
    call = pl.pallas_call(
        kernel, in_specs=[hbm], out_specs=hbm, out_shape=shape(8, 128),
        scratch_shapes=[pltpu.SemaphoreType.DMA, pltpu.SemaphoreType.DMA],
    )  # fmt: skip
    mesh = Mesh(np.array(jax.devices()), ("x",))
    along = PartitionSpec("x")
    mapped = jax.shard_map(call, mesh=mesh, in_specs=along, out_specs=along, check_vma=False)
    return jax.jit(mapped), (shape(8 * count, 128),)
