"""Random numbers: threefry, XLA's bit generators, and keys.

Here a key array is the array of the unsigned integers that make up its keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.program import Array, ArrayType, Type, Types, Value
from pallas_shim.evaluator.registry import Stack, Unsupported, batch_rule, impl_rule, lowering_rule
from pallas_shim.jax_compat import definitions


@impl_rule("random_wrap", "random_unwrap", "random_clone", view=True, keys=True)
def _same(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    # The hardware's random bits are signed integers; the words of its keys are unsigned.
    dtype = outs[0].dtype
    return np.asarray if ins[0].dtype == dtype else lambda x: np.asarray(x).view(dtype)


@lowering_rule(
    "random_seed",
    "random_split",
    "random_fold_in",
    "random_bits",
    "random_gamma",
    "philox2x32",
    "philox4x32",
    "threefry4x32",
)
def _defined(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    def retyped(primitive: str, value: Value, type: Type) -> Value:
        return value if value.type == type else lowering.apply(primitive, [value], [type], {})[0]

    words = [retyped("random_unwrap", v, ArrayType(v.type.shape, v.type.dtype)) for v in ins]
    results = lowering.inline(definitions.definition(eqn), words)
    types = (lowering.type(v.aval) for v in eqn.outvars)
    return [retyped("random_wrap", v, type) for v, type in zip(results, types, strict=True)]


@impl_rule("iota_2x32_shape")
def _iota_2x32_shape(ins: Types, outs: Types, *, shape: Any, **_: Any) -> Callable[..., Any]:
    counts = np.arange(math.prod(shape), dtype=np.uint64).reshape(shape)
    high, low = (counts >> np.uint64(32)).astype(np.uint32), counts.astype(np.uint32)
    return lambda: (high, low)


# -- threefry -------------------------------------------------------------------------------

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


@impl_rule("threefry2x32")
def _threefry2x32(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    return threefry2x32


@batch_rule("threefry2x32", broadcasts=True)
def _batch(stack: Stack, **params: Any) -> Mapping[str, Any] | None:
    return params


def threefry2x32(key1: Array, key2: Array, x1: Array, x2: Array) -> tuple[Array, ...]:
    """The Threefry-2x32 hash of uint32 arrays, with 20 rounds (Salmon et al., 2011)."""
    keys = (key1, key2, key1 ^ key2 ^ _PARITY)
    x1, x2 = np.add(x1, key1), np.add(x2, key2)
    shape = np.broadcast_shapes(x1.shape, x2.shape)
    if x1.shape != shape or x2.shape != shape or not shape:
        x1, x2 = (np.array(np.broadcast_to(x, shape or (1,))) for x in (x1, x2))
    flat = [
        key.reshape(()) if key.size == 1 else np.broadcast_to(key, shape).reshape(-1)
        for key in keys
    ]
    first, second = x1.reshape(-1), x2.reshape(-1)
    other = np.empty(min(first.size, _PART), np.uint32)
    for start in range(0, first.size, _PART):
        part = slice(start, start + _PART)
        part_keys = [key if key.ndim == 0 else key[part] for key in flat]
        _threefry_rounds(part_keys, first[part], second[part], other[: first.size - start])
    return first.reshape(shape), second.reshape(shape)


# This many words stay in the processor's caches, and are enough to pay for a hundred NumPy calls.
_PART = 1 << 16


def _threefry_rounds(keys: Array, a: Array, b: Array, other: Array) -> None:
    """Hashes the words of ``a`` and ``b`` in place. ``other`` is a buffer of the same size."""
    for i in range(5):
        for distance in _ROTATIONS[i % 2]:
            np.add(a, b, out=a)
            np.right_shift(b, np.uint32(32 - distance), out=other)
            np.left_shift(b, np.uint32(distance), out=b)
            np.bitwise_or(b, other, out=b)
            np.bitwise_xor(b, a, out=b)
        np.add(a, keys[(i + 1) % 3], out=a)
        np.add(b, keys[(i + 2) % 3] + np.uint32(i + 1), out=b)


# -- XLA's bit generators -------------------------------------------------------------------


def _philox4x32(counters: Array, key: Array) -> tuple[Array, ...]:
    """The Philox-4x32 hash of four uint64 arrays of numbers below 2**32, with 10 rounds (Salmon et
    al., 2011)."""
    word = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    a, b, c, d = counters
    k1, k2 = key
    for _ in range(10):
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b = (second >> half) ^ b ^ k1, second & word
        c, d = (first >> half) ^ d ^ k2, first & word
        k1, k2 = (k1 + np.uint64(0x9E3779B9)) & word, (k2 + np.uint64(0xBB67AE85)) & word
    return a, b, c, d


def _split(words: Array) -> tuple[Array, ...]:
    return words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)


def _join(low: Array, high: Array) -> Array:
    return low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))


def _philox_bits(
    key: Array, counter: Array, shape: tuple[int, ...], wide: bool
) -> tuple[Array, ...]:
    """Random words of ``shape``, 64 or 32 bits wide, and the number of steps that the counter
    advances. A step gives 128 bits."""
    words = math.prod(shape) * (2 if wide else 1)
    steps = -(-words // 4)
    low = counter + np.arange(steps, dtype=np.uint64)
    # The counter has 128 bits. Its upper half starts equal to the key.
    high = key + (low < counter)
    hashes = _philox4x32((*_split(low), *_split(high)), _split(key))
    bits = np.stack(hashes, axis=1).reshape(4 * steps)[:words]
    return (_join(bits[::2], bits[1::2]) if wide else bits).reshape(shape), steps


def _threefry_bits(
    key: Array, counter: Array, shape: tuple[int, ...], wide: bool
) -> tuple[Array, ...]:
    """As `_philox_bits`, with 64 bits a step.

    For 32-bit words, the first axis of even size (else the longest axis) is cut into pairs. The two
    words of one hash go to the two members of a pair.
    """
    if wide:
        half_shape, axis = tuple(shape), 0
    else:
        shape_or_one = shape or (1,)
        even = [axis for axis, size in enumerate(shape_or_one) if size % 2 == 0]
        axis = even[0] if even else int(np.argmax(shape_or_one))
        half_shape = tuple(
            -(-size // 2) if i == axis else size for i, size in enumerate(shape_or_one)
        )
    steps = math.prod(half_shape)
    counts = counter + np.arange(steps, dtype=np.uint64).reshape(half_shape)
    words = [word.astype(np.uint32) for word in (*_split(key), *_split(counts))]
    first, second = threefry2x32(*words)
    if wide:
        return _join(first, second), steps
    pairs = np.stack((first, second), axis=axis + 1)
    pairs = pairs.reshape(*half_shape[:axis], 2 * half_shape[axis], *half_shape[axis + 1 :])
    return pairs[tuple(map(slice, shape_or_one))].reshape(shape), steps


# Indexed by JAX's RandomAlgorithm. On a CPU the default is Philox.
_GENERATORS = (_philox_bits, _threefry_bits, _philox_bits)


@impl_rule("rng_bit_generator")
def _rng_bit_generator(ins: Types, outs: Types, *, algorithm: Any, **_: Any) -> Callable[..., Any]:
    """The state is the key and the counter, each as one uint64 or as two uint32, low word first."""
    state_type, bits_type = outs
    if bits_type.dtype.kind != "u":
        raise Unsupported("rng_bit_generator", f"bits as {bits_type.dtype.name}")
    generate = _GENERATORS[int(algorithm)]
    wide = bits_type.dtype.itemsize == 8

    def run(state: Array) -> tuple[Array, ...]:
        key, counter = np.ascontiguousarray(state).view(np.uint64)
        bits, steps = generate(key, counter, bits_type.shape, wide)
        new_state = np.array([key, counter + np.uint64(steps)]).view(state_type.dtype)
        return new_state, bits.astype(bits_type.dtype)

    return run
