"""Kernels that talk to other devices, for the tests: what a Pallas author writes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

P = jax.sharding.PartitionSpec
ANY = pl.ANY
DMA, REGULAR = pltpu.SemaphoreType.DMA, pltpu.SemaphoreType.REGULAR
LOGICAL, MESH = pl.DeviceIdType.LOGICAL, pl.DeviceIdType.MESH


def signal(sem, n=1, **where):
    function = getattr(pl, "semaphore_signal", None) or pltpu.semaphore_signal
    function(sem, n, **where)


def wait(sem, n=1, **how):
    function = getattr(pl, "semaphore_wait", None) or pltpu.semaphore_wait
    function(sem, n, **how)


def mesh(*sizes, names="xyz"):
    devices = np.array(jax.devices()[: int(np.prod(sizes))]).reshape(sizes)
    return jax.sharding.Mesh(devices, tuple(names[: len(sizes)]))


def spec(space):
    return pl.BlockSpec(memory_space=space)


def call(kernel, out, *, scratch=(), space=ANY, inputs=1, **kwargs):
    """A pallas_call whose refs are whole arrays in one memory space."""
    return pl.pallas_call(
        kernel,
        out_shape=out,
        in_specs=[spec(space)] * inputs,
        out_specs=jax.tree.map(lambda _: spec(space), out),
        scratch_shapes=list(scratch),
        compiler_params=pltpu.CompilerParams(collective_id=0),
        **kwargs,
    )


def over(function, on, in_specs, out_specs, **kwargs):
    check = kwargs.pop("check_vma", False)
    return jax.shard_map(
        function, mesh=on, in_specs=in_specs, out_specs=out_specs, check_vma=check, **kwargs
    )


def barrier(axis="x"):
    """Both neighbours have started this kernel."""
    me, n = lax.axis_index(axis), lax.axis_size(axis)
    sem = pltpu.get_barrier_semaphore()
    for other in (lax.rem(me + 1, n), lax.rem(me + n - 1, n)):
        signal(sem, 1, device_id={axis: other}, device_id_type=MESH)
    wait(sem, 2)


def ring_all_gather(n, shard, space=ANY):
    """Every device gets all shards, each passed on to the right. Each step has semaphores of its
    own: its left neighbour may start the next copy before the last one has arrived, and either may
    be the first."""

    def kernel(x_ref, o_ref, copy_sem, send_sem, recv_sem):
        me = lax.axis_index("x")
        right = lax.rem(me + 1, n)
        barrier()
        pltpu.make_async_copy(x_ref, o_ref.at[me], copy_sem).start()
        pltpu.make_async_copy(x_ref, o_ref.at[me], copy_sem).wait()

        def step(i, carry):
            slot = lax.rem(me + n - i, n)
            copy = pltpu.make_async_remote_copy(
                o_ref.at[slot], o_ref.at[slot], send_sem.at[i], recv_sem.at[i],
                device_id=(right,), device_id_type=MESH,
            )  # fmt: skip
            copy.start()
            copy.wait()
            return carry

        lax.fori_loop(0, n - 1, step, 0)

    out = jax.ShapeDtypeStruct((n, *shard.shape), shard.dtype)
    return call(kernel, out, scratch=[DMA, DMA((n - 1,)), DMA((n - 1,))], space=space)


def permute(shard, to, space=ANY, **where):
    """Each device's shard goes to the device that ``to(me, n)`` says."""

    def kernel(x_ref, o_ref, send_sem, recv_sem):
        barrier()
        device = to(lax.axis_index("x"), lax.axis_size("x"))
        copy = pltpu.make_async_remote_copy(
            x_ref, o_ref, send_sem, recv_sem, device_id=device, **where
        )
        copy.start()
        copy.wait()

    return call(kernel, shard, scratch=[DMA, DMA], space=space)


def ring_reduce_scatter(n, shard):
    """Of ``n`` chunks each device gets the sum over all devices of its own. A chunk's sum goes
    round to the right; its receiver says when there is room for the next."""
    chunk = jax.ShapeDtypeStruct(shard.shape[1:], shard.dtype)

    def kernel(x_ref, o_ref, sum_ref, got_ref, send_sem, recv_sem, room_sem):
        me = lax.axis_index("x")
        right, left = lax.rem(me + 1, n), lax.rem(me + n - 1, n)
        barrier()
        sum_ref[...] = x_ref[lax.rem(me + n - 1, n)]
        for step in range(n - 1):
            signal(room_sem, 1, device_id=(left,), device_id_type=MESH)
            wait(room_sem, 1)
            copy = pltpu.make_async_remote_copy(
                sum_ref, got_ref, send_sem, recv_sem, device_id=(right,), device_id_type=MESH
            )
            copy.start()
            copy.wait()
            sum_ref[...] = got_ref[...] + x_ref[lax.rem(me + 2 * n - 2 - step, n)]
        o_ref[...] = sum_ref[...]

    vmem = pltpu.VMEM(chunk.shape, chunk.dtype)
    return call(kernel, chunk, scratch=[vmem, vmem, DMA, DMA, REGULAR], space=pltpu.VMEM)


def double(x):
    """A kernel that talks to nobody."""

    def kernel(x_ref, o_ref):
        o_ref[...] = 2 * x_ref[...]

    return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)


def numbers(*shape, dtype=jnp.float32, seed=0):
    values = np.random.default_rng(seed).integers(-50, 50, shape)
    return jnp.asarray(values).astype(dtype)
