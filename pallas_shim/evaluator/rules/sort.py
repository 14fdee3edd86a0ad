"""Rules that order elements: sort, top_k, approx_top_k."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pallas_shim.evaluator.program import Array, ArrayType, Types
from pallas_shim.evaluator.registry import Stack, Unsupported, batch_rule, impl_rule


def order_bits(x: np.ndarray) -> np.ndarray:
    """Maps floats of 32 or 64 bits to integers in the order -NaN, -inf, -0, 0, inf, NaN.

    Applied to such integers, it gives back the floats' bits.
    """
    bits = x.view(np.dtype(f"i{x.dtype.itemsize}"))
    return bits ^ ((bits >> (8 * bits.itemsize - 1)) & np.iinfo(bits.dtype).max)


def sortable(dtype: np.dtype) -> np.dtype:
    """A dtype that NumPy sorts fast, and that holds the values of ``dtype`` in their order.

    This is ``dtype`` itself, or a wider one for narrow floats and ml_dtypes' integers.
    """
    if dtype.isbuiltin == 1 and dtype != np.float16:
        return dtype
    return np.dtype(np.int32 if np.can_cast(dtype, np.int32) else np.float32)


def _require_order(primitive: str, dtype: np.dtype) -> None:
    if dtype.name.endswith("fnuz"):
        raise Unsupported(
            primitive,
            f"of {dtype.name}, whose NaN has the bits of a negative zero: XLA puts it first, and"
            " some other values out of order; convert the array to float32",
        )


def _sort_key(x: np.ndarray) -> np.ndarray:
    """Integers in the order of lax.sort. All zeros are equal, and all NaNs are equal and last."""
    x = x.astype(sortable(x.dtype), copy=False)
    if x.dtype.kind != "f":
        return x
    key = order_bits(x + x.dtype.type(0))
    key[x != x] = np.iinfo(key.dtype).max
    return key


def _total_order_key(x: np.ndarray) -> np.ndarray:
    """Integers in the order of XLA's top_k. It orders zeros and NaNs by their signs too."""
    x = x.astype(sortable(x.dtype), copy=False)
    return order_bits(x) if x.dtype.kind == "f" else x


def _pack(key: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Packs key and position into one integer. NumPy's fast unstable sort of these is stable.

    Key and position have at most 32 bits each. ``packed & _POSITION`` is the position.
    """
    packed = key.astype(np.int64)
    if key.dtype == np.uint32:
        packed -= 1 << 31
    packed <<= 32
    packed |= positions
    return packed


_POSITION = (1 << 32) - 1


@impl_rule("sort")
def _sort(
    ins: Types, outs: Types, *, dimension: Any, num_keys: Any, **_: Any
) -> Callable[..., Any]:
    for key in ins[:num_keys]:
        _require_order("sort", key.dtype)
    # An unstable sort may leave equal keys in any order. Here every sort is stable.
    if len(ins) == 1 and ins[0].dtype.kind != "c":
        return _sort_values(ins[0], dimension)
    order = _order(ins[:num_keys], dimension)

    def sort(*operands: Array) -> Array:
        at = order(*operands)
        return tuple([x.reshape(-1).take(at) for x in operands])

    return sort


def _sort_values(type: ArrayType, axis: int) -> Callable[..., Any]:
    dtype, wide = type.dtype, sortable(type.dtype)
    if wide.kind != "f":
        return lambda x: (np.sort(x.astype(wide, copy=False), axis).astype(dtype, copy=False),)
    bits = np.dtype(f"i{wide.itemsize}")
    negative_normal = np.iinfo(bits).min + (1 << np.finfo(wide).nmant)

    def sort(x: Array) -> tuple[Array, ...]:
        x = x.astype(wide, copy=False)
        # The fast sort is unstable. This shows only in the order of zeros of both signs and of
        # subnormals, which count as zeros here as in XLA.
        signed_zeros = (x.view(bits) < negative_normal).any()
        return (np.sort(x, axis, "stable" if signed_zeros else None).astype(dtype, copy=False),)

    return sort


def _order(keys: Array, axis: int) -> Callable[..., Any]:
    """A callable that takes the operands and returns the flat positions of the elements in sorted
    order."""
    shape, size = keys[0].shape, keys[0].size
    positions = np.arange(size).reshape(shape)
    if len(keys) == 1 and keys[0].dtype.itemsize <= 4 and size <= _POSITION:

        def order(x: Array, *_: Array) -> Array:
            packed = _pack(_sort_key(x), positions)
            packed.sort(axis)
            packed &= _POSITION
            return packed

        return order
    stride = int(np.prod(shape[axis + 1 :], dtype=np.int64))
    line_starts = positions.take([0], axis) if size else positions

    def lexicographic(*operands: Array) -> Array:
        parts = [part for x in operands[: len(keys)] for part in _parts(x)]
        return np.lexsort(parts[::-1], axis) * stride + line_starts

    return lexicographic


def _parts(x: Array) -> Array:
    """The arrays from which np.lexsort gets the order of ``x``. It compares one after the other."""
    if x.dtype.kind == "c":
        return [x.real, x.imag]
    return [x.astype(sortable(x.dtype), copy=False)]


@batch_rule("sort")
def _sort_batch(stack: Stack, *, dimension: int, **params: Any) -> Mapping[str, Any] | None:
    return {"dimension": dimension + 1, **params}


@batch_rule("top_k")
def _top_k_batch(stack: Stack, *, axis: int = -1, **params: Any) -> Mapping[str, Any] | None:
    return {"axis": axis if axis < 0 else axis + 1, **params}


@impl_rule("top_k")
def _top_k(ins: Types, outs: Types, *, k: Any, axis: Any = -1, **_: Any) -> Callable[..., Any]:
    _require_order("top_k", ins[0].dtype)
    return _first(ins[0], k, axis, lambda x: ~_total_order_key(x))


@impl_rule("approx_top_k")
def _approx_top_k(
    ins: Types,
    outs: Types,
    *,
    k: Any,
    reduction_dimension: Any,
    is_max_k: Any,
    aggregate_to_topk: Any,
    **_: Any,
) -> Callable[..., Any]:
    if not aggregate_to_topk:
        raise Unsupported(
            "approx_top_k",
            "with aggregate_to_topk=False XLA chooses which candidates are left; "
            "use aggregate_to_topk=True or lax.top_k",
        )
    _require_order("approx_top_k", ins[0].dtype)
    key = (lambda x: ~_sort_key(x)) if is_max_k else _sort_key
    return _first(ins[0], k, reduction_dimension, key)


def _first(
    type: ArrayType, k: int, axis: int, key: Callable[[Array], Array]
) -> Callable[..., Any]:
    """A callable that returns the k elements with the lowest keys, in order, and their
    positions."""
    axis %= type.ndim
    length = type.shape[axis]
    line = np.arange(length).reshape([-1 if d == axis else 1 for d in range(type.ndim)])
    head = (slice(None),) * axis + (slice(k),)
    packs = type.dtype.itemsize <= 4

    def first(x: Array) -> tuple[Array, ...]:
        if packs:
            packed = _pack(key(x), line)
            if k < length:
                packed = np.partition(packed, k, axis)[head]
            at = np.sort(packed, axis) & _POSITION
        else:
            at = np.argsort(key(x), axis, "stable")[head]
        return np.take_along_axis(x, at, axis), at.astype(np.int32)

    return first
