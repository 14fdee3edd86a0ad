"""Rules that move, repeat or name elements without computing on them.

An array of PRNG keys arrives as the integers of its keys. The integers have further dimensions at
the end, which the parameters don't count. They are called hidden here, and stay where they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.program import Array, RefType, Types, Value
from pallas_shim.evaluator.registry import Stack, Unsupported, batch_rule, impl_rule, lowering_rule

# A broadcast result up to this many bytes is copied instead of viewed. The copy takes a third of
# the time of the view, and later operations are faster on contiguous operands.
_FILL_UP_TO = 1 << 15


def _broadcast(
    source: tuple[int, ...], shape: tuple[int, ...], dtype: np.dtype
) -> Callable[..., Any]:
    """A callable that reshapes its operand to ``source`` and broadcasts the result to ``shape``."""
    if source == shape:
        return lambda x: x.reshape(shape)
    if np.prod(shape, dtype=np.int64) * dtype.itemsize > _FILL_UP_TO:
        return lambda x: np.broadcast_to(x.reshape(source), shape)

    def fill(x: Array) -> Array:
        out = np.empty(shape, dtype)
        out[...] = x.reshape(source)
        return out

    return fill


@impl_rule("broadcast_in_dim", view=True, keys=True)
def _broadcast_in_dim(
    ins: Types, outs: Types, *, broadcast_dimensions: Any, **_: Any
) -> Callable[..., Any]:
    shape = outs[0].shape
    source = [1] * len(shape)
    hidden = ins[0].ndim - len(broadcast_dimensions)
    dims = (*broadcast_dimensions, *range(len(shape) - hidden, len(shape)))
    for axis, dim in enumerate(dims):
        source[dim] = ins[0].shape[axis]
    return _broadcast(tuple(source), shape, outs[0].dtype)


@impl_rule("broadcast_to", view=True)  # for the index arrays of refs
def _broadcast_to(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    shape = outs[0].shape
    return _broadcast((1,) * (len(shape) - ins[0].ndim) + ins[0].shape, shape, outs[0].dtype)


@impl_rule("tile", view=True)
def _tile(ins: Types, outs: Types, *, reps: Any, **_: Any) -> Callable[..., Any]:
    source = tuple(itertools.chain.from_iterable((1, d) for d in ins[0].shape))
    repeated = tuple(itertools.chain.from_iterable(zip(reps, ins[0].shape, strict=True)))
    repeat = _broadcast(source, repeated, outs[0].dtype)
    shape = outs[0].shape
    return lambda x: repeat(x).reshape(shape)


@impl_rule("reshape", view=True, keys=True)
def _reshape(ins: Types, outs: Types, *, dimensions: Any, **_: Any) -> Callable[..., Any]:
    shape = outs[0].shape
    if dimensions is None:
        return lambda x: x.reshape(shape)
    return lambda x: x.transpose(dimensions).reshape(shape)


@impl_rule("squeeze", view=True, keys=True)
def _squeeze(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    shape = outs[0].shape
    return lambda x: x.reshape(shape)


@impl_rule("transpose", view=True, keys=True)
def _transpose(ins: Types, outs: Types, *, permutation: Any, **_: Any) -> Callable[..., Any]:
    permutation = (*permutation, *range(len(permutation), ins[0].ndim))
    return lambda x: x.transpose(permutation)


@impl_rule("rev", view=True, keys=True)
def _rev(ins: Types, outs: Types, *, dimensions: Any, **_: Any) -> Callable[..., Any]:
    at = tuple(slice(None, None, -1 if d in dimensions else 1) for d in range(ins[0].ndim))
    return lambda x: x[at]


@impl_rule("slice", view=True, keys=True)
def _slice(
    ins: Types, outs: Types, *, start_indices: Any, limit_indices: Any, strides: Any, **_: Any
) -> Callable[..., Any]:
    at = tuple(map(slice, start_indices, limit_indices, strides or (1,) * ins[0].ndim))
    return lambda x: x[at]


@impl_rule("split", view=True, keys=True)
def _split(ins: Types, outs: Types, *, sizes: Any, axis: Any, **_: Any) -> Callable[..., Any]:
    bounds = list(itertools.accumulate(sizes, initial=0))
    at = [(slice(None),) * axis + (slice(a, b),) for a, b in itertools.pairwise(bounds)]
    return lambda x: tuple([x[i] for i in at])


@impl_rule("unstack", view=True, keys=True)
def _unstack(ins: Types, outs: Types, *, axis: Any, **_: Any) -> Callable[..., Any]:
    at = [(slice(None),) * axis + (i,) for i in range(ins[0].shape[axis])]
    return lambda x: tuple([x[i] for i in at])


@impl_rule("concatenate", keys=True)
def _concatenate(ins: Types, outs: Types, *, dimension: Any, **_: Any) -> Callable[..., Any]:
    return lambda *xs: np.concatenate(xs, dimension)


@impl_rule("stack", keys=True)
def _stack(ins: Types, outs: Types, *, axis: Any, **_: Any) -> Callable[..., Any]:
    shape = ins[0].shape
    expanded = (*shape[:axis], 1, *shape[axis:])
    return lambda *xs: np.concatenate([x.reshape(expanded) for x in xs], axis)


@impl_rule("pad")
def _pad(ins: Types, outs: Types, *, padding_config: Any, **_: Any) -> Callable[..., Any]:
    source, target = [], []
    for size, length, (low, _high, interior) in zip(
        ins[0].shape, outs[0].shape, padding_config, strict=True
    ):
        # Element i lands at low + i * step. Elements that land outside are cropped.
        step = interior + 1
        first = max(0, -(low // step))
        last = min(size, -((low - length) // step))
        source.append(slice(first, max(first, last)))
        target.append(slice(low + first * step, max(0, low + last * step), step))
    source_at, target_at = tuple(source), tuple(target)
    shape, dtype = outs[0]

    def pad(x: Array, value: Array) -> Array:
        out = np.empty(shape, dtype)
        out.fill(value)
        out[target_at] = x[source_at]
        return out

    return pad


@impl_rule("iota")
def _iota(ins: Types, outs: Types, *, dimension: Any, **_: Any) -> Callable[..., Any]:
    shape, dtype = outs[0]
    with np.errstate(all="ignore"):
        line = np.arange(shape[dimension]).astype(dtype)
    line = line.reshape([-1 if d == dimension else 1 for d in range(len(shape))])
    return _constant(np.broadcast_to(line, shape))


@impl_rule("empty", "empty2")
def _empty(ins: Types, outs: Types, **_: Any) -> Callable[..., Any]:
    # XLA on a CPU gives zeros too.
    return _constant(np.zeros(*outs[0]))


def _constant(array: Array) -> Callable[..., Any]:
    array = np.ascontiguousarray(array).reshape(array.shape)
    array.flags.writeable = False
    return lambda: array


# -- over an axis in front ---------------------------------------------------------------------


def _behind(dims: Sequence[int]) -> tuple[int, ...]:
    """The numbers of these dimensions after one dimension was added in front."""
    return tuple(d + 1 for d in dims)


_SHIFTED: dict[str, Callable[..., dict[str, Any]]] = {
    "broadcast_in_dim": lambda stack, *, broadcast_dimensions, **_: {
        "broadcast_dimensions": (0, *_behind(broadcast_dimensions))
    },
    "reshape": lambda stack, *, dimensions, **_: {
        "dimensions": None if dimensions is None else (0, *_behind(dimensions))
    },
    "squeeze": lambda stack, *, dimensions, **_: {"dimensions": _behind(dimensions)},
    "transpose": lambda stack, *, permutation, **_: {"permutation": (0, *_behind(permutation))},
    "rev": lambda stack, *, dimensions, **_: {"dimensions": _behind(dimensions)},
    "slice": lambda stack, *, start_indices, limit_indices, strides, **_: {
        "start_indices": (0, *start_indices),
        "limit_indices": (stack.size, *limit_indices),
        "strides": None if strides is None else (1, *strides),
    },
    "split": lambda stack, *, sizes, axis, **_: {"sizes": sizes, "axis": axis + 1},
    "unstack": lambda stack, *, axis, **_: {"axis": axis + 1},
    "concatenate": lambda stack, *, dimension, **_: {"dimension": dimension + 1},
    "stack": lambda stack, *, axis, **_: {"axis": axis + 1},
    "tile": lambda stack, *, reps, **_: {"reps": (1, *reps)},
}
for _name, _params in _SHIFTED.items():
    batch_rule(_name)(_params)


@batch_rule("pad", unstacked=(1,))
def _pad_batch(stack: Stack, *, padding_config: Any, **_: Any) -> Mapping[str, Any] | None:
    return {"padding_config": ((0, 0, 0), *padding_config)} if stack.shared[1] else None


# -- what leaves values as they are ------------------------------------------------------------


@lowering_rule("copy", "name", "layout_constraint", "relayout", "optimization_barrier")
def _identity(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    # Values are immutable here, and no layout can be chosen for them. The barrier also takes refs,
    # but doesn't return them.
    return [value for value in ins if not isinstance(value.type, RefType)]


@lowering_rule("sharding_constraint", "reshard")
def _resharding(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    if not lowering.on_mesh:
        _one_device(eqn.primitive.name, eqn.params.get("sharding", eqn.params.get("dst_sharding")))
    return ins


@lowering_rule("device_put")
def _device_put(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    for target in eqn.params["devices"]:
        _one_device(eqn.primitive.name, target)
    return ins


def _one_device(primitive: str, target: Any) -> None:
    devices = getattr(target, "num_devices", 1)
    if devices != 1:
        raise Unsupported(
            primitive, f"it lays an array out over {devices} devices; the evaluator has one"
        )
