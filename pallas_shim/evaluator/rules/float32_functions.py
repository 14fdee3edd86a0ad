"""Functions of float32, composed of vectorised ones.

NumPy and SciPy compute them one number at a time. These are 3 to 5 times as fast; `rsqrt` is as
fast, and more exact. Each is within 4 units in the last place (ulp), as are the functions that it
uses. Our own polynomials were fitted in float64 to minimise the largest relative error (Lawson's
iteration of weighted least squares). Other dtypes go to NumPy and SciPy.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy  # imports its parts at their first use, which keeps them out of most first calls

from pallas_shim.evaluator.program import Array
from pallas_shim.evaluator.rules.elementwise_math import ByDtype, select_by_bits

Function = Callable[[np.ndarray], np.ndarray]

_FLOAT32 = np.dtype(np.float32)
_select = select_by_bits(_FLOAT32)
_ONE = np.float32(1)

# This many numbers, with their intermediate results, stay in the processor's caches.
_PART = 1 << 16


@ByDtype
def erf(dtype: np.dtype) -> Function:
    return _erf if dtype == _FLOAT32 else lambda x: scipy.special.erf(x)


@ByDtype
def erf_inv(dtype: np.dtype) -> Function:
    return _erf_inv if dtype == _FLOAT32 else _erf_inv_of_float64


@ByDtype
def expm1(dtype: np.dtype) -> Function:
    return _expm1 if dtype == _FLOAT32 else np.expm1


@ByDtype
def log1p(dtype: np.dtype) -> Function:
    return _log1p if dtype == _FLOAT32 else np.log1p


@ByDtype
def rsqrt(dtype: np.dtype) -> Function:
    one = dtype.type(1)
    return _rsqrt if dtype == _FLOAT32 else lambda x: one / np.sqrt(x)


def _in_parts(function: Function) -> Function:
    @functools.wraps(function)  # the program cache finds it by its name
    def run(x: Array) -> Array:
        if x.size <= _PART:
            return function(x)
        flat = x.reshape(-1)
        result = np.empty_like(flat)
        for start in range(0, flat.size, _PART):
            part = slice(start, start + _PART)
            result[part] = function(flat[part])
        return result.reshape(x.shape)

    return run


def _float32s(*numbers: float) -> tuple[np.float32, ...]:
    return tuple(map(np.float32, numbers))


def _polynomial(x: np.ndarray, coefficients: Sequence[np.float32]) -> np.ndarray:
    """Evaluates a polynomial into a new array. The coefficients start with the constant term."""
    *rest, second, highest = coefficients
    result = x * highest
    result += second
    for coefficient in reversed(rest):
        result *= x
        result += coefficient
    return result


# atanh(erf(x)) / x of x^2: errors in it shrink where tanh becomes flat.
_ERF = _float32s(
    1.1283792, 0.10276987, -0.0001952891, -0.00061483734, 8.459617e-05, -4.794513e-06,
    2.7566479e-08, 5.4219735e-09,
)  # fmt: skip


@_in_parts
def _erf(x: Array) -> Array:
    """At most 3.3 ulp."""
    inner = _polynomial(x * x, _ERF)
    inner *= x
    return np.tanh(inner)


# (expm1(x) - x) / x^2 for |x| < 1.2, from where on exp(x) - 1 loses no digits.
_NEAR = np.float32(1.2)
_EXPM1 = _float32s(
    0.49999997, 0.1666667, 0.041667, 0.008333183, 0.001387985, 0.000198547, 2.5677951e-05,
    2.7570604e-06,
)  # fmt: skip


@_in_parts
def _expm1(x: Array) -> Array:
    """At most 2.7 ulp."""
    near = _polynomial(x, _EXPM1)
    near *= x
    near *= x
    near += x
    far = np.exp(x)
    far -= _ONE
    # The sum above has lost the sign of -0.
    return np.copysign(_select(np.abs(x) < _NEAR, far, near), x)


@_in_parts
def _log1p(x: Array) -> Array:
    """At most 3.6 ulp."""
    sum_ = x + _ONE
    # The logarithm lacks the rounding error of the sum, divided by the sum.
    result = x - (sum_ - _ONE)
    result /= sum_
    result += np.log(sum_)
    finite = np.isfinite(result)
    if not finite.all():
        result = np.where(finite, result, np.log1p(x))
    return np.copysign(result, x)


# Giles, "Approximating the erfinv function" (2010), single precision: the coefficients of
# polynomials in w - 2.5 where w = -log(1 - x^2) < 5, and in sqrt(w) - 3 elsewhere.
_ERF_INV_CENTRE = _float32s(
    1.50140941, 0.246640727, -0.00417768164, -0.00125372503, 0.00021858087, -4.39150654e-06,
    -3.5233877e-06, 3.43273939e-07, 2.81022636e-08,
)  # fmt: skip
_ERF_INV_TAIL = _float32s(
    2.83297682, 1.00167406, 0.00943887047, -0.0076224613, 0.00573950773, -0.00367342844,
    0.00134934322, 0.000100950558, -0.000200214257,
)  # fmt: skip
_FIVE, _HALF, _THREE, _INFINITY = _float32s(5, 2.5, 3, np.inf)


@_in_parts
def _erf_inv(x: Array) -> Array:
    w = -_log1p(-x * x)
    factor = _select(
        w < _FIVE,
        _polynomial(np.sqrt(w) - _THREE, _ERF_INV_TAIL),
        _polynomial(w - _HALF, _ERF_INV_CENTRE),
    )
    return np.where(np.abs(x) == 1, x * _INFINITY, factor * x)


def _erf_inv_of_float64(x: Array) -> Array:
    # SciPy's function loses digits near zero if subnormals are flushed.
    slope = np.sqrt(np.pi) / 2
    return np.where(np.abs(x) < 1e-9, x * slope, scipy.special.erfinv(x))


# The reciprocals of numbers from here on are flushed.
_FLUSHED = 2.0**126


def _rsqrt(x: Array) -> Array:
    """At most 0.86 ulp: the root halves the error of the reciprocal."""
    if not x.ndim:
        # Each step is rounded to float32, as in an array: float64 has more than twice the bits.
        number = x.item()
        if 0 < number < _FLUSHED:
            return np.float32(math.sqrt(np.float32(1 / number)))
        return _rsqrt_of_all(x)
    result = np.reciprocal(x)
    np.sqrt(result, result)
    # A reduction to the minimum takes three times as long for few numbers. NaN counts as the least.
    if result.size and not result.item(result.argmin()) > 0:
        return _rsqrt_of_all(x)
    return result


def _rsqrt_of_all(x: Array) -> Array:
    """The same, also of infinity, zeros, and numbers whose reciprocal is flushed."""
    large = x > 1
    root = np.sqrt(_ONE / np.where(large, x * np.float32(2.0**-40), x))
    root = np.where(large, root * np.float32(2.0**-20), root)
    return np.where(x > 0, root, _ONE / np.sqrt(x))[()]
