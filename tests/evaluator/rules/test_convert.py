"""Conversions between all pairs of dtypes, bit casts of every width, reduced precision."""

from __future__ import annotations

import jax
import ml_dtypes
import numpy as np
import pytest
from jax import lax

from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.registry import Unsupported
from tests import samples
from tests.oracle import check_rule, x64

OTHERS = tuple(
    np.dtype(getattr(ml_dtypes, name))
    for name in ("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fnuz",
                 "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn", "int2", "uint2")
)
DTYPES = (samples.BOOL, *samples.INTEGERS, *samples.NARROW_INTEGERS, *samples.FLOATS,
          *samples.FLOAT8S, *OTHERS, *samples.COMPLEX)
WIDE = np.dtype(np.float64), np.dtype(np.complex128)
FLOAT4, E8M0 = np.dtype(ml_dtypes.float4_e2m1fn), np.dtype(ml_dtypes.float8_e8m0fnu)


def refused(source, target):
    if source.kind == "c":
        source = source.type(0).real.dtype
    if target.kind == "c":
        target = target.type(0).real.dtype
    float64 = np.dtype(np.float64)
    return (
        (source == FLOAT4 and samples.is_integer(target))
        or {source, target} == {E8M0, float64}
        or (source, target) == (float64, FLOAT4)
    )


def checked(source, target):
    """All pairs of the usual types; the others to and from a few, for XLA compiles slowly."""
    if source in OTHERS or target in OTHERS:
        few = {samples.BOOL, np.dtype(np.int32), np.dtype(np.uint8), *samples.FLOATS}
        return (source in few or target in few) and not refused(source, target)
    return not (source in WIDE and target == np.float16)


@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_convert(source):
    targets = [t for t in DTYPES if checked(source, t)]
    x = samples.values(source)
    if source == ml_dtypes.bfloat16:
        # Whether a subnormal one converts to True differs between versions of JAX.
        x = x[~(np.abs(x) < ml_dtypes.finfo(source).tiny)]
    with x64(True):
        check_rule(lambda x: [lax.convert_element_type(x, t) for t in targets], x)


@pytest.mark.parametrize("source", WIDE, ids=str)
def test_float64_to_float16_is_rounded_once(source):
    x = samples.values(source)
    with x64(True), np.errstate(all="ignore"):
        # On some processors XLA rounds twice.
        check_rule(
            lambda x: lax.convert_element_type(x, np.float16),
            x, exact=lambda x: x.real.astype(np.float16),
        )


@pytest.mark.parametrize("source", ["e4m3b11fnuz", "e4m3fnuz", "e5m2fnuz"])
@pytest.mark.parametrize("target", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_sign_of_the_nan_of_a_type_without_negative_zero(source, target):
    x = np.array([np.nan, 1, -2, 0], getattr(ml_dtypes, f"float8_{source}"))
    bits = np.dtype(f"u{np.dtype(target).itemsize}")
    check_rule(lambda x: lax.bitcast_convert_type(x.astype(target), bits), x)
    check_rule(lambda x: lax.top_k(x.astype(target), 2), x)
    check_rule(lambda x: lax.bitcast_convert_type(x[0].astype(target), bits), x)


def test_what_is_refused_is_named():
    with x64(True):
        for source, target in (
            (FLOAT4, np.int32), (E8M0, np.float64), (np.float64, E8M0), (np.float64, FLOAT4)
        ):
            jaxpr = jax.make_jaxpr(lambda x, t=target: lax.convert_element_type(x, t))(
                np.zeros(3, source)
            )
            with pytest.raises(Unsupported, match="convert_element_type"):
                lower(jaxpr)


BY_BITS = (*samples.INTEGERS, *samples.NARROW_INTEGERS, *samples.FLOATS, *samples.FLOAT8S)


@pytest.mark.parametrize("source", BY_BITS, ids=str)
def test_bitcast(source):
    def bits(x):
        """Every value of the result, as integers: floats compare equal too easily."""
        results = []
        for target in BY_BITS:
            ratio = samples.bit_width(target) // samples.bit_width(source)
            operand = x.reshape(-1, ratio) if ratio > 1 else x
            result = lax.bitcast_convert_type(operand, target)
            if samples.is_float(target):
                integer = samples.INTEGERS[4:][(target.itemsize).bit_length() - 1]
                result = lax.bitcast_convert_type(result, integer)
            results.append(result)
        return results

    x = samples.values(source)
    with x64(True):
        check_rule(bits, np.resize(x, 32 * -(-x.size // 32)))


def test_bitcast_of_scalars():
    check_rule(lambda x: lax.bitcast_convert_type(x, np.int32), np.float32(1.5))
    check_rule(lambda x: lax.bitcast_convert_type(x, np.int16), np.float32(1.5))
    check_rule(lambda x: lax.bitcast_convert_type(x, np.float32), np.array([3, 5], np.int16))


@pytest.mark.parametrize("dtype", samples.FLOATS, ids=str)
def test_reduce_precision(dtype):
    formats = [(8, 7), (5, 10), (5, 2), (4, 3), (8, 23), (3, 0), (11, 52), (8, 0), (2, 30)]
    check_rule(lambda x: [lax.reduce_precision(x, *f) for f in formats], samples.values(dtype))
