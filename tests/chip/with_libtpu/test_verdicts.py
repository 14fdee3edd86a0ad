"""The real compiler: what it accepts, what its stages refuse, and what it says of memory."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.chip import api, tpus
from pallas_shim.chip.jobs import ACCEPTED, LOWERING, MEMORY, NO_VERDICT, REFUSED, Limits
from tests.chip.kernels import FORMS, added, bad_blocks, shape

GENERATIONS = ("v4", "v5e", "v5p", "v6e", "v7x")


@pytest.fixture(autouse=True)
def kept_nowhere(shim, setting):
    setting(cache=None)


def asked(function, *args, tpu="v6e", **options):
    return api.verdicts(function, *args, tpu=tpu, **options)


def test_every_form_is_accepted():
    functions = {name: make() for name, make in FORMS.items()}
    wrong = {}
    for name, (function, args) in functions.items():
        found = asked(function, *args)
        if not found or {v.answer.outcome for v in found} != {ACCEPTED}:
            wrong[name] = [v.answer for v in found]
    assert not wrong


def test_every_generation_that_this_libtpu_knows():
    found = {v.target: v.answer for v in asked(added(), shape(512, 256), tpu=GENERATIONS)}
    assert set(found) == set(GENERATIONS)
    for name, answer in found.items():
        if answer.outcome == NO_VERDICT:  # libtpu 0.0.24
            assert name == "v7x" and "Invalid TPU external name" in str(answer.message)
        else:
            assert answer.outcome == ACCEPTED, answer
            assert answer.unread is None and answer.bundles > 20 and answer.code_size > 1000


def test_a_topology():
    (found,) = asked(*FORMS["ring"]()[:1], *FORMS["ring"]()[1], tpu="v5e:4x4")
    assert (found.target, found.answer.outcome) == ("v5e:4x4", ACCEPTED)
    (found,) = asked(added(), shape(512, 256), tpu="v5e:3x3")
    assert found.answer.outcome == NO_VERDICT and "can't be compiled" in str(found.answer.message)


def test_the_lowering_refuses():
    (found,) = asked(bad_blocks(), shape(500, 300))
    assert found.answer.stage == LOWERING


@pytest.mark.parametrize("tpu", ["v4", "v5e", "v5p", "v6e"])
def test_the_memory_is_too_small(tpu):
    """By one row of tiles more than fits; the message has the size and the limit."""
    limit = tpus.TPUS[tpu].vmem

    def kernel(x_ref, o_ref, scratch):
        scratch[0, ...] = x_ref[...]
        o_ref[...] = scratch[0, ...]

    def with_scratch(tiles):
        held = [pltpu.VMEM((tiles, 8, 128), np.float32)]
        return pl.pallas_call(kernel, out_shape=shape(8, 128), scratch_shapes=held)

    (fits,) = asked(with_scratch(limit // 4096 - 256), shape(8, 128), tpu=tpu)
    assert fits.answer.outcome == ACCEPTED, fits.answer
    (found,) = asked(with_scratch(limit // 4096 + 1), shape(8, 128), tpu=tpu)
    assert (found.answer.outcome, found.answer.stage) == (REFUSED, MEMORY)
    assert str(limit) in str(found.answer.message) and found.estimate > limit


def test_what_does_not_fit_is_refused_before_its_body_is_compiled():
    """Whole arrays unroll to code that the compiler takes minutes for."""

    def kernel(x_ref, y_ref, o_ref):
        o_ref[...] = jnp.tril(jnp.dot(x_ref[...], y_ref[...]))

    call = pl.pallas_call(kernel, out_shape=shape(8192, 8192))
    (found,) = asked(call, *[shape(8192, 8192)] * 2, limits=Limits(cpu=30))
    assert (found.answer.outcome, found.answer.stage) == (REFUSED, MEMORY), found.answer
    assert "268435456" in str(found.answer.message) or "256.00M" in str(found.answer.message)


def test_memory_agrees_with_the_estimate():
    """Blocks and scratch are what the compiler allocates, and it adds its own scratch."""
    (found,) = asked(added(), shape(512, 256))
    held = [
        a.size for a in found.answer.allocations if "window" in a.what or "operand span" in a.what
    ]
    assert sum(held) == found.estimate == 4 * 128 * 256 * 4
    memory = found.memory()
    assert memory["vmem"]["used"] >= found.estimate and memory["semaphores"]["used"] > 0
    assert memory["vmem"]["limit"] == 128 << 20


def test_mosaic_or_what_follows_refuses():
    """A kernel that JAX lowers: 64 bits don't exist on a TPU core."""

    def kernel(x_ref, o_ref):
        o_ref[...] = jnp.cumsum(x_ref[...].reshape(-1)).reshape(x_ref.shape)

    call = pl.pallas_call(kernel, out_shape=shape(8, 128))
    (found,) = asked(call, shape(8, 128))
    assert found.answer.outcome == REFUSED and found.answer.message


def test_too_little_memory_is_no_verdict():
    found = asked(added(), shape(512, 256), limits=Limits(memory=1 << 20))
    assert [v.answer.outcome for v in found] == [NO_VERDICT]


def test_spills_and_masked_stores_are_seen():
    """120 registers are needed twice, and there are 64."""

    def kernel(x_ref, o_ref):
        values = [jnp.exp(x_ref[8 * i : 8 * i + 8, :]) for i in range(120)]
        total = sum(values)
        for i, value in enumerate(values):
            o_ref[8 * i : 8 * i + 7, :] = (value * total)[:7]

    (found,) = asked(pl.pallas_call(kernel, out_shape=shape(960, 128)), shape(960, 128))
    assert found.answer.outcome == ACCEPTED and found.answer.spills > 0
    assert any("120 masked stores" in w and __file__ in w for w in found.answer.warnings)


def test_equal_modules_have_equal_code(monkeypatch):
    one, two = (asked(added(), shape(512, 256))[0].answer for _ in range(2))
    assert dataclasses.replace(one, seconds=0.0) == dataclasses.replace(two, seconds=0.0)
    assert jax.devices()[0].platform == "cpu"
