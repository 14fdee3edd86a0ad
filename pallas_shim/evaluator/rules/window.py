"""Reductions over sliding windows, pooling's gradients, and convolutions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator import blas, scalar_types
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.program import Array, Types, Value
from pallas_shim.evaluator.registry import impl_rule, lowering_rule
from pallas_shim.evaluator.rules.linalg import multiplication
from pallas_shim.evaluator.rules.reduce import accumulation, extremum, highest, lowest
from pallas_shim.jax_compat import definitions

Padder = Callable[[np.ndarray, Any], np.ndarray]


def _padded(
    shape: Sequence[int], padding: Sequence[tuple[int, int]], dilation: Sequence[int]
) -> tuple[tuple[int, ...], Padder]:
    """The shape after padding, and a function ``fn(x, fill)`` that pads. Negative padding crops."""
    new_shape, source, target = [], [], []
    for size, (low, high), step in zip(shape, padding, dilation, strict=True):
        low, high = int(low), int(high)
        length = max(low + high + ((size - 1) * step + 1 if size else 0), 0)
        first = -(low // step) if low < 0 else 0
        last = min(size, (length - 1 - low) // step + 1)
        new_shape.append(length)
        source.append(slice(first, max(last, first)))
        target.append(slice(low + first * step, max(low + (last - 1) * step + 1, 0), step))
    if tuple(new_shape) == tuple(shape):
        return tuple(shape), lambda x, fill: x
    inner, outer = tuple(source), tuple(target)
    empty = any(s.start >= s.stop for s in source)

    def pad(x: Array, fill: Array) -> Array:
        result = np.full(new_shape, fill, x.dtype)
        if not empty:
            result[outer] = x[inner]
        return result

    return tuple(new_shape), pad


def _place(start: int, count: int, stride: int) -> slice:
    """The index, along one axis, of the elements at one place in each of ``count`` windows."""
    return slice(start, max(start + (count - 1) * stride + 1, 0), stride)


# -- sum, max, min --------------------------------------------------------------------------


def _over_windows(
    ins: Types,
    outs: Types,
    *,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    base_dilation: Any,
    window_dilation: Any,
    **_: Any,
) -> Callable[..., Any]:
    """An `Apply` that reduces each window one axis after the other."""
    pad = _padded(ins[0].shape, padding, base_dilation)[1]
    (out,) = outs
    axes: list[list[tuple[slice, ...]]] = []
    for axis, (count, size) in enumerate(zip(out.shape, window_dimensions, strict=True)):
        before = (slice(None),) * axis
        step, stride = window_dilation[axis], window_strides[axis]
        if size > 1 or stride > 1:
            axes.append([(*before, _place(i * step, count, stride)) for i in range(size)])

    def apply(ufunc: np.ufunc, x: Array, initial: Array) -> Array:
        if not out.size:
            return np.empty(out.shape, np.asarray(initial).dtype)
        result = pad(x, initial)
        for first, *rest in axes:
            total = ufunc(result[first], initial)
            for place in rest:
                ufunc(total, result[place], out=total)
            result = total
        return ufunc(result, initial) if not axes else result[tuple(map(slice, out.shape))]

    return apply


@impl_rule("reduce_window_sum")
def _reduce_window_sum(ins: Types, outs: Types, **params: Any) -> Callable[..., Any]:
    return accumulation(np.add, 0, ins[0].dtype, _over_windows(ins, outs, **params))


@impl_rule("reduce_window_max")
def _reduce_window_max(ins: Types, outs: Types, **params: Any) -> Callable[..., Any]:
    return extremum(np.maximum, ins[0].dtype, _over_windows(ins, outs, **params))


@impl_rule("reduce_window_min")
def _reduce_window_min(ins: Types, outs: Types, **params: Any) -> Callable[..., Any]:
    return extremum(np.minimum, ins[0].dtype, _over_windows(ins, outs, **params))


@lowering_rule("reduce_window", "select_and_scatter")
def _by_definition(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    return lowering.inline_definition(definitions.definition(eqn), ins)


# -- select and scatter, select and gather --------------------------------------------------

# For each selecting primitive: whether a value stays selected when compared with the next one, and
# the value of the padding. NaN never compares true, so a selected NaN never stays.
_SELECT = {"ge": (np.greater_equal, lowest), "le": (np.less_equal, highest)}


def _places(windows: Sequence[int], counts: Sequence[int], strides: Sequence[int],
            dilation: Sequence[int]) -> list[tuple[slice, ...]]:  # fmt: skip
    """For each place in a window, in row-major order, the index of that place in every window."""
    return [
        tuple(
            _place(i * step, count, stride)
            for i, step, count, stride in zip(place, dilation, counts, strides, strict=True)
        )
        for place in itertools.product(*map(range, windows))
    ]


@impl_rule("select_and_scatter_add")
def _select_and_scatter_add(
    ins: Types,
    outs: Types,
    *,
    select_prim: Any,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    **_: Any,
) -> Callable[..., Any]:
    source, operand = ins
    if not source.size:
        return lambda values, x: np.zeros(operand.shape, source.dtype)
    stays, identity = _SELECT[select_prim.name]
    fill = identity(operand.dtype)
    ones = (1,) * operand.ndim
    shape, pad = _padded(operand.shape, padding, ones)
    places = _places(window_dimensions, source.shape, window_strides, ones)
    # A place has the same distance from the window's start in every window.
    flat = np.arange(math.prod(shape)).reshape(shape)
    starts = flat[places[0]]
    distances = [int(flat[tuple(s.start for s in place)]) for place in places]
    wide = scalar_types.wide(source.dtype)
    cut = _padded(shape, [(-int(low), -int(high)) for low, high in padding], ones)[1]

    def run(values: Array, x: Array) -> Array:
        x = pad(x.astype(wide, copy=False), fill)
        selected = x[places[0]]
        distance = np.zeros(starts.shape, np.intp)
        for place, here in zip(places[1:], distances[1:], strict=True):
            replaces = ~stays(selected, x[place])
            selected = np.where(replaces, x[place], selected)
            distance[replaces] = here
        result = np.zeros(math.prod(shape), wide)
        np.add.at(result, (starts + distance).ravel(), values.astype(wide, copy=False).ravel())
        return cut(result.reshape(shape), 0).astype(source.dtype, copy=False)

    return run


@impl_rule("select_and_gather_add")
def _select_and_gather_add(
    ins: Types,
    outs: Types,
    *,
    select_prim: Any,
    window_dimensions: Any,
    window_strides: Any,
    padding: Any,
    base_dilation: Any,
    window_dilation: Any,
    **_: Any,
) -> Callable[..., Any]:
    (out,) = outs
    stays = _SELECT[select_prim.name][0]
    fill = -np.inf if select_prim.name == "ge" else np.inf
    pad = _padded(ins[1].shape, padding, base_dilation)[1]
    places = _places(window_dimensions, out.shape, window_strides, window_dilation)
    wide = scalar_types.wide(out.dtype)

    def run(tangents: Array, x: Array) -> Array:
        x = pad(x.astype(wide, copy=False), fill)
        tangents = pad(tangents, 0)
        selected = np.full(out.shape, fill, wide)
        result = np.zeros(out.shape, out.dtype)
        for place in places if out.size else ():
            stay = stays(selected, x[place])
            selected = np.where(stay, selected, x[place])
            result = np.where(stay, result, tangents[place])
        return result

    return run


# -- convolution ----------------------------------------------------------------------------


@impl_rule("conv_general_dilated")
def _conv_general_dilated(
    ins: Types,
    outs: Types,
    *,
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any,
    rhs_dilation: Any,
    dimension_numbers: Any,
    feature_group_count: Any,
    batch_group_count: Any,
    precision: Any = None,
    **_: Any,
) -> Callable[..., Any]:
    """The windows become the rows of a matrix, for each group of features."""
    (lhs, rhs), (out,) = ins, outs
    lhs_spec, rhs_spec, out_spec = dimension_numbers
    batch, features, *spatial = (lhs.shape[d] for d in lhs_spec)
    kernels, depth, *kernel = (rhs.shape[d] for d in rhs_spec)
    out_spatial = [out.shape[d] for d in out_spec[2:]]
    groups = feature_group_count
    if batch_group_count > 1:
        # The groups of the batch have their own kernels, so they become groups of features too.
        groups, batch = batch_group_count, batch // batch_group_count
    terms = depth * math.prod(kernel)
    work, finish = multiplication(
        "conv_general_dilated", lhs.dtype, rhs.dtype, out.dtype, terms, precision
    )
    rank = len(spatial)
    pad = _padded(
        (batch, groups, depth, *spatial),
        ((0, 0),) * 3 + tuple(padding),
        (1, 1, 1, *lhs_dilation),
    )[1]
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, rhs_dilation, strict=True))
    each: tuple[Any, ...] = (
        ...,
        *(slice(None, None, stride) for stride in window_strides),
        *(slice(None, None, step) for step in rhs_dilation),
    )
    axes = tuple(range(3, 3 + rank))
    rows = (1, 0, *axes, 2, *range(3 + rank, 3 + 2 * rank))
    columns = (0, *range(2, 3 + rank), 1)
    back = (1, 0, 2 + rank, *range(2, 2 + rank))
    to_out = tuple(int(i) for i in np.argsort(out_spec))
    multiply = blas.product(batch * math.prod(out_spatial), terms, kernels // groups)

    def run(x: Array, y: Array) -> Array:
        x = x.astype(work, copy=False).transpose(lhs_spec)
        if batch_group_count > 1:
            x = x.reshape(groups, batch, depth, *spatial).swapaxes(0, 1)
        else:
            x = x.reshape(batch, groups, depth, *spatial)
        x = pad(x, 0)
        if rank:
            x = np.lib.stride_tricks.sliding_window_view(x, reach, axes)[each]
        x = x.transpose(rows).reshape(groups, batch * math.prod(out_spatial), terms)
        y = y.astype(work, copy=False).transpose(rhs_spec)
        y = y.reshape(groups, kernels // groups, depth, *kernel).transpose(columns)
        sums = multiply(x, y.reshape(groups, terms, kernels // groups))
        if finish is not None:
            sums = finish(sums)
        sums = sums.reshape(groups, batch, *out_spatial, kernels // groups).transpose(back)
        return sums.reshape(batch, kernels, *out_spatial).transpose(to_out)

    if not out.size or 0 in kernel:
        return lambda x, y: np.zeros(out.shape, out.dtype)
    return run
