"""Elementwise operations that need more than one NumPy or SciPy function."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy  # imports its parts at their first use, which keeps them out of most first calls

from pallas_shim.evaluator.program import Array, ArrayType
from pallas_shim.evaluator.scalar_types import bit_width, is_signed, signed, unsigned, wide
from pallas_shim.jax_compat.special import DIGAMMA_AT_ZERO

Function = Callable[..., Any]


class ByDtype(NamedTuple):
    """A callable that depends on the operands' dtype. ``of(dtype)`` returns the callable.

    ``in_place``: the callable computes in the narrow type and rounds each step, as XLA does.
    Otherwise its operands come widened. Then ``of`` gets the own dtype of integers, but the wide
    dtype of floats.
    """

    of: Callable[[np.dtype], Function]
    in_place: bool = False


def _in_place(of: Callable[[np.dtype], Function]) -> ByDtype:
    return ByDtype(of, in_place=True)


# -- integers -------------------------------------------------------------------------------


@ByDtype
def int_div(dtype: np.dtype) -> Function:
    """Division towards zero. XLA's x / 0 has all bits set, and the lowest / -1 wraps."""
    computed = wide(dtype)
    ones = computed.type(-1 if is_signed(dtype) else np.iinfo(computed).max)
    if computed.itemsize < 8:
        # Division in a float with more than twice the bits is exact and far faster.
        exact = np.float32 if computed.itemsize <= 2 else np.float64

        def divide(x: Array, y: Array) -> Array:
            quotient = np.divide(x, y, dtype=exact)
            return np.where(y == 0, ones, quotient.astype(np.int64).astype(computed))

    elif is_signed(dtype):

        def divide(x: Array, y: Array) -> Array:
            quotient = np.floor_divide(x, y)
            remainder = x - quotient * y
            quotient = quotient + ((remainder != 0) & ((x < 0) != (y < 0)))
            return np.where(y == 0, ones, quotient)

    else:

        def divide(x: Array, y: Array) -> Array:
            return np.where(y == 0, ones, np.floor_divide(x, y))

    def scalar_or_array(x: Array, y: Array) -> Array:
        if x.ndim or y.ndim or y == 0 or y == ones:
            return divide(x, y)
        a, b = int(x), int(y)
        quotient = abs(a) // abs(b)
        return computed.type(quotient if (a < 0) == (b < 0) else -quotient)

    return scalar_or_array


@ByDtype
def int_rem(dtype: np.dtype) -> Function:
    """The remainder of `int_div`, so x % 0 is x."""
    divide = int_div.of(dtype)
    return lambda x, y: x - divide(x, y) * y


# As many numbers as are widened at once, so that they stay in the cache.
_WIDENED = 1 << 14


@ByDtype
def mulhi(dtype: np.dtype) -> Function:
    """The upper half of the product."""
    width = bit_width(dtype)
    if width < 64:
        double = np.dtype(np.int64 if is_signed(dtype) else np.uint64).type
        computed = wide(dtype)
        upper = 1 if sys.byteorder == "little" else 0  # of the two words of a product

        def widened(x: Array, y: Array) -> Array:
            if np.ndim(x) == 0:
                x, y = y, x
            if np.ndim(y) or x.size <= _WIDENED or not x.flags.c_contiguous:
                return ((x.astype(double) * y) >> double(width)).astype(computed)
            result, by = np.empty(x.shape, computed), double(y)
            parts, row, by_width = result.reshape(-1), np.empty(_WIDENED, double), double(width)
            rest = x.reshape(-1)
            halves = row.view(computed)[upper::2] if width == 32 else None
            for start in range(0, x.size, _WIDENED):
                part = row[: min(_WIDENED, x.size - start)]
                part[...] = rest[start : start + _WIDENED]
                np.multiply(part, by, out=part)
                if halves is None:
                    np.right_shift(part, by_width, out=part)
                parts[start : start + _WIDENED] = part if halves is None else halves[: part.size]
            return result

        return widened
    half, low = dtype.type(32), dtype.type(0xFFFFFFFF)

    def by_halves(x: Array, y: Array) -> Array:
        x_high, x_low, y_high, y_low = x >> half, x & low, y >> half, y & low
        # The product of the low halves is unsigned even where the operands are signed.
        carry = (x_low.view("u8") * y_low.view("u8") >> np.uint64(32)).view(dtype)
        middle = x_high * y_low + carry
        other = x_low * y_high + (middle & low)
        return x_high * y_high + (middle >> half) + (other >> half)

    return by_halves


@ByDtype
def shift_right_logical(dtype: np.dtype) -> Function:
    """Shifts as XLA does. A count that is negative, or at least the width, shifts all bits out."""
    computed, bits = wide(dtype), unsigned(dtype)
    if computed == bits == dtype:
        return np.right_shift
    if bit_width(dtype) == 8 * bits.itemsize:
        return lambda x, y: np.right_shift(x.view(bits), y.view(bits)).view(computed)
    mask = bits.type((1 << bit_width(dtype)) - 1)

    def shift(x: Array, y: Array) -> Array:
        return np.right_shift(x.view(bits) & mask, y.view(bits)).view(computed)

    return shift


@ByDtype
def shift_right_arithmetic(dtype: np.dtype) -> Function:
    computed, bits = wide(dtype), signed(dtype)
    if computed == bits:
        return np.right_shift
    unused = bits.type(8 * bits.itemsize - bit_width(dtype))

    def shift(x: Array, y: Array) -> Array:
        x = x.view(bits)
        if unused:  # move the sign bit to the byte's sign bit
            x = x << unused >> unused
        return np.right_shift(x, y.view(bits)).view(computed)

    return shift


@ByDtype
def population_count(dtype: np.dtype) -> Function:
    computed, bits = wide(dtype), unsigned(dtype)
    mask = bits.type((1 << bit_width(dtype)) - 1)
    return lambda x: np.bitwise_count(x.view(bits) & mask).astype(computed)


@ByDtype
def clz(dtype: np.dtype) -> Function:
    computed, bits, width = wide(dtype), unsigned(dtype), bit_width(dtype)
    mask = bits.type((1 << width) - 1)

    def count(x: Array) -> Array:
        # Set every bit below the highest one, and then count the set bits.
        x = x.view(bits) & mask
        distance = 1
        while distance < width:
            x = x | (x >> bits.type(distance))
            distance *= 2
        return (bits.type(width) - np.bitwise_count(x)).astype(computed)

    return count


# -- floats ---------------------------------------------------------------------------------


# From this many elements on, a search for zeros costs less than two more comparisons. For a minimum
# the search counts zeros, which is faster than finding the lowest element.
_LOOK_AT_MAXIMA = 1 << 12
_LOOK_AT_MINIMA = 1 << 8


def _extremum(pick: np.ufunc, many: int, is_sure: Callable[[np.ndarray], bool]) -> ByDtype:
    """``is_sure`` takes at least ``many`` results as integers. It is true if no zero among them can
    have the wrong sign."""

    def of(dtype: np.dtype) -> Function:
        bits = signed(dtype)

        def extremum(x: Array, y: Array) -> Array:
            result = pick(x, y)
            if y.ndim == 0 and y:
                return result
            one = result.view(bits)
            if result.size >= many and is_sure(one):
                return result
            # For equal operands NumPy returns either one, but -0 must be less than 0. With the
            # operands swapped it returns the other one. As integers, -0 is the lowest of all.
            return pick(one, pick(y, x).view(bits)).view(dtype)

        return extremum

    return ByDtype(of)


# They have names, by which the program cache finds them at once.
def _has_no_negative_zero(bits: np.ndarray) -> bool:
    return bool(bits.min() > np.iinfo(bits.dtype).min)


def _has_no_zero(bits: np.ndarray) -> bool:
    return np.count_nonzero(bits) == bits.size


maximum = _extremum(np.maximum, _LOOK_AT_MAXIMA, _has_no_negative_zero)
minimum = _extremum(np.minimum, _LOOK_AT_MINIMA, _has_no_zero)


def to_complex(x: Array) -> Array:
    return x.astype(np.result_type(x.dtype, np.complex64))


def sign(x: Array) -> Array:
    return np.copysign(np.sign(x), x)


def round_away_from_zero(x: Array) -> Array:
    whole = np.trunc(x)
    return np.copysign(whole + np.copysign(np.abs(x - whole) >= 0.5, x), x).astype(x.dtype)


@_in_place
def nextafter(dtype: np.dtype) -> Function:
    return lambda x, y: np.where(x == y, y, np.nextafter(x, y))


@_in_place
def one_minus_square(dtype: np.dtype) -> Function:
    one = dtype.type(1)
    return lambda x: (one + x) * (one - x)


@_in_place
def exp2(dtype: np.dtype) -> Function:
    scale = np.asarray(np.log(2)).astype(dtype)[()]
    return lambda x: np.exp(x * scale)


@_in_place
def log2(dtype: np.dtype) -> Function:
    scale = np.asarray(1 / np.log(2)).astype(dtype)[()]
    computed = wide(dtype)
    if computed == dtype:
        return lambda x: np.log(x) * scale
    # Narrow types use C's logarithm, which is wrong for a subnormal when subnormals are flushed.
    return lambda x: np.log(x.astype(computed)).astype(dtype) * scale


@_in_place
def logistic(dtype: np.dtype) -> Function:
    one = dtype.type(1)
    return lambda x: one / (one + np.exp(-x))


@ByDtype
def atan2(dtype: np.dtype) -> Function:
    """The angle of (x, y). With AVX-512, NumPy takes a subnormal beside a zero for a zero. XLA
    doesn't."""
    bits = signed(dtype)
    magnitude = bits.type(np.iinfo(bits).max)

    def without_exponent(x: Array) -> Array:
        # A subnormal is its mantissa times a constant, which changes no angle.
        return np.copysign((x.view(bits) & magnitude).astype(dtype), x)

    def angle(y: Array, x: Array) -> Array:
        zero = (y == 0) & (x == 0)
        result = np.arctan2(y, x)
        if not zero.any():
            return result
        y, x = without_exponent(y), without_exponent(x)
        of_subnormals = np.arctan2(y, x)
        if dtype == np.float32:  # for two subnormals XLA divides zero by zero
            of_subnormals = np.where(y * x == 0, of_subnormals, dtype.type(np.nan))
        return np.where(zero, of_subnormals, result)

    return angle


def _exactly(x: np.ndarray) -> np.ndarray:
    """Converts floats to a wider type. Subnormals don't become zeros."""
    bits, info = signed(x.dtype), np.finfo(x.dtype)
    mantissa = (x.view(bits) & bits.type((1 << info.nmant) - 1)).astype(np.longdouble)
    subnormal = np.copysign(np.ldexp(mantissa, info.minexp - info.nmant), x)
    return np.where(x == 0, subnormal, x.astype(np.longdouble))


@ByDtype
def power(dtype: np.dtype) -> Function:
    """Computes x ** y. Like XLA, it doesn't take a subnormal operand for a zero."""
    bits = signed(dtype)

    def is_subnormal(x: Array) -> Array:
        return (x == 0) & (x.view(bits) << bits.type(1) != 0)

    def power(x: Array, y: Array) -> Array:
        result = np.power(x, y)
        if dtype == np.float64 and np.count_nonzero(zero := result == 0):
            # With AVX-512, NumPy gives 0 instead of -0 for some negative results that underflow.
            negative = zero & (x < 0) & (np.abs(np.fmod(y, 2)) == 1)
            result = np.where(negative, -0.0, result)
        # Subnormals compare equal to zero while programs run, so positive operands have none.
        if result.size and np.minimum.reduce(x, axis=None) > 0:
            if y.ndim == 0 and y or np.minimum.reduce(y, axis=None) > 0:
                return result
        if not np.count_nonzero((x == 0) | (y == 0)):
            return result
        subnormal = is_subnormal(x) | is_subnormal(y)
        if not subnormal.any():
            return result
        return np.where(subnormal, np.power(_exactly(x), _exactly(y)).astype(dtype), result)

    return power


def cbrt(x: Array) -> Array:
    # Without AVX-512, NumPy uses C's function, which is wrong for a subnormal when subnormals are
    # flushed. The product with 1 flushes them first.
    return np.cbrt(x * x.dtype.type(1))


def total_order(compare: np.ufunc) -> ByDtype:
    """-NaN < -inf < ... < -0 < 0 < ... < inf < NaN."""

    def of(dtype: np.dtype) -> Function:
        bits = signed(dtype)
        width, magnitude = bits.type(8 * bits.itemsize - 1), bits.type(np.iinfo(bits).max)

        def key(x: Array) -> Array:
            x = x.view(bits)
            return x ^ ((x >> width) & magnitude)

        return lambda x, y: compare(key(x), key(y))

    return ByDtype(of)


def integer_pow(y: int, dtype: np.dtype) -> Function:
    """x to the power of a known integer, by squaring, in JAX's order of multiplications."""
    one = dtype.type(1)
    if y == 0:
        return lambda x: np.full_like(x, one)
    bits = [digit == "1" for digit in reversed(f"{abs(y):b}")]

    def power(x: Array) -> Array:
        result = x if bits[0] else None
        for bit in bits[1:]:
            x = x * x
            if bit:
                result = x if result is None else result * x
        return result

    if y < 0:
        return lambda x: one / power(x)
    return (lambda x: x.copy()) if y == 1 else power


# -- choices --------------------------------------------------------------------------------

# From this many elements on, bit operations beat np.where on masks without a pattern. On masks with
# a pattern they cost at most 1.5 times as much. For 64-bit numbers, bit operations take twice as
# long and np.where doesn't.
_SELECT_BY_BITS = 1 << 11
_SELECT_64_BY_BITS = 1 << 13


def select(type: ArrayType) -> Function:
    """The second case where the predicate is true, elsewhere the first."""
    itemsize = type.dtype.itemsize
    many = _SELECT_BY_BITS if itemsize < 8 else _SELECT_64_BY_BITS
    if type.size < many or itemsize > 8:
        return lambda which, no, yes: np.where(which, yes, no)
    return select_by_bits(type.dtype)


def select_by_bits(dtype: np.dtype) -> Function:
    bits = signed(dtype)

    def select(which: Array, no: Array, yes: Array) -> Array:
        no = no.view(bits)
        result = no ^ yes.view(bits)
        if result.shape == which.shape:
            result *= which
        else:  # the operands broadcast against each other
            result = result * which
        result ^= no
        return result.view(dtype)

    return select


def select_many(which: Array, *cases: Array) -> Array:
    result = cases[0].copy()
    for index, case in enumerate(cases[1:], 1):
        # As in XLA, an index beyond the last case selects the last.
        result = np.where(which >= index, case, result)
    return result


# -- special functions ----------------------------------------------------------------------


def erfc(x: Array) -> Array:
    return scipy.special.erfc(x)


def bessel_i0e(x: Array) -> Array:
    return scipy.special.i0e(x)


def lgamma(x: Array) -> Array:
    return np.where(np.isinf(x), np.abs(x), scipy.special.gammaln(x))


def digamma(x: Array) -> Array:
    """At zero, SciPy has the infinity on the side of zero's sign."""
    return np.where(x == 0, x.dtype.type(DIGAMMA_AT_ZERO), scipy.special.psi(x))


def zeta(x: Array, q: Array) -> Array:
    """At its poles, and where it isn't defined, what XLA has and not SciPy."""
    inf, nan = x.dtype.type(np.inf), x.dtype.type(np.nan)
    result = scipy.special.zeta(x, q)
    # SciPy's powers are so small there that it divides zero by zero.
    result = np.where(np.isnan(result) & (x > 1) & (q > 1), x.dtype.type(0), result)
    result = np.where(x < 1, nan, result)
    pole = np.where(np.fmod(x, 2) == 0, inf, nan)
    result = np.where((q <= 0) & (np.floor(q) == q), pole, result)
    return np.where(x == 1, inf, result)


def polygamma(m: Array, x: Array) -> Array:
    natural = (m >= 0) & (np.floor(m) == m) & (m < np.inf)
    # Rounded as JAX does, or large even numbers would be odd.
    order, wide_x = (m + m.dtype.type(1)).astype(np.float64), x.astype(np.float64)
    factor, rest = scipy.special.gamma(order), zeta(order, wide_x)
    magnitude = np.asarray(factor * rest)
    no_floats = natural & (m > 0) & (x > 0) & (np.isinf(factor) | (rest < 1e-280))
    if no_floats.any():
        magnitude[no_floats] = _scaled_zeta(order[no_floats], wide_x[no_floats])
    result = np.where(np.fmod(m, 2) == 0, -1.0, 1.0) * magnitude
    result = np.where(m == 0, digamma(x), result)
    return np.where(natural, result, np.nan).astype(x.dtype)


def _scaled_zeta(order: Array, x: Array) -> Array:
    """gamma(order) * zeta(order, x), by their logarithms: either may be no float. The first terms
    of zeta's sum, and the rest by Euler and Maclaurin, are parts of its very first."""
    count = 64
    total = sum(np.exp(-order * np.log1p(k / x)) for k in range(count))
    end = x + count
    rest = end / (order - 1) + 0.5 + order / (12 * end)
    rest -= order * (order + 1) * (order + 2) / (720 * end**3)
    last = np.exp(-order * np.log1p(count / x))
    total += np.where(last == 0, 0, last * rest)
    exponent = scipy.special.gammaln(order) - order * np.log(x) + np.log(total)
    return np.where(np.isinf(x), 0, np.exp(exponent))


def bessel_i1e(x: Array) -> Array:
    return np.copysign(scipy.special.i1e(x), x)
