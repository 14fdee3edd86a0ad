"""Random kernels some of whose arrays have no elements."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tests.fuzz.operations import USUAL, Choices

_DTYPES = tuple(map(np.dtype, ("float32", "int32", "uint8", "bool")))


class Empty(Choices):
    """A random kernel. Sums and products are of small whole numbers, so exact."""

    rtol = None

    def __init__(self, source: random.Random):
        super().__init__(source, USUAL)
        rng = np.random.default_rng(self.number(0, 1 << 16))
        self._rows, self._seed = self.number(1, 3), self.number(0, 1 << 16)
        self.args = [
            rng.integers(0, 3, (self._rows, *self._shape())).astype(self.one(_DTYPES))
            for _ in range(self.number(1, 3))
        ]
        self._scratch = pltpu.VMEM(self.args[0].shape[1:], self.args[0].dtype)

    def function(self, *args: Any) -> Any:
        def kernel(*refs):
            *ins, last, kept, buffer = refs
            buffer[...] = ins[0][...]
            last[...], kept[...] = self._body([buffer[...], *(ref[...] for ref in ins)])

        outs = [
            jax.ShapeDtypeStruct(args[0].shape, args[0].dtype),
            jax.ShapeDtypeStruct((self._rows, 3), jnp.float32),
        ]
        specs = [_row(a.shape) for a in (*args, *outs)]
        return pl.pallas_call(
            kernel, outs, grid=(self._rows,), in_specs=specs[:-2], out_specs=specs[-2:],
            scratch_shapes=[self._scratch],
        )(*args)  # fmt: skip

    def reference(self, *args: Any) -> Any:
        """Without a kernel: JAX's interpreter divides by the sizes of blocks."""
        rows = [self._body([args[0][i], *(a[i] for a in args)]) for i in range(self._rows)]
        return [jnp.stack(parts) for parts in zip(*rows, strict=True)]

    def _body(self, values: list[Any]) -> tuple[Any, Any]:
        draw = _Values(random.Random(self._seed))
        first = values[0]
        for _ in range(draw.number(2, 6)):
            values.append(draw.value(values))
        sums = [jnp.sum(v.astype(jnp.float32)) for v in values[-3:]]
        return jnp.where(first > 0, first, jnp.ones_like(first)), jnp.stack(sums)

    def _shape(self) -> tuple[int, ...]:
        return tuple(self.one([0, 0, 1, 2, 3]) for _ in range(self.number(1, 3)))


class _Values(Choices):
    def value(self, values: list[Any]) -> Any:
        x = self.one(values)
        kinds = ["cast", "arithmetic", "reduce", "concatenate", "reshape", "broadcast", "dot"]
        kinds += ["transpose", "cumulate", "sort", "take", "slice", "pad", "select", "scan", "loop"]
        return getattr(self, "_" + self.one(kinds))(x)

    def _cast(self, x):
        return x.astype(self.one(_DTYPES))

    def _arithmetic(self, x):
        return jnp.maximum(x.astype(jnp.int32) + 1, 2).astype(x.dtype)

    def _reduce(self, x):
        reduce: Callable[..., Any] = self.one([jnp.sum, jnp.prod, jnp.all, jnp.any])
        axes = self.axes(x.ndim)
        return reduce(x, axis=axes, keepdims=bool(self.number(0, 1)))

    def _concatenate(self, x):
        if not x.ndim:
            return x
        parts = [x] * self.number(1, 2)
        axis = self.number(0, x.ndim - 1)
        more = list(x.shape)
        more[axis] = self.number(0, 2)
        return jnp.concatenate([*parts, jnp.ones(more, x.dtype)], axis)

    def _reshape(self, x):
        return x.reshape(self.one([(x.size,), (1, x.size), (*x.shape, 1)]))

    def _broadcast(self, x):
        return jnp.broadcast_to(x, (self.number(0, 2), *x.shape))

    def _dot(self, x):
        a = x.astype(jnp.float32).reshape(self.one([(x.size, 1), (1, x.size)]))
        return jnp.dot(a, jnp.ones((a.shape[1], self.number(0, 2))))

    def _transpose(self, x):
        return x.T

    def _cumulate(self, x):
        return lax.cumsum(x.astype(jnp.int32), self.number(0, x.ndim - 1)) if x.ndim else x

    def _sort(self, x):
        return lax.sort(x.astype(jnp.int32)) if x.ndim else x

    def _take(self, x):
        if not x.ndim or not x.shape[0]:
            return x
        indices = jnp.zeros((self.number(0, 2),), jnp.int32)
        return jnp.take(x, indices, axis=0, mode="clip")

    def _slice(self, x):
        return x[: self.number(0, 1)] if x.ndim else x

    def _pad(self, x):
        return jnp.pad(x.astype(jnp.int32), (0, self.number(0, 1))) if x.ndim else x

    def _select(self, x):
        return jnp.where(x.astype(bool), x, jnp.zeros_like(x))

    def _scan(self, x):
        if not x.ndim:
            return x
        total, parts = lax.scan(lambda c, v: (c + jnp.sum(v.astype(jnp.int32)), v), jnp.int32(0), x)
        return parts if self.number(0, 1) else total

    def _loop(self, x):
        return lax.fori_loop(0, self.number(0, 2), lambda i, v: -v, x.astype(jnp.int32))


def _row(shape: tuple[int, ...]) -> pl.BlockSpec:
    return pl.BlockSpec((None, *shape[1:]), lambda i: (i, *(0,) * (len(shape) - 1)))
