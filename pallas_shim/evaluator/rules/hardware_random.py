"""Pallas TPU: the hardware's random generator of a TPU core.

Here it is Threefry-2x32. Its bits are good, equal on every machine, and differ from a TPU's. Its
state is a key and a counter, and belongs to one call of the kernel. Before a seed, it is all zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.program import Array, Effects, RefType, Types, Value
from pallas_shim.evaluator.registry import impl_rule, lowering_rule
from pallas_shim.evaluator.rules.random import threefry2x32

# Two words of key and two of counter, the low word first.
_STATE = RefType((4,), np.dtype(np.uint32), "smem")


def _state(lowering: Lowering, eqn: Any) -> Value:
    return lowering.shared("prng", _STATE, eqn.primitive.name)


@lowering_rule("prng_seed")
def _seed(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    """Hashes each word of the seeds, with its position, into the key. Resets the counter."""

    def seed(state: Array, *seeds: Array) -> tuple[()]:
        key = np.zeros(2, np.uint32)
        words = [word for s in seeds for word in np.asarray(s).astype(np.uint32).ravel()]
        for position, word in enumerate(words):
            hashed = threefry2x32(key[:1], key[1:], np.array([word]), np.array([position], "u4"))
            key = np.concatenate(hashed)
        state[:2], state[2:] = key, 0
        return ()

    lowering.memory(
        "prng_seed", [_state(lowering, eqn), *ins], [], seed, Effects(writes=(0,)), key="prng_seed"
    )
    return []


@lowering_rule("prng_random_bits")
def _bits(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    type = lowering.type(eqn.outvars[0].aval)
    count = math.prod(type.shape)
    steps = -(-count // 2)

    def bits(state: Array) -> Array:
        low, high = (int(word) for word in state[2:])
        counter = np.uint64(low | high << 32) + np.arange(steps + 1, dtype=np.uint64)
        halves = (counter >> np.uint64(32)).astype(np.uint32), counter.astype(np.uint32)
        words = threefry2x32(state[:1], state[1:2], *(half[:steps] for half in halves))
        state[2], state[3] = halves[1][steps], halves[0][steps]
        return np.stack(words, axis=-1).reshape(-1)[:count].view(np.int32).reshape(type.shape)

    effects = Effects(reads=(0,), writes=(0,))
    return lowering.memory(
        "prng_random_bits", [_state(lowering, eqn)], [type], bits, effects, key="prng_random_bits"
    )


@impl_rule("prng_split", keys=True)
def _split(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    return lambda key: tuple(word.copy() for word in key[0])


@impl_rule("prng_join", keys=True)
def _join(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    return lambda *words: np.array([words], np.uint32)
