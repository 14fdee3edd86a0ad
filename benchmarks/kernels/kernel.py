"""What a measured kernel is, and the arrays that kernels are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# A function of arrays that jax.jit takes, and the arrays.
Built = tuple[Callable[..., Any], tuple[jax.Array, ...]]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel that is measured.

    build: makes the function and its arguments.
    calls: how many warm calls there are, if they don't take too long together.
    rtol: how far, relative to the largest value of the result, a float may lie from stock's.
    needs: a package that the kernel is from, if that isn't JAX.
    reference: what the results are, from the arguments, for where stock takes too long to say.
    for_device: under the shim it is called as on a TPU, since JAX's interpreters fail on it.
    """

    build: Callable[[], Built]
    calls: int = 100
    rtol: float = 1e-5
    needs: str | None = None
    reference: Callable[..., Any] | None = None
    for_device: bool = False


def normal(*shape: int, dtype: Any = jnp.float32, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def integers(low: int, high: int, *shape: int, dtype: Any = jnp.int32, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(low, high, shape), dtype)


def gradients(f: Callable[..., jax.Array]) -> Callable[..., Any]:
    """The gradients of a function's sum, weighted so that each element counts differently."""

    def loss(*args: jax.Array) -> jax.Array:
        out = f(*args)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

    def value(*args: jax.Array) -> Any:
        return jax.grad(loss, tuple(range(len(args))))(*args)

    return value
