"""The hardware's generator. JAX gives no numbers to compare with: its interpreter's are zeros."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.rules import Unsupported
from tests.kernels.harness import evaluate

SMEM = pl.BlockSpec(memory_space=pltpu.SMEM)


def draw(kernel, *args, out=(8, 128), dtype=jnp.int32, **kwargs):
    """What the kernel writes, which doesn't depend on the passes, nor on how loops run."""
    call = pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(out, dtype), **kwargs)
    (plain,), *others = evaluate(call, *args)
    for (other,) in others:
        np.testing.assert_array_equal(plain, other)
    return plain


def seeded(*seeds):
    def kernel(o):
        pltpu.prng_seed(*seeds)
        o[...] = pltpu.prng_random_bits(o.shape)

    return kernel


def test_the_documented_bits():
    """docs/limits.md: Threefry of a counter under a key that is Threefry of the seed words."""
    from jax.extend.random import threefry_2x32

    key = jnp.zeros(2, jnp.uint32)
    for position, word in enumerate([7, 9]):
        key = threefry_2x32(key, jnp.array([word, position], jnp.uint32))
    counts = jnp.stack([jnp.zeros(8, jnp.uint32), jnp.arange(8, dtype=jnp.uint32)], -1)
    want = jax.vmap(functools.partial(threefry_2x32, key))(counts)
    got = draw(seeded(7, 9), out=(3, 5))
    np.testing.assert_array_equal(got.view(np.uint32).ravel(), np.ravel(want)[:15])


def test_a_seed_decides_the_bits():
    np.testing.assert_array_equal(draw(seeded(0)), draw(seeded(0)))
    drawn = [draw(seeded(*seeds)) for seeds in [(0,), (1,), (-1,), (1, 0), (0, 1)]]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert (one != other).mean() > 0.99
    assert np.unique(drawn[0]).size > 1020


def test_each_draw_goes_on_from_the_last_one_in_every_cell():
    def kernel(o):
        @pl.when(pl.program_id(0) == 0)
        def _():
            pltpu.prng_seed(5)

        o[...] = jax.lax.fori_loop(0, 3, lambda _, x: pltpu.prng_random_bits((8, 128)), o[...])

    spec = pl.BlockSpec((8, 128), lambda i: (i, 0))
    drawn = draw(kernel, out=(32, 128), grid=(4,), out_specs=spec)
    assert np.unique(drawn).size > 4090
    whole = draw(seeded(5), out=(12 * 8, 128))
    np.testing.assert_array_equal(drawn[:8], whole[16:24])
    np.testing.assert_array_equal(drawn[24:], whole[88:])


@pytest.mark.parametrize("sampler", [jax.random.uniform, jax.random.normal])
def test_keys_of_the_hardwares(sampler):
    key = pltpu.to_pallas_key(jax.random.key(0))

    def kernel(key, o):
        o[0] = sampler(key[...], (8, 128))
        o[1] = sampler(jax.random.fold_in(key[...], 2), (8, 128))

    def f(words):
        key = jax.random.wrap_key_data(words, impl="pallas_tpu")
        out = jax.ShapeDtypeStruct((2, 8, 128), jnp.float32)
        return pl.pallas_call(kernel, out_shape=out, in_specs=[SMEM])(key)

    for (got,) in evaluate(f, jax.random.key_data(key)):
        assert (got[0] != got[1]).mean() > 0.99
        assert abs(got.mean() - (0.5 if sampler is jax.random.uniform else 0)) < 0.1


def test_a_key_is_taken_apart_and_put_together():
    def kernel(key, o):
        low, high = unwrap(key[...])
        joined = wrap(high, low, impl="pallas_tpu")
        o[0], o[1] = unwrap(joined)

    from jax._src.pallas.mosaic.random import unwrap_pallas_seed as unwrap
    from jax._src.pallas.mosaic.random import wrap_pallas_seed as wrap

    def f(words):
        key = jax.random.wrap_key_data(words, impl="pallas_tpu")
        out = jax.ShapeDtypeStruct((2,), jnp.uint32)
        return pl.pallas_call(kernel, out_shape=out, in_specs=[SMEM], out_specs=SMEM)(key)

    for (got,) in evaluate(f, np.array([[3, 4]], np.uint32)):
        np.testing.assert_array_equal(got, [4, 3])


def test_outside_a_kernel_it_is_refused():
    with pytest.raises(Unsupported, match="prng_random_bits: used outside a kernel"):
        lower(jax.make_jaxpr(lambda: pltpu.prng_random_bits((2,)))())
