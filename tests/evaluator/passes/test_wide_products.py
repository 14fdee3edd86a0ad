from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise
from pallas_shim.evaluator.passes.common_subexpressions import share_common_subexpressions
from pallas_shim.evaluator.passes.constant_folding import fold_constants
from pallas_shim.evaluator.passes.wide_products import WideProducts

from .programs import check_pass

WORDS = np.random.default_rng(0).integers(0, 1 << 32, (3, 64), np.uint32)
WORDS[0, :4] = 0, 1, 0xFFFFFFFF, 0xFFFF0000
OTHERS = WORDS[:, ::-1].copy()


def simplified(f, *args):
    def run(program):
        return WideProducts.run(share_common_subexpressions(fold_constants(program)))

    return check_pass(run, f, *args)


def both(x, y, mask=0xFFFF, shift=16, other=None):
    """The words of the product, as jax.experimental.pallas.ops.tpu has them."""
    x_high, y_high, x_low, y_low = x >> shift, y >> 16, x & mask, y & 0xFFFF
    high, low, cross, cross_too = x_high * y_high, x_low * y_low, x_high * y_low, x_low * y_high
    if other is not None:
        cross_too = (other & 0xFFFF) * y_high
    carry = (cross & 0xFFFF) + (cross_too & 0xFFFF) + (low >> 16)
    upper = high + (cross >> 16) + (cross_too >> 16) + (carry >> 16)
    return upper, (carry << 16) + (low & 0xFFFF)


@pytest.mark.parametrize("by", (0xD2511F53, 0xCD9E8D57, 0x20003, 0xFFFFFFFF))
def test_products_by_a_number(by):
    number = jnp.uint32(by)
    for f in (lambda x: both(x, number), lambda x: both(number, x)):
        assert sorted(set(simplified(f, WORDS)) - {"broadcast_in_dim"}) == ["mul", "mulhi"]


def test_products_of_two_arrays_in_another_order():
    def f(x, y):
        x_high, y_high, x_low, y_low = x >> 16, y >> 16, 0xFFFF & x, 0xFFFF & y
        one, other, low = y_low * x_high, x_low * y_high, y_low * x_low
        carry = (low >> 16) + ((0xFFFF & other) + (one & 0xFFFF))
        upper = ((carry >> 16) + (other >> 16)) + ((one >> 16) + y_high * x_high)
        return upper, (low & 0xFFFF) + (carry << 16)

    assert sorted(simplified(f, WORDS, OTHERS)) == ["mul", "mulhi"]
    assert sorted(simplified(f, WORDS[0, 0], OTHERS[0, 0])) == ["mul", "mulhi"]


@pytest.mark.parametrize(
    "changed", ({"mask": 0x7FFF}, {"shift": 15}, {"other": WORDS[::-1].copy()})
)
def test_what_only_looks_like_it_stays(changed):
    names = simplified(lambda x, y: both(x, y, **changed), WORDS, OTHERS)
    assert "mulhi" not in names and "add" in names


def test_signed_numbers_stay():
    names = simplified(lambda x, y: both(x, y), WORDS.view(np.int32), OTHERS.view(np.int32))
    assert "mulhi" not in names


@pytest.mark.parametrize("size", (1, 8192, 8193, 30_000))
def test_upper_words_of_many(size):
    x = np.random.default_rng(1).integers(0, 1 << 32, size, np.uint32)
    want = (x.astype(np.uint64) * np.uint64(0xD2511F53) >> np.uint64(32)).astype(np.uint32)
    program = optimise(lower(jax.make_jaxpr(lambda x: both(x, jnp.uint32(0xD2511F53))[0])(x)))
    assert [i.name for i in program.top.walk()] == ["mulhi"]
    np.testing.assert_array_equal(Executable(program)(x)[0], want)
