"""Random functions of several kernels, under JAX's transformations, by every way to run them."""

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

import pallas_shim
from tests.fuzz.operations import USUAL, Choices

_SHAPE = (8, 4)
# All of small whole numbers, so that every order of evaluation gives the same.
_UNARY: tuple[Callable[[Any], Any], ...] = (
    lambda x: x * 2 - 1, lambda x: x * x, jnp.abs, lambda x: jnp.maximum(x, 0), lambda x: -x,
)  # fmt: skip
_BINARY: tuple[Callable[[Any, Any], Any], ...] = (
    lambda x, y: x + y, lambda x, y: x * y, jnp.maximum, lambda x, y: jnp.where(x > y, x, 2 * y),
)  # fmt: skip
_PLAIN: tuple[Callable[[Any], Any], ...] = (
    lambda x: x[::-1], lambda x: jnp.roll(x, 1, 1), lambda x: x + 1, lambda x: x * x[:1],
)  # fmt: skip
_ROWS = pl.BlockSpec((2, _SHAPE[1]), lambda i: (i, 0))


def _call(kernel: Callable[..., None], *xs: Any, **options: Any) -> Any:
    usual: dict[str, Any] = {"grid": (4,), "in_specs": [_ROWS] * len(xs), "out_specs": _ROWS}
    out = jax.ShapeDtypeStruct(_SHAPE, jnp.float32)
    return pl.pallas_call(kernel, out, interpret=True, **usual | options)(*xs)


class Program(Choices):
    """A random function. ``ways``: what else than the evaluator alone has to give the same."""

    rtol = None

    def __init__(self, source: random.Random):
        super().__init__(source, USUAL)
        rng = np.random.default_rng(self.number(0, 1 << 16))
        steps = [self._step() for _ in range(self.number(2, 4))]

        def chain(x, y):
            for step in steps:
                x = step(x, y)
            return x

        count, self.function = self._transformed(chain)
        shape = (*(2,) * count, *_SHAPE)
        self.args = [rng.integers(-2, 3, shape).astype(np.float32) for _ in range(2)]
        self.ways: dict[str, Callable[..., Any]] = {
            "jit": jax.jit(self.function),
            "eager": self.function,
            "without jit": self._without_jit,
            "inside XLA's program": self._beside_a_callback,
        }

    def shimmed(self, way: str) -> Any:
        with pallas_shim.active():
            return self.ways[way](*map(jnp.asarray, self.args))

    def _without_jit(self, *args: Any) -> Any:
        with jax.disable_jit():
            return self.function(*args)

    def _beside_a_callback(self, *args: Any) -> Any:
        """With something in the function that only XLA does."""

        @jax.jit
        def f(*args):
            noise = lax.rng_uniform(jnp.float32(0), jnp.float32(1), (2,))
            return self.function(args[0] + 0 * noise[0], *args[1:])

        return f(*args)

    # -- kernels ------------------------------------------------------------------------------

    def _step(self) -> Callable[[Any, Any], Any]:
        kind = self.one(["unary", "binary", "sum", "rows", "alias", "derived", "plain", "cond"])
        op, both = self.one(_UNARY), self.one(_BINARY)
        if kind == "plain":
            plain = self.one(_PLAIN)
            return lambda x, y: plain(x)
        if kind == "unary":
            return lambda x, y: _unary(op, x)
        if kind == "binary":
            return lambda x, y: _binary(both, x, y)
        if kind == "sum":
            return lambda x, y: _summed(x)
        if kind == "rows":
            # Not zeros alone: XLA leaves out the addition of those, and so keeps a -0.
            order = np.array([*(self.number(0, 3) for _ in range(3)), self.number(1, 3)], np.int32)
            return lambda x, y: _looked_up(order, x)
        if kind == "alias":
            return lambda x, y: _call(_store(both), x, y, input_output_aliases={0: 0})
        if kind == "derived":
            return lambda x, y: _squared(x)
        return lambda x, y: lax.cond(x[0, 0] > 0, lambda x: _unary(op, x), lambda x: x, x)

    # -- transformations ------------------------------------------------------------------------

    def _transformed(self, f: Callable[..., Any]) -> tuple[int, Callable[..., Any]]:
        """The function, and how many axes its arguments have in front."""
        kind = self.one(
            ["none", "vmap", "vmap of one", "vmap twice", "jvp", "grad", "scan", "remat"]
        )
        if kind == "vmap":
            return 1, jax.vmap(f)
        if kind == "vmap of one":
            return 1, lambda x, y: jax.vmap(f, (0, None), 1)(x, y[0])
        if kind == "vmap twice":
            return 2, jax.vmap(jax.vmap(f), 1, 1)
        if kind == "jvp":
            return 0, lambda x, y: jax.jvp(lambda x: _binary(jnp.multiply, x, y), (x,), (y,))
        if kind == "grad":
            return 0, jax.grad(
                lambda x, y: jnp.sum(_squared(_squared(x)) * f(lax.stop_gradient(x), y))
            )
        if kind == "scan":
            return 0, lambda x, y: lax.scan(lambda c, _: (_unary(jnp.abs, c), f(c, y)), x, None, 2)
        if kind == "remat":
            return 0, jax.checkpoint(f)
        return 0, f


def _store(op: Callable[..., Any]) -> Callable[..., None]:
    def kernel(*refs):
        *ins, out = refs
        out[...] = op(*(ref[...] for ref in ins))

    return kernel


def _unary(op: Callable[[Any], Any], x: Any) -> Any:
    return _call(_store(op), x)


def _binary(op: Callable[[Any, Any], Any], x: Any, y: Any) -> Any:
    return _call(_store(op), x, y)


def _summed(x: Any) -> Any:
    def kernel(x, out):
        @pl.when(pl.program_id(0) == 0)
        def _():
            out[...] = jnp.zeros_like(out)

        out[...] += jnp.sum(x[...], 0, keepdims=True)

    return _call(kernel, x, out_specs=pl.BlockSpec(_SHAPE, lambda i: (0, 0)))


def _looked_up(order: np.ndarray, x: Any) -> Any:
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, grid=(4,), out_specs=pl.BlockSpec((2, 4), lambda i, order: (i, 0)),
        in_specs=[pl.BlockSpec((2, 4), lambda i, order: (order[i], 0))],
    )  # fmt: skip

    def kernel(order, x, out):
        out[...] = x[...] + order[pl.program_id(0)]

    out = jax.ShapeDtypeStruct(_SHAPE, jnp.float32)
    return pl.pallas_call(kernel, out, grid_spec=spec, interpret=True)(order, x)


@jax.custom_vjp
def _squared(x: Any) -> Any:
    return _binary(jnp.multiply, x, x)


_squared.defvjp(lambda x: (_squared(x), x), lambda x, g: (2 * _binary(jnp.multiply, x, g),))
