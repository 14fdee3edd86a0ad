"""Products of matrices: the example's, and those in jax.experimental.pallas.ops.tpu."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import matmul
from jax.experimental.pallas.ops.tpu import matmul as tpu_matmul
from jax.experimental.pallas.ops.tpu.megablox import gmm

from kernels.kernel import Built, Kernel, gradients, integers, normal


def relu_matmul(size: int) -> Built:
    return matmul.matmul, (normal(size, size), normal(size, size, seed=1))


def blocked(x: jax.Array, y: jax.Array, block: int, **options: Any) -> Built:
    f = functools.partial(tpu_matmul.matmul, block_shape=(block, block), block_k=block, **options)
    return f, (x, y)


def bytes_multiplied(size: int, block: int) -> Built:
    x, y = (integers(-128, 128, size, size, dtype=jnp.int8, seed=seed) for seed in (0, 1))
    return blocked(x, y, block, out_dtype=jnp.int32)


def grouped(rows: int, groups: int, transform: Any = lambda f: f) -> Built:
    sizes = jnp.asarray([rows // 8] * 7 + [rows // 8 - 40, 40][: groups - 7], jnp.int32)

    def f(x: jax.Array, y: jax.Array) -> jax.Array:
        return gmm(x, y, sizes, jnp.float32, (128, 128, 128))

    return transform(f), (normal(rows, 256), normal(groups, 256, 256, seed=1))


def vmapped(batch: int, size: int) -> Built:
    args = normal(batch, size, size), normal(batch, size, size, seed=1)
    return jax.vmap(matmul.matmul), args


def halves(size: int, dtype: Any = jnp.bfloat16) -> tuple[jax.Array, jax.Array]:
    return normal(size, size, dtype=dtype), normal(size, size, dtype=dtype, seed=1)


KERNELS: dict[str, Kernel] = {
    "matmul 512 f32, blocks of 128": Kernel(
        lambda: blocked(*halves(512, jnp.float32), block=128)
    ),
    "matmul 512 bf16, blocks of 128": Kernel(lambda: blocked(*halves(512), block=128), rtol=8e-3),
    "matmul 512 i8, blocks of 128": Kernel(lambda: bytes_multiplied(512, 128)),
    "matmul 2048 f32, blocks of 512": Kernel(
        lambda: blocked(*halves(2048, jnp.float32), block=512)
    ),
    "matmul with relu 512 f32": Kernel(lambda: relu_matmul(512)),
    "matmul with relu 256 f32, vmap over 4": Kernel(lambda: vmapped(4, 256)),
    "grouped matmul (megablox)": Kernel(lambda: grouped(1024, 9)),
    "grouped matmul (megablox), gradient": Kernel(lambda: grouped(1024, 9, gradients)),
}
