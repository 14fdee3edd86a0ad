"""Kinds of dtypes, and the dtype in which arithmetic on each is done."""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np


def is_float(dtype: np.dtype) -> bool:
    """True for real floating-point dtypes, ml_dtypes' included."""
    return dtype.kind == "f" or (dtype.kind == "V" and _describes(ml_dtypes.finfo, dtype))


def is_integer(dtype: np.dtype) -> bool:
    """True for integer dtypes, ml_dtypes' included; not for booleans."""
    return dtype.kind in "iu" or (dtype.kind == "V" and _describes(ml_dtypes.iinfo, dtype))


def is_signed(dtype: np.dtype) -> bool:
    """Whether an integer dtype has negative values."""
    return ml_dtypes.iinfo(dtype).min < 0


@functools.cache
def bit_width(dtype: np.dtype) -> int:
    """The number of bits of a value. NumPy stores each 4-bit or narrower value in a byte."""
    if dtype.kind != "V":
        return 8 * dtype.itemsize
    return (ml_dtypes.iinfo if is_integer(dtype) else ml_dtypes.finfo)(dtype).bits


def wide(dtype: np.dtype) -> np.dtype:
    """The dtype that arithmetic on ``dtype`` is done in, before one rounding back to it."""
    if is_float(dtype):
        return np.dtype(np.float32) if dtype.itemsize < 4 else dtype
    if is_integer(dtype) and bit_width(dtype) < 8:
        return np.dtype(np.int8 if is_signed(dtype) else np.uint8)
    return dtype


def unsigned(dtype: np.dtype) -> np.dtype:
    """The unsigned integer dtype of the same size in memory: a value's bits."""
    return np.dtype(f"u{dtype.itemsize}")


def signed(dtype: np.dtype) -> np.dtype:
    """The signed integer dtype of the same size in memory."""
    return np.dtype(f"i{dtype.itemsize}")


def recast(array: np.ndarray, target: np.dtype) -> np.ndarray:
    """The bits of the last axis' elements, the lowest first, as elements of another type."""
    source = array.dtype
    old, new = bit_width(source), bit_width(target)
    if min(old, new) >= 8:
        return np.ascontiguousarray(array).view(target)
    octets = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, source.itemsize)
    digits = np.unpackbits(octets, axis=1, bitorder="little")[:, :old].reshape(-1, new)
    octets = np.packbits(digits, axis=1, bitorder="little")
    values = _from_low_bits(octets, target) if new < 8 else octets.view(target)
    return values.reshape(*array.shape[:-1], array.shape[-1] * old // new)


def _from_low_bits(octets: np.ndarray, target: np.dtype) -> np.ndarray:
    """Values of a type narrower than a byte from bytes whose low bits they are."""
    if is_integer(target) and is_signed(target):
        # Its bytes hold the sign in the unused bits too.
        unused = np.uint8(8 - bit_width(target))
        return ((octets << unused).view(np.int8) >> unused.view(np.int8)).view(target)
    return octets.view(target)


@functools.cache
def _describes(info: type, dtype: np.dtype) -> bool:
    try:
        info(dtype)
    except ValueError:
        return False
    return True
