"""Casts between dtypes. They give what ``astype`` gives.

They are faster where NumPy or ml_dtypes would convert one number at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import ml_dtypes
import numpy as np

from pallas_shim.evaluator.scalar_types import is_float, unsigned

Function = Callable[[np.ndarray], np.ndarray]

_FLOAT32, _FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)
# The smallest values of this type are subnormal in float32.
_FLOAT8_E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)

# For fewer numbers, the fast path's NumPy calls cost more than they save.
_MANY = 1 << 10


def cast(source: np.dtype, target: np.dtype) -> Function:
    """Returns ``fn(array)``, which casts an array of ``source`` to a new array of ``target``."""
    if target == _FLOAT32 and (_is_float8(source) or source == _FLOAT16):
        return functools.partial(_from_table, source)
    if source == _FLOAT32 and _is_float8(target):
        return functools.partial(_to_float8, target)
    if source == _FLOAT32 and target == _FLOAT16:
        return _to_float16
    return lambda x: x.astype(target)


def _is_float8(dtype: np.dtype) -> bool:
    is_8_bits = dtype.kind == "V" and dtype.itemsize == 1 and is_float(dtype)
    return is_8_bits and dtype != _FLOAT8_E8M0 and ml_dtypes.finfo(dtype).bits == 8


@functools.cache
def _values(source: np.dtype) -> np.ndarray:
    """All values of a dtype as float32, by their bits."""
    bits = np.arange(1 << 8 * source.itemsize).astype(unsigned(source))
    return bits.view(source).astype(np.float32)


def _from_table(source: np.dtype, x: np.ndarray) -> np.ndarray:
    if x.size < _MANY:
        return x.astype(np.float32)
    return _values(source).take(x.view(unsigned(source)))


@functools.cache
def _rounded(target: np.dtype) -> np.ndarray:
    """The rounded values of float32s: a table indexed by their upper halves. The last bit of a half
    is set if any bit of the lower half is, which is enough for a type of so few bits (Boldo and
    Melquiond, "When double rounding is odd", 2005)."""
    upper = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    with np.errstate(all="ignore"):
        return upper.view(np.float32).astype(target)


def _to_float8(target: np.dtype, x: np.ndarray) -> np.ndarray:
    if x.size < _MANY:
        return x.astype(target)
    bits = x.view(np.uint32)
    upper = (bits >> np.uint32(16)).astype(np.intp)
    upper |= (bits & np.uint32(0xFFFF)) != 0
    return _rounded(target).take(upper)


_INT = np.int32
_MAGNITUDE, _SIGN, _ONE, _HALF_WORD = _INT(0x7FFFFFFF), _INT(0x8000), _INT(1), _INT(16)
_INFINITY, _INFINITY_AS_16 = _INT(0x7F800000), _INT(0x7C00)
_DROPPED = _INT(23 - 10)
# Half of the last bit less one, and the difference of the exponents' biases.
_REBIASED = _INT((1 << 12) - 1 - ((127 - 15) << 23))
# The spacing of float32s at 0.5 is the smallest float16, as is the spacing of float16s to 2^-13.
_EVENLY_SPACED, _HALF = np.float32(2**-13), np.float32(0.5)
_HALF_BITS = _HALF.view(_INT)


def _to_float16(x: np.ndarray) -> np.ndarray:
    """Rounds float32 to float16: to nearest, ties to even."""
    if x.size < _MANY:
        return x.astype(np.float16)
    bits = x.view(_INT)
    magnitude = bits & _MAGNITUDE
    if magnitude.max() > _INFINITY:
        return x.astype(np.float16)
    # A carry out of the mantissa adds one to the exponent, as it should.
    result = magnitude >> _DROPPED
    result &= _ONE
    result += magnitude
    result += _REBIASED
    result >>= _DROPPED
    np.minimum(result, _INFINITY_AS_16, out=result)
    # The result is too small if it is a subnormal float16.
    small = np.minimum(magnitude.view(np.float32), _EVENLY_SPACED)
    small += _HALF
    multiple = small.view(_INT)
    multiple -= _HALF_BITS
    np.maximum(result, multiple, out=result)
    result |= (bits >> _HALF_WORD) & _SIGN
    return result.astype(np.uint16).view(np.float16)
