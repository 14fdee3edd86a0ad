"""Conversions between dtypes, of bits, and of precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.memory import same
from pallas_shim.evaluator.program import Array, Types, Value
from pallas_shim.evaluator.registry import Stack, Unsupported, batch_rule, impl_rule, lowering_rule
from pallas_shim.evaluator.rules.casts import cast
from pallas_shim.evaluator.scalar_types import (
    bit_width,
    is_float,
    is_integer,
    recast,
    unsigned,
    wide,
)

Function = Callable[..., Any]

_FLOAT4 = np.dtype(ml_dtypes.float4_e2m1fn)
_FLOAT8_E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
_FLOAT16, _FLOAT64 = np.dtype(np.float16), np.dtype(np.float64)
# XLA rounds these directly. It rounds all other narrow types by way of float32.
_ROUNDED_OTHERWISE = {
    (_FLOAT64, _FLOAT4),
    (_FLOAT64, _FLOAT8_E8M0),
    (_FLOAT8_E8M0, _FLOAT64),
}


@lowering_rule("convert_element_type")
def _convert_or_keep(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    out = lowering.type(eqn.outvars[0].aval)
    if ins[0].type.dtype == out.dtype:
        return ins
    # The parameters add nothing to the types.
    return lowering.apply("convert_element_type", ins, [out], {})


@impl_rule("convert_element_type")
def _convert_element_type(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    source, target = ins[0].dtype, outs[0].dtype
    scalar = None if ins[0].shape else _of_scalar(source, target)
    return scalar or conversion(source, target)


def _of_scalar(source: np.dtype, target: np.dtype) -> Function | None:
    """A faster `conversion` of one number, where NumPy's type does the same."""
    if target.kind not in "iuf":
        return None
    if source == np.bool_:
        no, yes = target.type(0), target.type(1)
        return lambda x: yes if x else no
    exact = target.kind != "f" or source.itemsize <= 4
    return target.type if source.kind in "iu" and exact else None


@batch_rule("convert_element_type", "bitcast_convert_type", "reduce_precision")
def _batch(stack: Stack, **params: Any) -> Mapping[str, Any] | None:
    return params


def conversion(source: np.dtype, target: np.dtype) -> Function:
    """Returns ``fn(array)``, which converts values of ``source`` to ``target`` as XLA does."""
    if source.kind == "c" and target.kind != "c":
        real = conversion(source.type(0).real.dtype, target)
        return lambda x: real(x.real)
    if target == np.bool_:
        return _to_bool(source)
    if is_float(source) and is_integer(target):
        return _to_integer(source, target)
    if (source, target) in _ROUNDED_OTHERWISE:
        raise Unsupported("convert_element_type", f"from {source.name} to {target.name}")
    if target == _FLOAT4:
        return _to_float4(source)
    if (source, target) == (_FLOAT64, _FLOAT16):
        # XLA rounds once if the processor has an instruction for it, otherwise twice.
        return cast(source, target)
    convert = _casts(source, [wide(source), wide(target), target])
    if is_float(source) and source.name.endswith("fnuz") and not target.name.endswith("fnuz"):
        return _with_positive_nan(convert, target)
    return convert


def _with_positive_nan(convert: Function, target: np.dtype) -> Function:
    """In a type without -0, NaN has the bits of -0. XLA drops the sign of that NaN."""
    nan = np.asarray(np.nan, target)
    return lambda x: np.where(x.view(np.uint8) == 0x80, nan, convert(x))


def _casts(source: np.dtype, steps: list[np.dtype]) -> Function:
    """Casts through each of ``steps`` in turn."""
    path: list[np.dtype] = []
    for step in steps:
        if step != (path[-1] if path else source):
            path.append(step)
    if not path:
        return lambda x: x.copy()
    casts = tuple(map(cast, [source, *path], path))
    if len(casts) == 1:
        return casts[0]

    def cast_by_steps(x: Array) -> Array:
        for step in casts:
            x = step(x)
        return x

    return cast_by_steps


def _to_bool(source: np.dtype) -> Function:
    computed = wide(source)
    zero = computed.type(0)
    if computed == source:
        return lambda x: x != zero
    if is_integer(source):
        return lambda x: x.astype(computed) != zero
    # Work on the bits, because XLA doesn't treat the subnormals of narrow floats as zeros.
    magnitude = np.uint32(0x7FFFFFFF)
    return lambda x: (x.astype(computed).view(np.uint32) & magnitude) != 0


def _to_float4(source: np.dtype) -> Function:
    """The type has no NaN: a NaN becomes -0."""
    widened = _casts(source, [wide(source), np.dtype(np.float32)])

    def convert(x: Array) -> Array:
        x = widened(x)
        return np.where(np.isnan(x), np.float32(-0.0), x).astype(_FLOAT4)

    return convert


def _to_integer(source: np.dtype, target: np.dtype) -> Function:
    """Rounds towards zero. NaN becomes 0. A number out of range becomes the nearest one in
    range."""
    if source == _FLOAT4:  # XLA takes its largest value for an infinity
        raise Unsupported("convert_element_type", f"from {source.name} to {target.name}")
    info = ml_dtypes.iinfo(target)
    computed, stored = wide(source), wide(target)
    low, high = computed.type(info.min), computed.type(info.max)
    zero, highest = stored.type(0), stored.type(info.max)
    if int(high) > info.max:  # info.max is no float, so take the greatest float below it
        high = np.nextafter(high, low)

    widened = cast(source, computed) if source != computed else same

    def convert(x: Array) -> Array:
        x = widened(x)
        if ((x >= low) & (x <= high)).all():
            return x.astype(stored).astype(target, copy=False)
        result = np.minimum(np.maximum(x, low), high).astype(stored)
        result = np.where(x > high, highest, result)
        return np.where(x != x, zero, result).astype(target, copy=False)

    return convert


# -- bits -----------------------------------------------------------------------------------


@impl_rule("bitcast_convert_type", view=True)
def _bitcast_convert_type(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    source, (out_shape, target) = ins[0].dtype, outs[0]
    old, new = bit_width(source), bit_width(target)
    if min(old, new) < 8:
        return lambda x: recast(np.reshape(x, -1), target).reshape(out_shape)
    if old == new:
        return lambda x: x.view(target)
    return lambda x: np.ascontiguousarray(x).reshape(-1).view(target).reshape(out_shape)


@impl_rule("reduce_precision")
def _reduce_precision(
    ins: Types, outs: Types, *, exponent_bits: Any, mantissa_bits: Any, **_: Any
) -> Callable[..., Any]:
    """Rounds to a float format with the given numbers of bits, and converts back."""
    dtype = ins[0].dtype
    if dtype.itemsize == 1:
        raise Unsupported("reduce_precision", f"of {dtype.name} is not implemented")
    info, bits = ml_dtypes.finfo(dtype), unsigned(dtype)
    mantissa, exponent = info.nmant, info.nexp
    lost = max(mantissa - mantissa_bits, 0)
    shift, one, half_less_one = map(bits.type, (lost, 1, (1 << lost >> 1) - 1 if lost else 0))
    kept = ~bits.type((1 << lost) - 1)
    sign_bit = bits.type(1 << (mantissa + exponent))
    infinity = bits.type(((1 << exponent) - 1) << mantissa)
    narrower = exponent_bits < exponent
    # Values with at least the highest exponent overflow. Up to the lowest one they underflow.
    bias = (1 << (exponent - 1)) - 1
    reduced_bias = min(bias, (1 << (exponent_bits - 1)) - 1)
    highest = bits.type((bias + reduced_bias) << mantissa)
    lowest = bits.type((bias - reduced_bias) << mantissa)

    def reduce(x: Array) -> Array:
        value = x.view(bits)
        if lost:
            # Round to nearest, ties to even. A carry out of the mantissa adds one to the exponent.
            value = (value + ((value >> shift) & one) + half_less_one) & kept
        if narrower:
            power, sign = value & infinity, value & sign_bit
            value = np.where(power > highest, sign | infinity, value)
            value = np.where(power <= lowest, sign, value)
        return np.where(np.isnan(x), x, value.view(dtype))

    return reduce
