"""Reductions along axes, and running (cumulative) reductions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from pallas_shim.evaluator import scalar_types
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.memory import same
from pallas_shim.evaluator.program import Array, ArrayType, Types, Value
from pallas_shim.evaluator.registry import Stack, Unsupported, batch_rule, impl_rule, lowering_rule
from pallas_shim.evaluator.rules.casts import cast
from pallas_shim.jax_compat import definitions

Apply = Callable[[np.ufunc, np.ndarray, Any], np.ndarray]


def lowest(dtype: np.dtype) -> Any:
    """JAX's identity of max."""
    return _extreme(dtype, min)


def highest(dtype: np.dtype) -> Any:
    """JAX's identity of min."""
    return _extreme(dtype, max)


def _extreme(dtype: np.dtype, pick: Callable[[Any], Any]) -> Any:
    if dtype.kind == "b":
        return pick((False, True))
    if scalar_types.is_integer(dtype):
        info = ml_dtypes.iinfo(dtype)
        return pick((int(info.min), int(info.max)))
    infinity = np.array(pick((-np.inf, np.inf))).astype(dtype)
    if np.isinf(infinity):
        return float(infinity)
    finfo = ml_dtypes.finfo(dtype)
    return pick((float(finfo.min), float(finfo.max)))


# -- the shared part ------------------------------------------------------------------------


def accumulation(
    ufunc: np.ufunc, identity: int, dtype: np.dtype, apply: Apply
) -> Callable[..., Any]:
    """The callable of a sum or product. It uses ``apply`` in the accumulator's dtype, and rounds
    once."""
    wide = scalar_types.wide(dtype)
    initial = wide.type(identity)
    if wide == dtype:
        return lambda x: apply(ufunc, x, initial)
    widen = cast(dtype, wide)
    return lambda x: apply(ufunc, widen(x), initial).astype(dtype)


def extremum(ufunc: np.ufunc, dtype: np.dtype, apply: Apply) -> Callable[..., Any]:
    """The callable of a max or min. The result is NaN if an element is, and -0.0 is less than 0.0.

    NumPy may return either zero, so a result of zero is computed again.

    Raises:
      Unsupported: the numbers are complex. Then JAX's result depends on the order of NaNs.
    """
    if dtype.kind == "c":
        raise Unsupported(f"reduce_{ufunc.__name__[:3]}", "max and min of complex numbers")
    wide = scalar_types.wide(dtype)
    initial = wide.type(lowest(dtype) if ufunc is np.maximum else highest(dtype))
    if not scalar_types.is_float(dtype):
        if wide == dtype:
            return lambda x: apply(ufunc, x, initial)
        return lambda x: apply(ufunc, x.astype(wide), initial).astype(dtype)
    zero, bits = wide.type(0), np.dtype(f"i{wide.itemsize}")
    info = np.iinfo(bits)
    least = bits.type(info.min if ufunc is np.maximum else info.max)

    widen = cast(dtype, wide) if wide != dtype else same

    def run(x: Array) -> Array:
        x = widen(x)
        result = apply(ufunc, x, initial)
        if np.count_nonzero(result) < result.size:
            # Where the maximum is zero, a number that has no sign is a zero. There is one if the
            # maximum of the bits has no sign. So it is with the minimum and numbers with a sign.
            found = apply(ufunc, x.view(bits), least)
            result = np.where(result == 0, np.where(found < 0, -zero, zero), result)
        return result if wide == dtype else result.astype(dtype)

    return run


# -- along axes -----------------------------------------------------------------------------


# NumPy's loop along the last axis takes 20 to 40 ns to start. It starts for each result element.
_SHORT, _MANY = 8, 512


def _along(axes: Sequence[int], operand: ArrayType) -> Apply:
    axes, length = tuple(axes), operand.shape[-1] if operand.shape else 0
    if axes == (operand.ndim - 1,) and 2 <= length <= _SHORT and operand.size >= length * _MANY:
        return _along_a_short_row
    return lambda ufunc, x, initial: ufunc.reduce(
        x, axis=axes, dtype=x.dtype, initial=initial
    )


def _along_a_short_row(ufunc: np.ufunc, x: np.ndarray, initial: Any) -> np.ndarray:
    """Reduces the last axis one column after the other."""
    result = ufunc(x[..., 0], initial)
    for column in range(1, x.shape[-1]):
        ufunc(result, x[..., column], out=result)
    return result


def _sum_or_product(ufunc: np.ufunc, identity: int) -> Callable[..., Any]:
    def make(
        ins: tuple[ArrayType, ...], outs: tuple[ArrayType, ...], *, axes: Any, **_: Any
    ) -> Callable[..., Any]:
        (operand,), (out,) = ins, outs
        if operand.size == out.size and all(operand.shape[axis] == 1 for axis in axes):
            return lambda x: np.array(x).reshape(out.shape)  # keeps the sign of zero
        return accumulation(ufunc, identity, operand.dtype, _along(axes, operand))

    return make


impl_rule("reduce_sum")(_sum_or_product(np.add, 0))
impl_rule("reduce_prod")(_sum_or_product(np.multiply, 1))


@impl_rule("count")
def _count(ins: Types, outs: Types, *, axes: Any, **_: Any) -> Callable[..., Any]:
    """The sum of booleans as numbers. It needs no widened copy."""
    along, dtype = _along(axes, ins[0]), outs[0].dtype
    if along is _along_a_short_row:
        return lambda x: along(np.add, x.astype(dtype), dtype.type(0))
    whole = dtype if dtype.kind in "iu" else np.dtype(np.int64)
    return lambda x: np.add.reduce(x, axis=axes, dtype=whole).astype(dtype, copy=False)


@impl_rule("reduce_max")
def _reduce_max(ins: Types, outs: Types, *, axes: Any, **_: Any) -> Callable[..., Any]:
    return extremum(np.maximum, ins[0].dtype, _along(axes, ins[0]))


@impl_rule("reduce_min")
def _reduce_min(ins: Types, outs: Types, *, axes: Any, **_: Any) -> Callable[..., Any]:
    return extremum(np.minimum, ins[0].dtype, _along(axes, ins[0]))


@impl_rule("reduce_and")
def _reduce_and(ins: Types, outs: Types, *, axes: Any, **_: Any) -> Callable[..., Any]:
    initial = ~ins[0].dtype.type(0)
    return lambda x: np.bitwise_and.reduce(x, axis=tuple(axes), dtype=x.dtype, initial=initial)


@impl_rule("reduce_or")
def _reduce_or(ins: Types, outs: Types, *, axes: Any, **_: Any) -> Callable[..., Any]:
    return lambda x: np.bitwise_or.reduce(x, axis=tuple(axes), dtype=x.dtype)


@impl_rule("reduce_xor")
def _reduce_xor(ins: Types, outs: Types, *, axes: Any, **_: Any) -> Callable[..., Any]:
    return lambda x: np.bitwise_xor.reduce(x, axis=tuple(axes), dtype=x.dtype)


def _arg(function: Callable[..., Any]) -> Callable[..., Any]:
    def make(
        ins: Types, outs: Types, *, axes: Any, index_dtype: Any, **_: Any
    ) -> Callable[..., Any]:
        (axis,) = axes
        wide = scalar_types.wide(ins[0].dtype)

        def run(x: Array) -> Array:
            return function(x.astype(wide, copy=False), axis=axis).astype(index_dtype)

        return run

    return make


impl_rule("argmax")(_arg(np.argmax))
impl_rule("argmin")(_arg(np.argmin))


@batch_rule("reduce_max", "reduce_min", "reduce_and", "reduce_or", "reduce_xor", "argmax", "argmin")
@batch_rule("count")
@batch_rule("reduce_sum", "reduce_prod", reorders=True)
def _batch(stack: Stack, *, axes: Any, **params: Any) -> Mapping[str, Any] | None:
    return {"axes": tuple(axis + 1 for axis in axes), **params}


@lowering_rule("reduce")
def _reduce(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    return lowering.inline_definition(definitions.definition(eqn), ins)


# -- running --------------------------------------------------------------------------------


def _running(axis: int, reverse: bool) -> Apply:
    def forward(ufunc: np.ufunc, x: Array, _: Array) -> Array:
        return ufunc.accumulate(x, axis=axis, dtype=x.dtype)

    def backward(ufunc: np.ufunc, x: Array, initial: Array) -> Array:
        return np.flip(forward(ufunc, np.flip(x, axis), initial), axis)

    return backward if reverse else forward


def _cumulative(make: Callable[..., Any], *fixed: Any) -> Callable[..., Any]:
    def rule_make(
        ins: Types, outs: Types, *, axis: Any, reverse: Any, **_: Any
    ) -> Callable[..., Any]:
        return make(*fixed, ins[0].dtype, _running(axis, reverse))

    return rule_make


# XLA sums within blocks of this length, and then adds the sum of the earlier blocks.
_BLOCK = 16


def _in_blocks(ufunc: np.ufunc, identity: int) -> Callable[..., Any]:
    """Running sums or products. As in XLA, each step rounds to the result's dtype."""

    def make(ins: Types, outs: Types, *, axis: Any, reverse: Any, **_: Any) -> Callable[..., Any]:
        dtype = ins[0].dtype
        if scalar_types.is_integer(dtype):
            return accumulation(ufunc, identity, dtype, _running(axis, reverse))
        initial = dtype.type(identity)

        # A sum from zero is never -0.0.
        return lambda x: _blocked(ufunc, ufunc(x, initial), axis, initial, reverse, own=True)

    return make


def _blocked(
    ufunc: np.ufunc, x: np.ndarray, axis: int, initial: Any, reverse: bool, own: bool = False
) -> np.ndarray:
    """The running result along an axis. Each block is added up from its start. ``own``: nobody else
    needs ``x``, which may be written over."""
    all_before: tuple[Any, ...] = (slice(None),) * axis
    length = x.shape[axis]
    if length > _BLOCK:
        blocks = -(-length // _BLOCK)
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        if length % _BLOCK:
            padded = np.full((*before, blocks * _BLOCK, *after), initial, x.dtype)
            padded[(*all_before, slice(length))] = x
            x = padded
        parts = x.reshape(*before, blocks, _BLOCK, *after)
        within = _blocked(ufunc, parts, axis + 1, initial, reverse, own)
        last = within[(*all_before, slice(None), 0 if reverse else -1)]
        totals = _blocked(ufunc, last, axis, initial, reverse)
        others = np.full_like(totals, initial)
        first, second = (*all_before, slice(None, -1)), (*all_before, slice(1, None))
        if reverse:
            others[first] = totals[second]
        else:
            others[second] = totals[first]
        result = ufunc(within, np.expand_dims(others, axis + 1), out=within)
        return result.reshape(x.shape)[(*all_before, slice(length))]
    if not reverse and axis == x.ndim - 1:
        return ufunc.accumulate(x, axis=axis, dtype=x.dtype)
    sums = x if own and not reverse else x.copy()
    for at in range(1, length):
        if reverse:
            target = sums[(*all_before, slice(-at))]
            ufunc(target, x[(*all_before, slice(at, None))], out=target)
        else:
            target = sums[(*all_before, at)]
            ufunc(sums[(*all_before, at - 1)], target, out=target)
    return sums


impl_rule("cumsum")(_in_blocks(np.add, 0))
impl_rule("cumprod")(_in_blocks(np.multiply, 1))
impl_rule("cumlogsumexp")(_cumulative(accumulation, np.logaddexp, 0))
impl_rule("cummax")(_cumulative(extremum, np.maximum))
impl_rule("cummin")(_cumulative(extremum, np.minimum))


@batch_rule("cumsum", "cumprod", "cumlogsumexp", "cummax", "cummin")
def _running_batch(stack: Stack, *, axis: int, **params: Any) -> Mapping[str, Any] | None:
    return {"axis": axis + 1, **params}
