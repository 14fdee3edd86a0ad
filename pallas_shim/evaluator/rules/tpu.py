"""Pallas TPU: DMAs and semaphores, roll, repeat, bitcasts, reciprocal.

A DMA moves its data when it starts. Programs that wait before they read, as the hardware requires,
can't tell the difference. A semaphore counts elements and signals as JAX's interpreter does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator import memory, refs
from pallas_shim.evaluator.dynamic_slices import DynamicSlices
from pallas_shim.evaluator.program import PURE, ArrayType, Effects, Value
from pallas_shim.evaluator.registry import Unsupported, batch_rule, lowering_rule, rule
from pallas_shim.evaluator.rules import indirect
from pallas_shim.evaluator.rules.mesh import is_alone
from pallas_shim.evaluator.scalar_types import bit_width, recast
from pallas_shim.jax_compat import state

# Semaphores of JAX's interpreter are 16 bits wide, so that is how far a DMA counts.
_MOST_COUNTED = np.iinfo(np.int16).max


def _access(lowering, view: state.RefView):
    path, leaves = refs.path_of(view)
    probe = memory.viewed_type(view.ref.type.shape, view.ref.type.dtype, path)
    return view.ref, path, leaves, ArrayType(*probe)


def _is_here(lowering, primitive: str, device_id) -> bool:
    """Whether a device id can mean this core only: there is none, no other device is known, or
    they are places along axes of one."""
    if device_id is None:
        return True
    named = state.device_axes(device_id)
    if named is None:
        return bool(lowering.axes) and all(size == 1 for size in lowering.axes.values())
    return all(is_alone(lowering, primitive, name) for name in named)


def _each_choice(lowering, eqn, ins, emit: Callable[[Any, str, state.Dma], None]) -> None:
    """Emits ``emit(lowering, primitive, dma)`` for a DMA, or for each of those that it may be."""
    primitive = eqn.primitive.name

    def choose(dma: state.Dma | state.Choice) -> None:
        if isinstance(dma, state.Dma):
            if not _is_here(lowering, primitive, dma.device_id):
                raise Unsupported(primitive, "a DMA to or from another device")
            emit(lowering, primitive, dma)
            return
        index, cases = dma
        if isinstance(index, Value) and index.const is not None:
            index = int(index.const)
        if isinstance(index, int):
            choose(cases[memory.clamped(index, len(cases), 1)])
            return

        def region(case):
            def build(_):
                choose(case)
                return ()

            return lowering.region((), build)

        lowering.structured("switch", [index], [], [region(case) for case in cases], {})

    choose(state.dma(eqn, ins))


@lowering_rule("dma_start")
def _dma_start(lowering, eqn, ins):
    _each_choice(lowering, eqn, ins, _start)
    return []


def _start(lowering, primitive: str, dma: state.Dma) -> None:
    if any(indirect.rows(view).indices for view in (dma.src, dma.dst)):
        _count(lowering, dma.dst_sem, _counted(lowering, indirect.copy(lowering, dma).size), np.add)
        return
    sizes = [_dynamic_size(lowering, view) for view in (dma.src, dma.dst)]
    size = next((size for size in sizes if size is not None), None)
    if size is not None:
        _copy_cut_off(lowering, dma)
        _count(lowering, dma.dst_sem, size, np.add)
        return
    src, path, leaves, type = _access(lowering, dma.src)
    value = refs.load(lowering, src, path, leaves, type)
    dst, path, leaves, dst_type = _access(lowering, dma.dst)
    if dst_type != type:
        raise Unsupported("dma_start", f"a DMA from {type} to {dst_type}")
    if dma.add:
        before = refs.load(lowering, dst, path, leaves, type)
        (value,) = lowering.apply("add", [before, value], [type], {})
    refs.store(lowering, dst, path, leaves, value)
    _count(lowering, dma.dst_sem, _counted(lowering, type.size), np.add)


@lowering_rule("dma_wait")
def _dma_wait(lowering, eqn, ins):
    _each_choice(lowering, eqn, ins, _await)
    return []


def _await(lowering, primitive: str, dma: state.Dma) -> None:
    into = indirect.rows(dma.dst)
    size = _dynamic_size(lowering, into.view)
    if into.indices:
        size = _counted(lowering, indirect.type_of(into).size)
    elif size is None:
        *_, type = _access(lowering, dma.dst)
        size = _counted(lowering, type.size)
    _count(lowering, dma.dst_sem, size, np.subtract)


def _counted(lowering, size: int):
    return lowering.const(np.int32(min(size, _MOST_COUNTED)))


def _dynamic_size(lowering, view: state.RefView):
    """The number of elements of a view that has slices of dynamic size, or None."""
    path, leaves = refs.path_of(view, sized=False)
    if not refs.has_dynamic_size(path):
        return None
    if lowering.checked is not None:
        raise Unsupported("dma_start", "a slice of dynamic size in checked memory")
    last = path[-1]
    assert isinstance(last, state.Index)  # nothing else follows such a slice
    sizes = [dim.size for dim in last.dims if isinstance(dim, state.Slice)]
    known = math.prod(size for size in sizes if isinstance(size, int))
    places = [size.leaf for size in sizes if not isinstance(size, int)]

    def counted(*leaves):
        number = known * math.prod(int(leaves[place]) for place in places)
        return np.int32(min(number, _MOST_COUNTED))

    type = ArrayType((), np.dtype(np.int32))
    (size,) = lowering.memory("dma_size", leaves, [type], counted, PURE, key=path)
    return size


def _copy_cut_off(lowering, dma: state.Dma) -> None:
    """Copies what lies inside both refs. What the source lacks is zero: on a TPU it is the padding
    of the array to whole tiles, which its owners multiply with zeros and want finite."""
    (src_path, src_leaves), (dst_path, dst_leaves) = [
        refs.path_of(view, sized=False) for view in (dma.src, dma.dst)
    ]
    src, dst = dma.src.ref, dma.dst.ref
    source = DynamicSlices(src.type.shape, src.type.dtype, src_path)
    target = DynamicSlices(dst.type.shape, dst.type.dtype, dst_path)
    if source.dtype != target.dtype:
        raise Unsupported("dma_start", f"a DMA from {source.dtype} to {target.dtype}")
    count, add = len(src_leaves), dma.add

    def copy(src, dst, *leaves):
        given = source.read(src, leaves[:count])

        def put(into):
            both = tuple(map(slice, map(min, given.shape, into.shape)))
            if add:
                into[both] += given[both]
                return
            if into.shape != given.shape:
                into[...] = 0
            into[both] = given[both]

        target.change(dst, leaves[count:], put)
        return ()

    lowering.memory(
        "dma_start", [src, dst, *src_leaves, *dst_leaves], [], copy,
        Effects(reads=(0, 1) if add else (0,), writes=(1,)), key=(src_path, dst_path, add),
    )


def _count(lowering, sem: state.RefView, value, combine: np.ufunc) -> None:
    """Adds to or takes from a semaphore. To the passes it is a store: nobody needs it who
    doesn't read the count."""
    ref, path, leaves, _ = _access(lowering, sem)
    path = refs.normalised(ref.ref, path)
    view = memory.viewer(ref.type.shape, ref.type.dtype, path)

    def count(ref, value, *leaves):
        at = view(ref, *leaves)
        combine(at, value, out=at, casting="unsafe")
        return ()

    lowering.memory(
        f"semaphore_{combine.__name__}", [ref, value, *leaves], [], count,
        refs.WRITES_FIRST, params={"path": path}, key=path,
    )


def _semaphore(lowering, eqn, ins) -> state.Semaphore:
    semaphore = state.semaphore(eqn, ins)
    if not _is_here(lowering, eqn.primitive.name, semaphore.device_id):
        raise Unsupported(eqn.primitive.name, "a semaphore of another device")
    if semaphore.core_index is not None:
        raise Unsupported(eqn.primitive.name, "a semaphore of another core")
    return semaphore


@lowering_rule("semaphore_signal")
def _signal(lowering, eqn, ins):
    semaphore = _semaphore(lowering, eqn, ins)
    _count(lowering, semaphore.view, semaphore.value, np.add)
    return []


@lowering_rule("semaphore_wait")
def _wait(lowering, eqn, ins):
    semaphore = _semaphore(lowering, eqn, ins)
    if semaphore.decrement:
        _count(lowering, semaphore.view, semaphore.value, np.subtract)
    return []


@lowering_rule("semaphore_read")
def _read(lowering, eqn, ins):
    ref, path, leaves, type = _access(lowering, _semaphore(lowering, eqn, ins).view)
    return [refs.load(lowering, ref, path, leaves, type)]


# -- arithmetic and layout --------------------------------------------------------------------


@rule("roll")
def _roll(ins, outs, *, axis, stride=None, stride_axis=None, **_):
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

    def rolled(x, shift):
        index = (-offsets - int(shift)) % size
        return np.take_along_axis(x, np.broadcast_to(index, x.shape), axis)

    return rolled


@batch_rule("roll", unstacked=(1,))
def _roll_batch(stack, *, axis, stride=None, stride_axis=None, **params):
    if not stack.shared[1]:
        return None
    moved = None if stride_axis is None else stride_axis + 1
    return {"axis": axis + 1, "stride": stride, "stride_axis": moved, **params}


@rule("repeat")
def _repeat(ins, outs, *, repeats, axis, **_):
    return lambda x: np.repeat(x, repeats, axis)


@lowering_rule("repeat")
def _repeat_or_tile(lowering, eqn, ins):
    outs = [lowering.type(eqn.outvars[0].aval)]
    if jax_compat.REPEATS_ELEMENTS and not lowering.for_device:
        return lowering.apply("repeat", ins, outs, eqn.params)
    reps = [1] * len(outs[0].shape)
    reps[eqn.params["axis"]] = eqn.params["repeats"]
    return lowering.apply("tile", ins, outs, {"reps": tuple(reps)})


@rule("bitcast")
def _bitcast(ins, outs, *, ty, dim=None, **_):
    (x,), (out,) = ins, outs
    axis = -2 if dim is None else dim
    if bit_width(x.dtype) * x.size != bit_width(out.dtype) * out.size:
        raise Unsupported("bitcast", f"{x} to {out}")
    if bit_width(x.dtype) == bit_width(out.dtype):
        return lambda a: recast(a.copy(), out.dtype)

    def cast(a):
        packed = recast(np.moveaxis(a, axis, -1), out.dtype)
        return np.moveaxis(packed, -1, axis)

    return cast


@rule("sparsecore_bitcast")
def _sparsecore_bitcast(ins, outs, *, dtype, **_):
    return _bitcast(ins, outs, ty=dtype, dim=-1)


@rule("reciprocal")
def _reciprocal(ins, outs, *, approx=False, **_):
    (out,) = outs
    one = out.dtype.type(1)
    if not approx:
        return lambda x: np.asarray(np.divide(one, x)).astype(out.dtype, copy=False)
    # The operand is rounded to bfloat16; the quotient is not, since XLA drops a rounding
    # that a conversion back follows.
    narrow = np.dtype(ml_dtypes.bfloat16)
    return lambda x: np.asarray(one / np.asarray(x).astype(narrow).astype(out.dtype))


@batch_rule("reciprocal", broadcasts=True)
def _reciprocal_batch(stack, **params):
    return params
