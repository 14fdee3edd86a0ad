"""The functions of float32 that are made of others, against float64's (erf_inv, which is as
exact as XLA's, in test_elementwise.py)."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from pallas_shim.evaluator.floating import as_xla
from pallas_shim.evaluator.rules import elementwise_math as math
from pallas_shim.evaluator.rules import float32_functions as functions
from pallas_shim.evaluator.rules.elementwise import cell, specialised
from tests.oracle import as_xla_computes, ulps

FLOAT32 = np.dtype(np.float32)
EXACT = {"erf": special.erf, "expm1": np.expm1, "log1p": np.log1p}
SPECIAL = np.array([0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan], np.float32)


def finite(name: str) -> np.ndarray:
    """Floats all over the range on which the function is finite."""
    positive = np.arange(1 << 23, 0x7F800000, 1009, dtype=np.uint32).view(np.float32)
    x = np.concatenate((positive, -positive))
    with np.errstate(all="ignore"):
        return x[np.isfinite(EXACT[name](x))]


@pytest.mark.parametrize("name", EXACT)
def test_all_over_the_range(name):
    x = finite(name)
    got = as_xla(getattr(functions, name).of(FLOAT32), x)
    assert got.dtype == np.float32
    want = EXACT[name](x.astype(np.float64)).astype(np.float32)
    normal = np.abs(want) >= np.finfo(np.float32).tiny
    assert ulps(got, want)[normal].max() <= 4
    assert (np.signbit(got) == np.signbit(x)).all()


@pytest.mark.parametrize("name", EXACT)
@as_xla_computes
def test_special_values(name):
    got = getattr(functions, name).of(FLOAT32)(SPECIAL)
    want = EXACT[name](SPECIAL.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    number = ~np.isnan(want)
    np.testing.assert_array_equal(np.signbit(got)[number], np.signbit(want)[number])
    assert ulps(got, want)[number].max() <= 4


@pytest.mark.parametrize("name", [*EXACT, "erf_inv"])
@as_xla_computes
def test_however_the_numbers_lie(name):
    """Many at once, which go in parts; strided ones; one; and none."""
    x = np.random.default_rng(0).uniform(-0.9, 0.9, (700, 301)).astype(np.float32)
    function = getattr(functions, name).of(FLOAT32)
    got = function(x)
    np.testing.assert_array_equal(got, np.stack([function(row) for row in x]))
    np.testing.assert_array_equal(function(x[::2, ::3]), got[::2, ::3])
    np.testing.assert_array_equal(function(x.T), got.T)
    assert function(x[3, 4]) == function(np.asarray(x[3, 4])) == got[3, 4]
    assert function(x[:0]).shape == (0, 301)


@pytest.mark.parametrize("name", [*EXACT, "erf_inv"])
def test_operands_are_left_alone(name):
    x = np.linspace(-0.9, 0.9, 101, dtype=np.float32)
    before = x.copy()
    getattr(functions, name).of(FLOAT32)(x)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("name", EXACT)
@as_xla_computes
def test_a_number_does_not_depend_on_others(name):
    x = np.linspace(-0.9, 0.9, 1001, dtype=np.float32)
    function = getattr(functions, name).of(FLOAT32)
    together = function(np.concatenate((x, SPECIAL)))
    np.testing.assert_array_equal(together[: x.size], function(x))


@pytest.mark.parametrize("name", ["exp", "log", "sin", "cos", "tanh", "logistic", "rsqrt", "pow"])
@as_xla_computes
def test_bits_do_not_depend_on_the_array_around(name):
    """NumPy computes many at once, the last few apart, and strided ones in another loop."""
    x = np.random.default_rng(0).uniform(0.01, 60, (37, 41)).astype(np.float32)
    fn = specialised(math.power, FLOAT32, FLOAT32) if name == "pow" else (
        specialised(cell(name, FLOAT32), FLOAT32, FLOAT32)
    )  # fmt: skip
    args = (x, np.ascontiguousarray(x[::-1]) / 30) if name == "pow" else (x,)
    whole = fn(*args)
    np.testing.assert_array_equal(fn(*[a[::2, 1::3] for a in args]), whole[::2, 1::3])
    np.testing.assert_array_equal(fn(*[a.T for a in args]), whole.T)
    np.testing.assert_array_equal(fn(*[a.reshape(-1)[3:] for a in args]), whole.reshape(-1)[3:])
    for i in np.ndindex(5, 41):
        assert fn(*[a[i] for a in args]) == whole[i]


@as_xla_computes
def test_rsqrt_within_one_unit():
    x = np.arange(1 << 23, 0x7F800000, 1009, dtype=np.uint32).view(np.float32)
    exact = 1 / np.sqrt(x.astype(np.float64))
    got = functions.rsqrt.of(FLOAT32)(x)
    assert (np.abs(got - exact) / np.spacing(exact.astype(np.float32))).max() < 0.87
    usual = x < 1e38  # nothing else is looked at again
    np.testing.assert_array_equal(functions.rsqrt.of(FLOAT32)(x[usual]), got[usual])


@as_xla_computes
def test_rsqrt_of_a_number_is_that_in_an_array():
    bits = np.random.default_rng(0).integers(1 << 32, size=3000, dtype=np.uint32)
    edges = np.array([2.0**125, 2.0**126, 2.0**127, 1e-38, 1e-40, 3e38], np.float32)
    x = np.concatenate((bits.view(np.float32), edges, np.nextafter(edges, 0), SPECIAL))
    rsqrt = functions.rsqrt.of(FLOAT32)
    one_by_one = [rsqrt(number) for number in x]
    assert {type(number) for number in one_by_one} == {np.float32}
    np.testing.assert_array_equal(one_by_one, rsqrt(x))
    np.testing.assert_array_equal(one_by_one, [rsqrt(x[i : i + 1])[0] for i in range(x.size)])
    assert type(rsqrt(np.asarray(x[0]))) is np.float32
    want = np.float32(1) / np.sqrt(x)
    np.testing.assert_array_equal(np.isfinite(one_by_one), np.isfinite(want))
    special = ~np.isfinite(want)
    np.testing.assert_array_equal(np.array(one_by_one)[special], want[special])
    assert rsqrt(x[:0]).shape == (0,)
