"""Packed elements and rounding by random bits: JAX runs these on a TPU only, and its
documentation defines them."""

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.evaluator import rules
from pallas_shim.evaluator.program import ArrayType
from tests.kernels.harness import evaluate
from tests.oracle import compare

rules.load()

WIDTHS = {"float32": 32, "bfloat16": 16, "int32": 32, "int16": 16, "int8": 8, "int4": 4, "int2": 2}
PAIRS = [
    ("float32", "bfloat16"),
    ("int32", "int16"),
    ("int32", "int8"),
    ("int32", "int4"),
    ("int16", "int8"),
    ("int8", "int4"),
    ("int4", "int2"),
]


def make(primitive, ins, out, **params):
    types = [ArrayType(x.shape, x.dtype) for x in ins]
    return rules.IMPL_RULES[primitive].make(types, [out], **params)(*ins)


def dtype(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def values(wide, count):
    words = np.random.default_rng(3).integers(0, 1 << 32, (count, 5, 7), dtype=np.uint32)
    if wide == "float32":
        return (words.astype(np.float32) - 2**31) / 2**20
    return words.astype(dtype(wide))


@pytest.mark.parametrize("wide, narrow", PAIRS)
def test_packed_elements_lie_from_the_lowest_bits_up(wide, narrow):
    count = WIDTHS[wide] // WIDTHS[narrow]
    xs = values(wide, count)
    out = ArrayType(xs.shape[1:], dtype(f"uint{WIDTHS[wide]}"))
    packed = make("pack_elementwise", list(xs), out, packed_dtype=dtype(narrow))
    assert packed.dtype == out.dtype
    for place in np.ndindex(out.shape):
        bits = ""
        for x in xs[(slice(None), *place)]:
            if narrow == "bfloat16":
                number = int(x.astype(dtype(narrow)).view(np.uint16))
            else:
                number = int(x) % (1 << WIDTHS[narrow])
            bits = f"{number:0{WIDTHS[narrow]}b}" + bits
        assert int(packed[place]) == int(bits, 2)


@pytest.mark.parametrize("wide, narrow", PAIRS)
def test_unpacking_undoes_packing(wide, narrow):
    count = WIDTHS[wide] // WIDTHS[narrow]
    xs = values(wide, count)
    out = ArrayType(xs.shape[1:], dtype(f"uint{WIDTHS[wide]}"))
    packed = make("pack_elementwise", list(xs), out, packed_dtype=dtype(narrow))
    for index, x in enumerate(xs):
        back = ArrayType(out.shape, dtype(wide))
        got = make(
            "unpack_elementwise", [packed], back, index=index, packed_dtype=dtype(narrow),
            unpacked_dtype=dtype(wide),
        )
        # ml_dtypes has no conversion between its own integers.
        via = x if wide == "float32" else x.astype(np.int32)
        compare(got, via.astype(dtype(narrow)).astype(via.dtype).astype(dtype(wide)))


def rounded(x, random, target):
    out = ArrayType(x.shape, dtype(target))
    return make("stochastic_round", [x, random], out, target_dtype=dtype(target))


@given(st.integers(0, 2**32 - 1))
def test_rounding_to_bfloat16_adds_the_random_bits_below(seed):
    random = np.random.default_rng(seed)
    bits, noise = random.integers(0, 1 << 32, (2, 64), dtype=np.uint32)
    x = bits.view(np.float32)
    sums = (bits.astype(np.uint64) + (noise & 0xFFFF)).astype(np.uint32)
    want = (sums >> 16).astype(np.uint16).view(ml_dtypes.bfloat16)
    with np.errstate(all="ignore"):  # as programs run
        want = np.where(np.isfinite(x), want, x.astype(ml_dtypes.bfloat16))
        got = rounded(x, noise, "bfloat16")
    same = (got.view(np.uint16) == want.view(np.uint16)) | (np.isnan(got) & np.isnan(x))
    assert same.all()


@pytest.mark.parametrize("target", ["float8_e5m2", "float8_e4m3fn", "float8_e4m3b11fnuz"])
def test_rounding_goes_to_a_neighbour_as_often_as_it_is_near(target):
    random = np.random.default_rng(0)
    x = (random.standard_normal(200) * 2.0 ** random.integers(-12, 4, 200)).astype(np.float32)
    noise = random.integers(0, 1 << 32, (2000, 200), dtype=np.uint32)
    noise[0], noise[1] = 0, 2**32 - 1
    got = rounded(np.broadcast_to(x, noise.shape), noise, target).astype(np.float64)
    low, high = got.min(0), got.max(0)
    assert (low <= x).all() and (x <= high).all()
    step = high - low
    neighbours = np.unique(np.arange(256, dtype=np.uint8).view(dtype(target)).astype(np.float64))
    at = np.searchsorted(neighbours, low)
    assert (neighbours[at] == low).all()
    inexact = step > 0
    assert (neighbours[at + 1][inexact] == high[inexact]).all()
    assert (np.abs(got.mean(0) - x)[inexact] < 0.06 * step[inexact]).all()


if hasattr(pltpu, "pack_elementwise"):  # JAX >= 0.10

    def test_in_a_kernel():
        def kernel(x, noise, packed, back, near):
            words = pltpu.pack_elementwise([x[...], -x[...]], packed_dtype=ml_dtypes.bfloat16)
            packed[...] = words
            back[...] = pltpu.unpack_elementwise(
                words, index=1, packed_dtype=ml_dtypes.bfloat16, unpacked_dtype=np.float32
            )
            near[...] = pltpu.stochastic_round(
                x[...], noise[...], target_dtype=ml_dtypes.bfloat16
            )

        shape = (8, 128)
        outs = [jax.ShapeDtypeStruct(shape, t) for t in ("uint32", "float32", "bfloat16")]
        x = np.linspace(-3, 3, 1024, dtype=np.float32).reshape(shape)
        low = x.astype(ml_dtypes.bfloat16)
        truncated = (x.view(np.uint32) >> 16).astype(np.uint16).view(ml_dtypes.bfloat16)
        for packed, back, near in evaluate(
            pl.pallas_call(kernel, out_shape=outs), x, np.zeros(shape, np.uint32)
        ):
            words = [np.asarray(v).view(np.uint16).astype(np.uint32) for v in (low, -low)]
            compare(packed, words[0] | words[1] << 16)
            compare(back, -low.astype(np.float32))
            compare(near, truncated)
