"""Operands for tests: every value of the narrow dtypes, and the telling ones of the others."""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np

from pallas_shim.evaluator.scalar_types import bit_width, is_float, is_integer, is_signed

FLOATS = tuple(map(np.dtype, (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)))
FLOAT8S = (np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2))
INTEGERS = tuple(np.dtype(f"{sign}{size}") for sign in "iu" for size in (1, 2, 4, 8))
NARROW_INTEGERS = tuple(
    np.dtype(getattr(ml_dtypes, name)) for name in ("int2", "uint2", "int4", "uint4")
)
COMPLEX = (np.dtype(np.complex64), np.dtype(np.complex128))
BOOL = np.dtype(np.bool_)


@functools.cache
def values(dtype: np.dtype) -> np.ndarray:
    """Every value of a dtype of up to 16 bits; of others the edges and a dense sample."""
    if dtype == BOOL:
        return np.array([False, True])
    if is_integer(dtype):
        return _integers(dtype)
    if is_float(dtype):
        return _floats(dtype)
    with np.errstate(all="ignore"):
        real = _floats(np.dtype(f"f{dtype.itemsize // 2}"))
        result = np.empty(real.shape, dtype)
        result.real, result.imag = real, real[::-1]
    return result


def _integers(dtype: np.dtype) -> np.ndarray:
    info, bits = ml_dtypes.iinfo(dtype), bit_width(dtype)
    if bits <= 16:
        every = np.arange(info.min, info.max + 1)
        return every.astype(np.int8 if is_signed(dtype) else np.uint8).astype(dtype) if (
            bits < 8
        ) else every.astype(dtype)
    near = [2**power + step for power in range(bits) for step in (-2, -1, 0, 1, 2)]
    edges = [v for v in {*near, *(-v for v in near)} if info.min <= v <= info.max]
    dense = np.random.default_rng(0).integers(info.min, info.max, 20_000, dtype, endpoint=True)
    return np.concatenate([np.array(sorted(edges), dtype), dense])


def _floats(dtype: np.dtype) -> np.ndarray:
    if dtype.itemsize <= 2:
        every = np.arange(1 << bit_width(dtype)).astype(f"u{dtype.itemsize}")
        return every.view(dtype)
    random = np.random.default_rng(0)
    bits = random.integers(0, 1 << 8 * dtype.itemsize, 60_000, f"u{dtype.itemsize}", endpoint=False)
    usual = random.standard_normal(60_000) * np.repeat([0.3, 1, 10], 20_000)
    return np.concatenate([specials(dtype), _near_powers(dtype), bits.view(dtype),
                           usual.astype(dtype), _ties(dtype)])


def _near_powers(dtype: np.dtype) -> np.ndarray:
    """Around the powers of two, where the ranges of the integer types end."""
    near = []
    for power in range(-2, 66):
        middle = dtype.type(2.0**power)
        near += [middle, np.nextafter(middle, dtype.type(0)), np.nextafter(middle, middle * 2),
                 middle - dtype.type(1), middle + dtype.type(1), middle - dtype.type(0.5),
                 middle + dtype.type(0.5)]
    positive = np.array(near, dtype)
    return np.concatenate([positive, -positive])


def _ties(dtype: np.dtype) -> np.ndarray:
    """Half way between two float16 or bfloat16 values, and next to that."""
    result = []
    for narrow in (np.float16, ml_dtypes.bfloat16):
        with np.errstate(all="ignore"):
            every = np.arange(0, 1 << 16, 7, dtype=np.uint16).view(narrow).astype(dtype)
            tie = every * dtype.type(1 + float(ml_dtypes.finfo(narrow).eps) / 2)
            result += [tie, np.nextafter(tie, dtype.type(0))]
    return np.concatenate(result)


def specials(dtype: np.dtype) -> np.ndarray:
    """Zeros, infinities, NaN, the ends of the range, subnormals, small and half numbers."""
    info = ml_dtypes.finfo(dtype)
    positive = [0, 0.1, 0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 7, 10, 1e4, 1e30, 2.0**24 + 1, 2.0**31,
                np.inf, np.nan, float(info.max), float(info.tiny), float(info.tiny) / 2,
                float(info.smallest_subnormal), 1 + float(info.eps), 88.7, 103.3, 709.8]
    with np.errstate(all="ignore"):
        one_sign = np.array(positive).astype(dtype)
        return np.concatenate([one_sign, -one_sign])


def pairs(dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of values of a dtype of up to 8 bits; of others every pair of special
    values, and many random ones."""
    if dtype == BOOL or bit_width_of_any(dtype) <= 8:
        return all_pairs(values(dtype))
    if is_float(dtype):
        few = specials(dtype)
    elif is_integer(dtype):
        few = _telling_integers(dtype)
    else:
        few = values(dtype)[:40]
    x, y = all_pairs(few)
    many = values(dtype)
    order = np.random.default_rng(1).permutation(many.size)
    return np.concatenate([x, many[order]]), np.concatenate([y, many])


def all_pairs(few: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat(few, few.size), np.tile(few, few.size)


def bit_width_of_any(dtype: np.dtype) -> int:
    return 8 * dtype.itemsize if dtype.kind == "c" else bit_width(dtype)


def _telling_integers(dtype: np.dtype) -> np.ndarray:
    info = np.iinfo(dtype)
    near = {0, 1, 2, 3, 5, 7, 8, 10, 15, 16, 31, 32, 33, 63, 64, 65, 100, info.max // 2,
            info.max // 2 + 1, info.max - 1, info.max, info.min, info.min + 1}
    return np.array(sorted(v for v in {*near, *(-v for v in near)} if info.min <= v <= info.max),
                    dtype)
