"""Random bits: the counter-based generators in jax.experimental.pallas.ops.tpu."""

from __future__ import annotations

import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.random import philox, threefry

from kernels.kernel import Built, Kernel


def threefry_bits(rows: int, columns: int) -> Built:
    key = jnp.asarray([1, 2], jnp.uint32)
    return lambda key: threefry.plthreefry_random_bits(key, 32, (rows, columns)), (key,)


def philox_bits(rows: int, columns: int) -> Built:
    key = jnp.asarray([1, 2], jnp.uint32)
    return lambda key: philox.philox_random_bits(key, 32, (rows, columns)), (key,)


KERNELS: dict[str, Kernel] = {
    "threefry 1024x1024": Kernel(lambda: threefry_bits(1024, 1024)),
    "philox 512x512": Kernel(lambda: philox_bits(512, 512)),
}
