"""Random kernels that hold arrays of PRNG keys: split, folded, stored, chosen, and used."""

from __future__ import annotations

import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from tests.fuzz.operations import USUAL, Choices, Pool

_WORDS = 8


class Keys(Choices):
    """A random kernel whose first operand is an array of keys."""

    rtol = None

    def __init__(self, source: random.Random, pool: Pool = USUAL):
        super().__init__(source, pool)
        implementation = self.one(["threefry2x32", "threefry2x32", "rbg", "unsafe_rbg"])
        words = 2 if implementation == "threefry2x32" else 4
        count, rows = self.number(1, 3), self.number(1, 2)
        rng = np.random.default_rng(self.number(0, 1 << 16))
        self.args = [
            rng.integers(0, 1 << 32, (count * rows, words), dtype=np.uint32),
            rng.integers(-3, 9, (count,)).astype(np.int32),
        ]
        split = bool(self.number(0, 1))

        def kernel(keys, numbers, words_out, bits_out):
            made = [keys[self.number(0, keys.shape[0] - 1)]]
            bits = [numbers[0].astype(jnp.uint32)]
            for _ in range(self.number(2, 6)):
                self._statement(made, bits, keys, numbers)
            data = jax.random.key_data(made[-1]).reshape(-1)
            words_out[...] = jnp.resize(data, words_out.shape)
            bits_out[...] = jnp.resize(jnp.stack(bits), bits_out.shape)

        def function(data, numbers):
            keys = jax.random.wrap_key_data(data, impl=implementation)
            given = pl.BlockSpec((count,), lambda i: (i,)) if split else pl.BlockSpec()
            out = pl.BlockSpec((1, _WORDS), lambda i: (i, 0))
            shape = jax.ShapeDtypeStruct((rows, _WORDS), jnp.uint32)
            return pl.pallas_call(
                kernel, [shape, shape], grid=(rows,), interpret=True,
                in_specs=[given, pl.BlockSpec()], out_specs=[out, out],
            )(keys, numbers)  # fmt: skip

        self.function = function

    def _statement(self, made: list[Any], bits: list[Any], keys: Any, numbers: Any) -> None:
        key, other = self.one(made), self.one(made)
        kind = self.one(
            ["fold", "split", "bits", "below", "load", "choose", "loop", "branch", "stack"]
        )
        if kind == "fold":
            made.append(jax.random.fold_in(key, bits[-1]))
        elif kind == "split":
            made.extend(jax.random.split(key, self.number(1, 3)))
        elif kind == "bits":
            width = self.one([np.uint32, np.uint8, np.uint16])
            bits.extend(jax.random.bits(key, (2,), width).astype(jnp.uint32))
        elif kind == "below":
            bits.append(jax.random.randint(key, (), 0, self.number(1, 99)).astype(jnp.uint32))
        elif kind == "load":
            at = numbers[self.number(0, numbers.shape[0] - 1)]
            made.append(keys[lax.rem(lax.abs(at), np.int32(keys.shape[0]))])
        elif kind == "choose":
            made.append(jnp.where(bits[-1] % 2 == 0, key, other))
        elif kind == "loop":
            made.append(lax.fori_loop(0, self.number(0, 3), _folded, key))
        elif kind == "branch":
            made.append(lax.cond(bits[-1] > 3, lambda: jax.random.split(key, 2)[0], lambda: other))
        else:
            stacked = jnp.stack([key, other])
            made.append(stacked[self.number(0, 1)])


def _folded(i: Any, key: Any) -> Any:
    return jax.random.fold_in(key, i)
