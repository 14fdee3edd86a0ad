"""Pallas TPU: roll, repeat, bitcasts, reciprocal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.program import Array, Types, Value
from pallas_shim.evaluator.registry import Stack, Unsupported, batch_rule, impl_rule, lowering_rule
from pallas_shim.evaluator.scalar_types import bit_width, recast


@impl_rule("roll")
def _roll(
    ins: Types, outs: Types, *, axis: Any, stride: Any = None, stride_axis: Any = None, **_: Any
) -> Callable[..., Any]:
    size = ins[0].shape[axis]
    if stride is None:
        return lambda x, shift: np.roll(x, int(shift) % size if size else 0, axis)
    columns = np.arange(size)
    rows = np.arange(ins[0].shape[stride_axis]) * stride
    offsets = np.expand_dims(
        np.subtract.outer(rows, columns) if stride_axis < axis else np.subtract.outer(
            -columns, -rows
        ),
        tuple(i for i in range(ins[0].ndim) if i not in (axis, stride_axis)),
    )

    def rolled(x: Array, shift: Array) -> Array:
        index = (-offsets - int(shift)) % size
        return np.take_along_axis(x, np.broadcast_to(index, x.shape), axis)

    return rolled


@batch_rule("roll", unstacked=(1,))
def _roll_batch(
    stack: Stack, *, axis: int, stride: Any = None, stride_axis: int | None = None, **params: Any
) -> Mapping[str, Any] | None:
    if not stack.shared[1]:
        return None
    moved = None if stride_axis is None else stride_axis + 1
    return {"axis": axis + 1, "stride": stride, "stride_axis": moved, **params}


@impl_rule("repeat")
def _repeat(ins: Types, outs: Types, *, repeats: Any, axis: Any, **_: Any) -> Callable[..., Any]:
    return lambda x: np.repeat(x, repeats, axis)


@lowering_rule("repeat")
def _repeat_or_tile(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    outs = [lowering.type(eqn.outvars[0].aval)]
    if jax_compat.REPEATS_ELEMENTS and not lowering.for_device:
        return lowering.apply("repeat", ins, outs, eqn.params)
    reps = [1] * len(outs[0].shape)
    reps[eqn.params["axis"]] = eqn.params["repeats"]
    return lowering.apply("tile", ins, outs, {"reps": tuple(reps)})


@impl_rule("bitcast")
def _bitcast(ins: Types, outs: Types, *, ty: Any, dim: Any = None, **_: Any) -> Callable[..., Any]:
    (x,), (out,) = ins, outs
    axis = -2 if dim is None else dim
    if bit_width(x.dtype) * x.size != bit_width(out.dtype) * out.size:
        raise Unsupported("bitcast", f"{x} to {out}")
    if bit_width(x.dtype) == bit_width(out.dtype):
        return lambda a: recast(a.copy(), out.dtype)

    def cast(a: Array) -> Array:
        packed = recast(np.moveaxis(a, axis, -1), out.dtype)
        return np.moveaxis(packed, -1, axis)

    return cast


@impl_rule("sparsecore_bitcast")
def _sparsecore_bitcast(ins: Types, outs: Types, *, dtype: Any, **_: Any) -> Callable[..., Any]:
    return _bitcast(ins, outs, ty=dtype, dim=-1)


@impl_rule("reciprocal")
def _reciprocal(ins: Types, outs: Types, *, approx: Any = False, **_: Any) -> Callable[..., Any]:
    (out,) = outs
    one = out.dtype.type(1)
    if not approx:
        return lambda x: np.asarray(np.divide(one, x)).astype(out.dtype, copy=False)
    # The operand is rounded to bfloat16. The quotient isn't, because XLA drops a rounding before a
    # conversion back.
    narrow = np.dtype(ml_dtypes.bfloat16)
    return lambda x: np.asarray(one / np.asarray(x).astype(narrow).astype(out.dtype))


@batch_rule("reciprocal", broadcasts=True)
def _reciprocal_batch(stack: Stack, **params: Any) -> Mapping[str, Any]:
    return params
