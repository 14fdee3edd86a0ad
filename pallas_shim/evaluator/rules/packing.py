"""Pallas TPU: packs narrow elements into a wide one, and rounds by random bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from pallas_shim.evaluator.program import Array, Types
from pallas_shim.evaluator.registry import Stack, Unsupported, batch_rule, impl_rule


def bits(dtype: np.dtype) -> int:
    """The width of an element in bits. For int2 and int4, its memory is wider."""
    if dtype.kind == "b":
        return 1
    try:
        return ml_dtypes.finfo(dtype).bits
    except ValueError:
        return ml_dtypes.iinfo(dtype).bits


def _is_integer(dtype: np.dtype) -> bool:
    try:
        ml_dtypes.iinfo(dtype)
    except ValueError:
        return False
    return True


@impl_rule("pack_elementwise")
def _pack_elementwise(
    ins: Types, outs: Types, *, packed_dtype: Any, **_: Any
) -> Callable[..., Any]:
    """Puts the first operand in the lowest bits. Drops the upper bits of integers; rounds float32
    to bfloat16."""
    (out,) = outs
    narrow = np.dtype(packed_dtype)
    width = bits(narrow)
    word = np.dtype(f"u{max(out.dtype.itemsize, 4)}")
    mask = word.type((1 << width) - 1)

    def low_bits(x: Array) -> Array:
        x = np.asarray(x)
        return x.astype(word) & mask if _is_integer(narrow) else _words(x.astype(narrow), word)

    def pack(*xs: Array) -> Array:
        packed = np.zeros(out.shape, word)
        for position, x in enumerate(xs):
            packed |= low_bits(x) << word.type(position * width)
        return packed.astype(out.dtype)

    return pack


@impl_rule("unpack_elementwise")
def _unpack_elementwise(
    ins: Types, outs: Types, *, index: Any, packed_dtype: Any, **_: Any
) -> Callable[..., Any]:
    """Takes the element number ``index``, counted from the lowest bits. Extends its sign."""
    (x,), (out,) = ins, outs
    narrow = np.dtype(packed_dtype)
    width = bits(narrow)
    word = np.dtype(f"u{x.dtype.itemsize}")
    shift, mask = word.type(index * width), word.type((1 << width) - 1)
    signed = _is_integer(narrow) and ml_dtypes.iinfo(narrow).min < 0
    sign = np.int64(1 << (width - 1))

    def unpack(a: Array) -> Array:
        found = (_words(np.asarray(a), word) >> shift) & mask
        if not _is_integer(narrow):
            return found.astype(f"u{narrow.itemsize}").view(narrow).astype(out.dtype)
        if signed:
            found = (found.astype(np.int64) ^ sign) - sign
        return found.astype(out.dtype)

    return unpack


@batch_rule("pack_elementwise", "unpack_elementwise", broadcasts=True)
def _batch(stack: Stack, **params: Any) -> Mapping[str, Any]:
    return params


def _words(array: np.ndarray, word: np.dtype) -> np.ndarray:
    """The bits of each element, in unsigned integers that are at least as wide."""
    if _is_integer(array.dtype):
        return array.astype(word)
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").astype(word)


@impl_rule("stochastic_round")
def _stochastic_round(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    """Adds a random part of the distance between neighbours, and rounds towards zero.

    If k bits are to be dropped, this adds the lowest k random bits to the value's bits, and then
    zeroes the lowest k bits. Subnormal results drop more bits, so k is larger for them.
    """
    x, (out,) = ins[0], outs
    if x.dtype != np.float32:
        raise Unsupported("stochastic_round", f"{x.dtype.name} to {out.dtype.name}")
    info = ml_dtypes.finfo(out.dtype)
    dropped = 23 - info.nmant
    least = info.minexp - info.nmant  # the exponent of the smallest subnormal
    mask = np.uint32((1 << dropped) - 1)

    def rounded(a: Array, random: Array) -> Array:
        a = np.asarray(a)
        wide = np.abs(a.astype(np.float64))
        _, exponent = np.frexp(wide)
        step = np.maximum(exponent - 1 - info.nmant, least)
        part = (np.asarray(random) & mask) * 2.0**-dropped
        magnitude = np.ldexp(np.floor(np.ldexp(wide, -step) + part), step)
        finite = np.isfinite(a)
        return np.where(finite, np.copysign(magnitude, a), a).astype(out.dtype)

    return rounded
