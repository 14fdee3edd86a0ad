from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes.narrow_products import NarrowProducts

from .programs import check_pass

BYTES = np.random.default_rng(0).integers(-128, 128, (3, 8, 8)).astype(np.int8)
BYTES[0, :2] = -128
WORDS = np.full((8, 8), -(2**31), np.int32)


def widened(x, y, dtype=jnp.int32):
    return jnp.dot(x.astype(dtype), y.astype(dtype))


@pytest.mark.parametrize("x, y", [
    (BYTES[0], BYTES[1]), (BYTES[0], BYTES[1].view(np.uint8)), (BYTES[0] > 0, BYTES[1]),
    (BYTES[0].astype(np.int16), BYTES[1]), (BYTES[0], WORDS), (WORDS, BYTES[0]),
])  # fmt: skip
def test_widened_operands(x, y):
    assert check_pass(NarrowProducts.run, widened, x, y) == ["dot_general"]


def test_operands_that_are_widened_twice():
    def f(x, y):
        return widened(x.astype(jnp.int16), y)

    assert check_pass(NarrowProducts.run, f, BYTES[0], BYTES[1]) == ["dot_general"]


def test_operands_of_four_bits_are_widened_to_eight():
    x = (BYTES[0] % 8).astype(ml_dtypes.int4)
    assert check_pass(NarrowProducts.run, widened, x, BYTES[1]) == [
        "convert_element_type",
        "dot_general",
    ]


@pytest.mark.parametrize("f", [
    lambda x, y: widened(x, y, jnp.uint32),  # other numbers
    lambda x, y: widened(x, y, jnp.float32),
    lambda x, y: x.astype(jnp.int32) * y,
    lambda x, y: jnp.dot(x.astype(jnp.int32) + 1, y.astype(jnp.int32) - 1),
])  # fmt: skip
def test_what_is_left(f):
    program = lower(jax.make_jaxpr(f)(BYTES[0], BYTES[1]))
    before = [i.name for i in program.top.body]
    assert [i.name for i in NarrowProducts.run(program).top.body] == before
