"""Random bits, checked bit for bit against JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.extend.random import threefry_2x32

from pallas_shim.evaluator.rules.random import _PART, threefry2x32
from tests.oracle import check_rule


@pytest.mark.parametrize(
    "implementation, partitionable",
    [("threefry2x32", False), ("threefry2x32", True), ("rbg", True), ("unsafe_rbg", False)],
)
def test_keys(implementation, partitionable):
    def f(seed):
        key = jax.random.key(seed, impl=implementation)
        first, second, *_ = keys = jax.random.split(key, 5)
        grid = jax.random.split(jax.random.fold_in(first, 7), (2, 3))
        folded = jax.vmap(jax.random.fold_in)(keys, jnp.arange(5, dtype=np.uint32))
        return [
            *map(jax.random.key_data, (key, keys, grid, folded, jax.random.clone(second))),
            *(jax.random.bits(first, shape, np.uint32) for shape in ((), (5,), (2, 3), (0,))),
            *(jax.random.bits(second, (3, 3), dtype) for dtype in (np.uint8, np.uint16)),
            jax.vmap(lambda k: jax.random.bits(k, (2,)))(keys),
        ]

    with jax.threefry_partitionable(partitionable):
        check_rule(f, np.int32(-3))


if jax.__version_info__ >= (0, 10):

    @pytest.mark.parametrize("implementation", ["philox2x32", "philox4x32", "threefry4x32"])
    def test_newer_generators(implementation):
        check_rule(
            lambda seed: jax.random.bits(jax.random.key(seed, impl=implementation), (5,)),
            np.int32(-3),
        )


def test_more_words_than_are_hashed_at_once():
    words = np.arange(2 * (2 * _PART + 7), dtype=np.uint32)
    keys = words[: words.size // 2] * np.uint32(0x9E3779B9)
    want = np.asarray(threefry_2x32(np.uint32([5, 6]), words)).reshape(2, -1)
    got = threefry2x32(np.uint32(5), np.uint32(6), *words.reshape(2, -1))
    np.testing.assert_array_equal(got, want)
    many = threefry2x32(keys, keys + np.uint32(1), *words.reshape(2, -1))
    for at in (0, _PART - 1, _PART, 2 * _PART + 6):
        one = threefry2x32(keys[at], keys[at] + np.uint32(1), *words.reshape(2, -1)[:, at])
        np.testing.assert_array_equal(np.ravel(one), [half[at] for half in many])


def test_64_bits():
    def f(seed):
        key = jax.random.key(seed)
        return jax.random.key_data(key), jax.random.bits(key, (3,), np.uint64)

    check_rule(f, np.int64(2**40 + 5))


def test_legacy_keys_and_distributions():
    def f(seed):
        first, second = jax.random.split(jax.random.PRNGKey(seed))
        return [
            first,
            jax.random.uniform(first, (4, 3)),
            jax.random.randint(second, (7,), -5, 90),
            jax.random.bernoulli(first, 0.3, (6,)),
            jax.random.permutation(second, 9),
        ]

    check_rule(f, np.int32(42))


def test_gamma():
    def f(shape_parameter):
        return jax.random.gamma(jax.random.key(1), shape_parameter)

    # The rejection loop is the same; its last steps are a log, a power and products.
    check_rule(f, np.array([0.5, 1.0, 3.5], np.float32), rtol=1e-5)


_WORD = st.integers(0, 2**32 - 1)
_hash = jax.jit(lambda key, count: threefry_2x32(key, count))


@settings(derandomize=True, max_examples=50, deadline=None)
@given(key=st.tuples(_WORD, _WORD), count=st.tuples(_WORD, _WORD))
def test_threefry_hash(key, count):
    key, count = np.array(key, np.uint32), np.array(count, np.uint32)
    with np.errstate(over="ignore"):
        got = threefry2x32(*key, *count)
    np.testing.assert_array_equal(got, _hash(key, count))


@pytest.mark.parametrize("algorithm", list(lax.RandomAlgorithm), ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.uint64], ids=lambda d: d.__name__)
def test_bit_generators(algorithm, dtype):
    """From a state whose counter overflows 32 bits, and 64."""
    shapes = [(5,), (2, 3, 5), (3, 5), (0, 3), ()]

    def f(state):
        return [
            lax.rng_bit_generator(state, shape, dtype=dtype, algorithm=algorithm)
            for shape in shapes
        ]

    word = 2**32 - 1
    state = np.array([5, 6, word - 1, word], np.uint32)
    check_rule(f, state.view(np.uint64) if dtype is np.uint64 else state)


def test_a_choice_between_keys():
    def f(seeds, which):
        keys = [jax.vmap(jax.random.key)(seeds + i) for i in range(3)]
        first = [k[0] for k in keys]
        return [
            jax.random.key_data(chosen)
            for chosen in (
                lax.select_n(which, *keys),
                lax.select_n(which[1], *keys),
                lax.select_n(which[2], *first),
                jnp.where(which[:, None] > 0, keys[0], keys[1]),
            )
        ]

    check_rule(f, np.arange(4, dtype=np.int32), np.array([0, 2, 1, 1], np.int32))
