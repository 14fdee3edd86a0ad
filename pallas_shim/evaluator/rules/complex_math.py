"""Functions of complex numbers for which NumPy differs from XLA.

NumPy uses C's functions. C and XLA differ at infinities, NaNs and branch cuts. On a cut, XLA takes
the side of the positive zero. Operands and results are complex64 or complex128.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pallas_shim.evaluator.program import Array
from pallas_shim.evaluator.rules.elementwise_math import atan2

Function = Callable[[Any], Any]


def _joined(real: Any, imag: Any, dtype: np.dtype) -> np.ndarray:
    result = np.empty(np.broadcast_shapes(np.shape(real), np.shape(imag)), dtype)
    result.real, result.imag = real, imag
    return result


def _nowhere(result: Any, where: Any) -> Any:
    """The result with NaN in both parts at the given places."""
    return np.where(where, result.dtype.type(complex(np.nan, np.nan)), result)


def _above(fn: Function) -> Function:
    """Takes the value above the cut for operands on a cut along the real axis."""
    return lambda z: fn(_joined(z.real, z.imag + z.real.dtype.type(0), z.dtype))


def _right(fn: Function) -> Function:
    """Takes the value to the right of the cut for operands on a cut along the imaginary axis."""
    return lambda z: fn(_joined(z.real + z.real.dtype.type(0), z.imag, z.dtype))


def _whole(fn: Function, but: Function) -> Function:
    """A NaN in one part of the result becomes NaN in both, except where ``but(z)`` is true."""

    def run(z: Array) -> Array:
        result = fn(z)
        return _nowhere(result, np.isnan(result) & ~but(z))

    return run


def _without_nan(fn: Function) -> Function:
    """An operand with NaN in either part gives NaN in both parts."""
    return lambda z: _nowhere(fn(z), np.isnan(z))


def _on_real_axis(z: Array) -> Array:
    return np.isnan(z.real) & (z.imag == 0)


def _on_imaginary_axis(z: Array) -> Array:
    return np.isnan(z.imag) & (z.real == 0)


sqrt = _without_nan(_above(np.sqrt))
log = _without_nan(np.log)
asin, acos = _whole(_above(np.arcsin), np.isinf), _whole(_above(np.arccos), np.isinf)
asinh, acosh = _whole(_right(np.arcsinh), np.isinf), _whole(_above(np.arccosh), np.isinf)
sin, cos, tan = (_whole(fn, _on_imaginary_axis) for fn in (np.sin, np.cos, np.tan))
sinh, cosh, tanh = (_whole(fn, _on_real_axis) for fn in (np.sinh, np.cosh, np.tanh))


def atan(z: Array) -> Array:
    return np.where(np.isinf(z), _right(np.arctan)(z), np.arctan(z))


def atanh(z: Array) -> Array:
    return np.where(np.isinf(z), _above(np.arctanh)(z), np.arctanh(z))


def sign(z: Array) -> Array:
    return np.where(z == 0, z, _joined(z.real / np.abs(z), z.imag / np.abs(z), z.dtype))


def exp(z: Array) -> Array:
    return _nowhere(np.exp(z), np.isinf(z.real) & ~np.isfinite(z.imag))


def expm1(z: Array) -> Array:
    result = np.expm1(z)
    return _joined(result.real, np.where(z.imag == 0, z.imag, result.imag), z.dtype)


def exp2(z: Array) -> Array:
    """2 ** z as the exponential of a complex product. The product mixes the two parts."""
    return exp(z * z.dtype.type(np.log(2)))


def log1p(z: Array) -> Array:
    """Keeps all digits near zero, because log |1 + z| is computed without rounding 1 + z."""
    wide = z.astype(np.complex128)
    x, y = wide.real, wide.imag
    near = np.log1p(x * (2 + x) + y * y) / 2
    real = np.where(np.abs(wide) < 0.5, near, np.log(np.abs(1 + wide)))
    # The operands stay narrow, because widening would turn subnormals into zeros.
    angle = atan2.of(z.real.dtype)(z.imag, 1 + z.real)
    return _nowhere(_joined(real, angle, z.dtype), np.isnan(z))


def divide(z: Array, w: Array) -> Array:
    """Computes quotients. Where NumPy has NaN, C's Annex G may ask for infinity or zero."""
    result = np.asarray(np.divide(z, w))
    by_zero, lost = w == 0, np.isnan(result.real) & np.isnan(result.imag)
    if not (lost.any() or by_zero.any()):
        return result
    a, b, c, d = z.real, z.imag, w.real, w.imag
    infinite = np.isinf(z) & np.isfinite(w)
    by_infinity = np.isfinite(z) & np.isinf(w)
    inf, zero = a.dtype.type(np.inf), a.dtype.type(0)
    a, b = _directed(a, infinite), _directed(b, infinite)
    c, d = _directed(c, by_infinity), _directed(d, by_infinity)
    scale = np.where(infinite, inf, zero)
    special = _joined(scale * (a * c + b * d), scale * (b * c - a * d), result.dtype)
    pole = np.copysign(inf, w.real)
    at_pole = _joined(pole * z.real, pole * z.imag, result.dtype)
    result = np.where(lost & (infinite | by_infinity), special, result)
    return np.where(by_zero, at_pole, result)


def _directed(part: Any, where: Any) -> Any:
    """At the given places, infinities become 1 and other numbers 0; signs stay."""
    return np.where(where, np.copysign(np.isinf(part).astype(part.dtype), part), part)


def rsqrt(z: Array) -> Array:
    return np.where(np.isinf(z), z.dtype.type(0), divide(z.dtype.type(1), np.sqrt(z)))


def logistic(z: Array) -> Array:
    one = z.dtype.type(1)
    return divide(one, one + exp(-z))
