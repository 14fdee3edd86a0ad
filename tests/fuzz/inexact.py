"""Random kernels of floats that are rounded, with a bound of how far two right results are apart.

All values are positive and of one shape, so that no operation magnifies a relative error more
than is counted here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from tests.fuzz.operations import USUAL, Choices

SHAPE = (4, 8)
LOW, HIGH = 0.5, 2.0
# Where a bound as large as this is reached, a kernel ends.
_ENOUGH = 16.0


class Number(NamedTuple):
    """An array within ``low`` and ``high``; ``error``: how far two right results may be apart,
    relative, in units of the type's eps."""

    x: Any
    low: float = LOW
    high: float = HIGH
    error: float = 0.0


# The range of the result, and by how much a relative error of the operand grows.
_UNARY: dict[Any, tuple[Callable[[float], float], float]] = {
    lax.exp: (math.exp, HIGH),
    lax.exp2: (lambda x: 2.0**x, HIGH),
    lax.log1p: (math.log1p, 1.0),
    lax.tanh: (math.tanh, 1.0),
    lax.logistic: (lambda x: 1 / (1 + math.exp(-x)), 1.0),
    lax.sqrt: (math.sqrt, 0.5),
    lax.rsqrt: (lambda x: 1 / math.sqrt(x), 0.5),
    lax.expm1: (math.expm1, 1 + HIGH),
}


class InexactCall(Choices):
    """A random kernel. After ``function`` is traced, ``rtol`` says how near is near enough."""

    def __init__(self, source: random.Random):
        super().__init__(source)
        dtype = self.one(USUAL.floats)
        cells = self.number(1, 2)
        data = np.random.default_rng(self.number(0, 1 << 16))
        shape = (cells * SHAPE[0], SHAPE[1])
        self.args = [data.uniform(LOW, HIGH, shape).astype(dtype) for _ in range(2)]
        self.rtol = 0.0
        block = pl.BlockSpec(SHAPE, lambda i: (i, 0))

        def kernel(first, second, out):
            numbers = [Number(first[...]), Number(second[...])]
            for _ in range(self.number(2, 10)):
                if numbers[-1].error < _ENOUGH:
                    numbers.append(self._clamped(self._next(numbers)))
            out[...] = numbers[-1].x
            self.rtol = numbers[-1].error * float(jnp.finfo(dtype).eps)

        self.function = pl.pallas_call(
            kernel, jax.ShapeDtypeStruct(shape, dtype), grid=(cells,),
            in_specs=[block, block], out_specs=block, interpret=True,
        )  # fmt: skip

    def _next(self, numbers: list[Number]) -> Number:
        a, b = numbers[-1], self.one(numbers)
        kind = self.one(["unary", "unary", "add", "mul", "div", "max", "sum", "dot"])
        if kind == "unary":
            function = self.one(_UNARY)
            bound, grows = _UNARY[function]
            low, high = sorted((bound(a.low), bound(a.high)))
            # Functions are within 4 ulp. bfloat16 is computed in float32; so is float16, but by
            # XLA with AVX-512.
            own = 1.0 if a.x.dtype == jnp.bfloat16 else 4.0
            return Number(function(a.x), low, high, a.error * grows + own)
        worst, both = max(a.error, b.error), a.error + b.error + 1
        if kind == "add":
            return Number(a.x + b.x, a.low + b.low, a.high + b.high, worst + 1)
        if kind == "mul":
            return Number(a.x * b.x, a.low * b.low, a.high * b.high, both)
        if kind == "div":
            return Number(a.x / b.x, a.low / b.high, a.high / b.low, both)
        if kind == "max":
            return Number(lax.max(a.x, b.x), max(a.low, b.low), max(a.high, b.high), worst)
        if kind == "sum":
            axis = self.number(0, 1)
            n = SHAPE[axis]
            x = jnp.broadcast_to(jnp.sum(a.x, axis, keepdims=True), SHAPE)
            return Number(x, a.low * n, a.high * n, a.error + n)
        n = SHAPE[0]
        square = lax.dot_general(a.x, b.x, (((0,), (0,)), ((), ())))[:n]
        return Number(square, n * a.low * b.low, n * a.high * b.high, both + n)

    def _clamped(self, a: Number) -> Number:
        """Brings the values near one again: first by a power of two, which is exact."""
        scale = 2.0 ** -round(math.log2(math.sqrt(a.low * a.high)))
        x = lax.clamp(jnp.asarray(LOW, a.x.dtype), a.x * scale, jnp.asarray(HIGH, a.x.dtype))
        low, high = (min(max(end * scale, LOW), HIGH) for end in (a.low, a.high))
        return Number(x, low, high, a.error)
