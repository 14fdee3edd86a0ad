"""Pallas TPU: DMAs and semaphores.

A DMA moves its data when it starts. Programs that wait before they read, as the hardware requires,
can't tell the difference. A semaphore counts elements and signals as JAX's interpreter does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator import memory, refs
from pallas_shim.evaluator.dynamic_slices import DynamicSlices
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.machine import faults, programs
from pallas_shim.evaluator.program import (
    PURE,
    Array,
    ArrayType,
    Effects,
    RefType,
    Region,
    Value,
)
from pallas_shim.evaluator.registry import Unsupported, lowering_rule
from pallas_shim.evaluator.rules import indirect, remote
from pallas_shim.jax_compat import state

# Semaphores of JAX's interpreter are 16 bits wide, so a DMA counts no further.
_MOST_COUNTED = np.iinfo(np.int16).max


def _access(
    lowering: Lowering, view: state.RefView
) -> tuple[Value, memory.Path, list[Value], ArrayType]:
    path, leaves = refs.path_of(view)
    probe = memory.viewed_type(view.ref.type.shape, view.ref.type.dtype, path)
    return view.ref, path, leaves, ArrayType(*probe)


def _each_choice(
    lowering: Lowering,
    eqn: Any,
    ins: Sequence[Value],
    emit: Callable[[Any, Any, state.Dma], None],
) -> None:
    """Emits ``emit(lowering, eqn, dma)`` for a DMA. If some ref is one of several, emits a branch
    for each case."""

    def choose(dma: state.Dma | state.Choice) -> None:
        if isinstance(dma, state.Dma):
            emit(lowering, eqn, dma)
            return
        index, cases = dma
        if isinstance(index, Value) and index.const is not None:
            index = int(index.const)
        if isinstance(index, int):
            choose(cases[memory.clamped(index, len(cases), 1)])
            return

        def region(case: Any) -> Region:
            def build(_: Sequence[Value]) -> tuple[()]:
                choose(case)
                return ()

            return lowering.region((), build)

        lowering.structured("switch", [index], [], [region(case) for case in cases], {})

    choose(state.dma(eqn, ins))


@lowering_rule("dma_start")
def _dma_start(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    _each_choice(lowering, eqn, ins, _start)
    return []


def _start(lowering: Lowering, eqn: Any, dma: state.Dma) -> None:
    if _talks(lowering) and (
        dma.device_id is not None or lowering.machine.levels[-1].kind == "core"
    ):
        programs.emit_turn(lowering)
    if dma.device_id is not None and dma.src_sem is None:
        raise Unsupported("dma_start", "a copy to another device without a semaphore to send")
    own = dma.dst.ref
    dma = dma._replace(
        dst=remote.of_other(lowering, eqn, dma.dst, dma.device_id),
        dst_sem=remote.of_other(lowering, eqn, dma.dst_sem, dma.device_id),
    )
    sent = None if dma.device_id is None else dma.src_sem
    after: Callable[[], None] | None = None
    if lowering.checker is not None:
        if dma.dst.ref is not own:
            lowering.checker.reaches(own, dma.dst.ref, lowering.machine.numbers[dma.dst.ref])
        source, target = (indirect.with_arrays(lowering, view) for view in (dma.src, dma.dst))
        kept = source.mask if target.mask is None else target.mask
        here = None if dma.device_id is not None or _talks(lowering) else dma.dst_sem
        after = lowering.checker.copy(
            source.view, target.view, (source.mask, kept), here, _change(lowering, dma)
        )
        if sent is not None and not _talks(lowering):
            # Memory of a core of another kind. Both of its semaphores may be looked at here.
            for semaphore in (sent, dma.dst_sem):
                lowering.checker.signal(semaphore, _size_of(lowering, dma))
    if lowering.machine.timed:
        _start_later(lowering, dma, sent)
        return
    size = _copy(lowering, dma)
    if after is not None:
        after()
    if sent is not None:
        _add(lowering, sent, size)
    _add(lowering, dma.dst_sem, size)


def _change(lowering: Lowering, dma: state.Dma) -> Callable[[], tuple[Value, Value]] | None:
    """What emits loads of the elements that a copy writes, and of those before. None if its places
    aren't simple."""
    for view in (dma.src, dma.dst):
        if indirect.rows(view).indices or _dynamic_size(lowering, view) is not None:
            return None
    if dma.add or dma.device_id is not None:
        return None

    def loads() -> tuple[Value, Value]:
        both = []
        for view in (dma.src, dma.dst):
            ref, path, leaves, type = _access(lowering, view)
            both.append(refs.load(lowering, ref, path, leaves, type))
        return both[0], both[1]

    return loads


def _start_later(lowering: Lowering, dma: state.Dma, sent: state.RefView | None) -> None:
    """Emits a copy that may happen later. It first reads, and may write later still."""
    programs.emit_place(lowering)
    indices = any(indirect.rows(view).indices for view in (dma.src, dma.dst))
    sizes = [None if indices else _dynamic_size(lowering, v) for v in (dma.src, dma.dst)]
    size = next((size for size in sizes if size is not None), None)
    steps: list[tuple[state.RefView | None, Callable[[], Any]]] = []
    if indices or size is not None:
        # Indices that the copy reads belong to it, as its source does.
        steps.append((sent, lambda: _copy(lowering, dma)))
        steps.append((dma.dst_sem, lambda: _size_of(lowering, dma)))
    else:
        src, path, leaves, type = _access(lowering, dma.src)
        held = refs.allocate(lowering, RefType(type.shape, type.dtype, "any"))

        def read() -> Any:
            value = refs.load(lowering, src, path, leaves, type)
            refs.store(lowering, held, (), (), value)
            return _counted(lowering, type)

        def write() -> Any:
            whole = state.RefView(held, ())
            return _copy(lowering, dma._replace(src=whole))

        steps = [(sent, read), (dma.dst_sem, write)]

    def step(semaphore: state.RefView | None, emit: Callable[[], Any]) -> programs.CopyStep:
        with lowering.block() as body:
            count = emit()
            if semaphore is not None:
                _add(lowering, semaphore, count)
        region = Region((), tuple(body), ())
        if semaphore is None:
            return programs.CopyStep(region)
        ref, path, leaves, _ = _access(lowering, semaphore)
        return programs.CopyStep(region, ref, refs.normalised(ref.ref, path), leaves)

    programs.emit_copy(lowering, [step(*each) for each in steps])


def _copy(lowering: Lowering, dma: state.Dma) -> Any:
    """Emits a copy, and returns the count that it adds to a DMA's semaphore."""
    if any(indirect.rows(view).indices for view in (dma.src, dma.dst)):
        _touch_elements(lowering, dma)
        type = indirect.copy(lowering, dma)
        return _counted(lowering, type)
    sizes = [_dynamic_size(lowering, view) for view in (dma.src, dma.dst)]
    size = next((size for size in sizes if size is not None), None)
    if size is not None:
        _touch_elements(lowering, dma)
        _copy_cut_off(lowering, dma)
        return size
    src, path, leaves, type = _access(lowering, dma.src)
    dst, to, to_leaves, dst_type = _access(lowering, dma.dst)
    if dst_type != type:
        raise Unsupported("dma_start", f"a DMA from {type} to {dst_type}")
    if _talks(lowering) and lowering.checked is None and not dma.add:
        _copy_at_once(lowering, (src, path, leaves), (dst, to, to_leaves))
        return _counted(lowering, type)
    value = refs.load(lowering, src, path, leaves, type)
    if dma.add:
        before = refs.load(lowering, dst, to, to_leaves, type)
        (value,) = lowering.apply("add", [before, value], [type], {})
    refs.store(lowering, dst, to, to_leaves, value)
    return _counted(lowering, type)


def _touch_elements(lowering: Lowering, dma: state.Dma) -> None:
    """Notes the elements that a copy reads and writes, by arrays of indices or of sizes that only
    the run knows."""
    if not lowering.machine.timed:
        return
    source, target = (indirect.with_arrays(lowering, view) for view in (dma.src, dma.dst))
    with lowering.touching(source.view, source.mask, False):
        pass
    with lowering.touching(
        target.view, source.mask if target.mask is None else target.mask, True
    ):
        pass


def _copy_at_once(lowering: Lowering, source: Any, target: Any) -> None:
    """A copy between programs. Passes don't analyse memory of other programs."""
    (src, path, leaves), (dst, to, to_leaves) = source, target
    path, to = refs.normalised(src.ref, path), refs.normalised(dst.ref, to)
    lowering.touch(src, path, leaves, False)
    lowering.touch(dst, to, to_leaves, True)
    read = memory.viewer(src.type.shape, src.type.dtype, path)
    write = memory.writer(dst.type.shape, dst.type.dtype, to)
    count = len(leaves)

    def copy(src: Any, dst: Any, *leaves: Any) -> Any:
        write(dst, read(src, *leaves[:count]), *leaves[count:])
        return ()

    lowering.memory(
        "dma", [src, dst, *leaves, *to_leaves], [], copy, Effects(reads=(0,), writes=(1,)),
        params={"paths": (path, to), "num_leaves": count}, key=(path, to, count),
    )  # fmt: skip


@lowering_rule("dma_wait")
def _dma_wait(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    _each_choice(lowering, eqn, ins, _await)
    return []


def _await(lowering: Lowering, eqn: Any, dma: state.Dma) -> None:
    if lowering.checker is not None and not _talks(lowering):
        target = indirect.with_arrays(lowering, dma.dst)
        lowering.checker.wait_for_copy(dma.dst_sem, target.view, target.mask)
    _take(lowering, dma.dst_sem, _size_of(lowering, dma), True)


def _size_of(lowering: Lowering, dma: state.Dma) -> Any:
    """The count that a copy adds to its semaphores, as its target says."""
    into = indirect.rows(dma.dst)
    if into.indices:
        return _counted(lowering, indirect.type_of(into))
    size = _dynamic_size(lowering, into.view, only_counted=True)
    if size is not None:
        return size
    *_, type = _access(lowering, dma.dst)
    return _counted(lowering, type)


def _talks(lowering: Lowering) -> bool:
    """Whether programs here may wait for one another. Otherwise a copy completes when it starts."""
    return lowering.machine.talks


def _counted(lowering: Lowering, type: ArrayType) -> Any:
    """The count that a copy of some elements adds to a DMA's semaphore. Where programs talk, it
    counts bytes, so that the counts of any parts add up. Otherwise it counts elements, as JAX's
    interpreter does."""
    number = type.nbytes if _talks(lowering) else min(type.size, _MOST_COUNTED)
    return lowering.const(np.int32(number))


def _of_semaphore(lowering: Lowering, sem: state.RefView, size: Any) -> Any:
    """The count of a copy on this semaphore. A semaphore that isn't a DMA's counts copies."""
    if _talks(lowering) and sem.ref.type.space != "semaphore_dma":
        return lowering.const(np.int32(1))
    return size


def _add(lowering: Lowering, sem: state.RefView, size: Any) -> None:
    _signal_count(lowering, sem, _of_semaphore(lowering, sem, size))


def _take(lowering: Lowering, sem: state.RefView, size: Any, decrement: bool) -> None:
    _await_count(lowering, sem, _of_semaphore(lowering, sem, size), decrement)


def _signal_count(lowering: Lowering, sem: state.RefView, value: Any) -> None:
    """Adds to a semaphore."""
    if not _talks(lowering):
        _count(lowering, sem, value, np.add)
        return
    ref, path, leaves, _ = _access(lowering, sem)
    programs.emit_signal(lowering, ref, refs.normalised(ref.ref, path), leaves, value)


def _await_count(lowering: Lowering, sem: state.RefView, value: Any, decrement: bool) -> None:
    ref, path, leaves, _ = _access(lowering, sem)
    path = refs.normalised(ref.ref, path)
    if _talks(lowering):
        programs.emit_place(lowering)
        programs.emit_await(lowering, ref, path, leaves, value, decrement)
    elif lowering.machine.timed:
        programs.emit_timed_wait(lowering, ref, path, leaves, value, decrement)
    elif decrement:
        _count(lowering, sem, value, np.subtract)


def _dynamic_size(
    lowering: Lowering, view: state.RefView, only_counted: bool = False
) -> Value | None:
    """The number of elements of a view with slices of dynamic size. None for any other view.
    ``only_counted``: nothing is read or written there, so it may lie outside of checked memory."""
    path, leaves = refs.path_of(view, sized=False)
    if not refs.has_dynamic_size(path):
        return None
    if lowering.checked is not None and not only_counted:
        raise Unsupported("dma_start", "a slice of dynamic size in checked memory")
    last = path[-1]
    assert isinstance(last, state.Index)  # nothing else follows such a slice
    sizes = [dim.size for dim in last.dims if isinstance(dim, state.Slice)]
    known = math.prod(size for size in sizes if isinstance(size, int))
    places = [size.leaf for size in sizes if not isinstance(size, int)]

    def counted(*leaves: Array) -> Array:
        number = known * math.prod(int(leaves[place]) for place in places)
        return np.int32(number * itemsize if talks else min(number, _MOST_COUNTED))

    type = ArrayType((), np.dtype(np.int32))
    talks, itemsize = _talks(lowering), view.ref.type.dtype.itemsize
    key = (path, talks, itemsize)
    (size,) = lowering.memory("dma_size", leaves, [type], counted, PURE, key=key)
    return size


def _copy_cut_off(lowering: Lowering, dma: state.Dma) -> None:
    """Copies the elements that lie inside both refs. Elements that the source lacks become zero. On
    a TPU they are the array's padding to whole tiles. Kernels multiply the padding with zeros, so
    it must be finite."""
    (src_path, src_leaves), (dst_path, dst_leaves) = [
        refs.path_of(view, sized=False) for view in (dma.src, dma.dst)
    ]
    src, dst = dma.src.ref, dma.dst.ref
    source = DynamicSlices(src.type.shape, src.type.dtype, src_path)
    target = DynamicSlices(dst.type.shape, dst.type.dtype, dst_path)
    if source.dtype != target.dtype:
        raise Unsupported("dma_start", f"a DMA from {source.dtype} to {target.dtype}")
    count, add = len(src_leaves), dma.add

    def copy(src: Array, dst: Array, *leaves: Array) -> tuple[()]:
        given = source.read(src, leaves[:count])

        def put(into: Array) -> None:
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


def _count(lowering: Lowering, sem: state.RefView, value: Value, combine: np.ufunc) -> None:
    """Adds to or subtracts from a semaphore. Passes treat it as a store, so it may go if nobody
    reads the count."""
    ref, path, leaves, _ = _access(lowering, sem)
    path = refs.normalised(ref.ref, path)
    view = memory.viewer(ref.type.shape, ref.type.dtype, path)

    def count(ref: Array, value: Array, *leaves: Array) -> tuple[()]:
        at = view(ref, *leaves)
        combine(at, value, out=at, casting="unsafe")
        return ()

    lowering.memory(
        f"semaphore_{combine.__name__}", [ref, value, *leaves], [], count,
        refs.WRITES_FIRST, params={"path": path}, key=path,
    )


def _semaphore(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> state.Semaphore:
    semaphore = state.semaphore(eqn, ins)
    view = remote.of_other(
        lowering, eqn, semaphore.view, semaphore.device_id, semaphore.core_index
    )
    return semaphore._replace(view=view)


@lowering_rule("semaphore_signal")
def _signal(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    semaphore = _semaphore(lowering, eqn, ins)
    if lowering.checker is not None and not _talks(lowering):
        lowering.checker.signal(semaphore.view, semaphore.value)
    programs.emit_place(lowering)
    _signal_count(lowering, semaphore.view, semaphore.value)
    return []


@lowering_rule("semaphore_wait")
def _wait(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    view, value, _, _, decrement = _semaphore(lowering, eqn, ins)
    if lowering.checker is not None and not _talks(lowering):
        lowering.checker.wait(view, value, decrement)
    timed = lowering.machine.timed
    if not _talks(lowering) and view.ref.type.space == "semaphore" and not timed:
        _take_own(lowering, view, value, decrement)
    else:
        _await_count(lowering, view, value, decrement)
    return []


def _take_own(lowering: Lowering, sem: state.RefView, value: Any, decrement: bool) -> None:
    """A wait in a kernel that no other program signals. If the count is too low now, it stays too
    low, so the kernel would wait for ever."""
    ref, path, leaves, _ = _access(lowering, sem)
    path = refs.normalised(ref.ref, path)
    view = memory.viewer(ref.type.shape, ref.type.dtype, path)
    kernel, name, source = lowering.machine.kernel, lowering.names.get(ref), lowering.source

    def take(ref: Any, value: Any, *leaves: Any) -> Any:
        at = view(ref, *leaves)
        if at[()] < value:
            raise faults.own_deadlock(
                f"the kernel {kernel}", name or "a semaphore", int(at[()]), int(value),
                jax_compat.user_source(source), alone=True,
            )  # fmt: skip
        if decrement:
            np.subtract(at, value, out=at, casting="unsafe")
        return ()

    effects = Effects(reads=(0,), writes=(0,), io=True)
    lowering.memory("semaphore_take", [ref, value, *leaves], [], take, effects)


@lowering_rule("semaphore_read")
def _read(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    programs.emit_place(lowering)
    ref, path, leaves, type = _access(lowering, _semaphore(lowering, eqn, ins).view)
    return [refs.load(lowering, ref, path, leaves, type)]
