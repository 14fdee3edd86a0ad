"""The primitives of refs: plain, masked and accumulating accesses, and new and freed refs.

JAX's own discharge handles paths that have more than basic indices.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from pallas_shim import jax_compat
from pallas_shim.evaluator import memory, refs
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.machine import programs
from pallas_shim.evaluator.program import (
    RefType,
    Value,
    contents_type,
    ref_type,
)
from pallas_shim.evaluator.registry import Unsupported, lowering_rule
from pallas_shim.evaluator.rules import array_indices, remote
from pallas_shim.evaluator.rules.axes import is_alone
from pallas_shim.jax_compat import state
from pallas_shim.refusal import Refusal


def by_discharge(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> list[Value]:
    """Emits a memory primitive by JAX's own discharge. It takes whole refs and returns changed
    ones."""
    if lowering.checked is not None:
        raise Unsupported(eqn.primitive.name, f"{_not_basic(eqn, ins)}, in checked memory")
    if any(v.type.key_ndim for v in ins):
        raise Unsupported(eqn.primitive.name, "array indices or a mask on PRNG keys")
    discharged = state.discharge(eqn)
    if discharged is None:
        raise Unsupported(eqn.primitive.name, "JAX has no discharge rule for it")
    wholes = [
        refs.load(lowering, v, (), (), v.ref.contents)
        if isinstance(v.type, RefType)
        else v
        for v in ins
    ]
    results = lowering.inline_definition(discharged.jaxpr, wholes)
    for position, value in zip(discharged.changed, results, strict=False):
        if isinstance(ins[position].type, RefType):
            if value.type != ins[position].ref.contents:
                raise Unsupported(eqn.primitive.name, f"JAX's rule makes a {value.type} of its ref")
            refs.store(lowering, ins[position], (), (), value)
    return results[len(discharged.changed) :]


def _not_basic(eqn: Any, ins: Sequence[Value]) -> str:
    """Says which part of an access no basic index can express."""
    if eqn.primitive.name == "atomic_cas":
        return "an atomic operation"
    try:
        access = (state.load if "load" in eqn.primitive.name or eqn.primitive.name == "get"
                  else state.store)(eqn, ins)  # fmt: skip
    except state.UnsupportedTransform as error:
        return str(error)
    if access.mask is not None:
        return "a mask"
    dims = [d for s in access.view.steps if isinstance(s, state.Index) for d in s.dims]
    if any(isinstance(d, Value) and d.type.shape for d in dims):
        return "an array index"
    return "a dynamic start of a strided slice"


def _basic(lowering: Lowering, view: state.RefView) -> tuple[Value, memory.Path, list[Value]]:
    path, leaves = refs.path_of(view)
    if lowering.checked is None and _goes_by_elements(view.ref.ref, path):
        raise refs.NotBasic
    return view.ref, path, leaves


def _goes_by_elements(ref: RefType, path: memory.Path) -> bool:
    """Whether JAX accesses each element by itself, because a slice is strided, and an index beside
    it may be outside. JAX doesn't clamp such an index. Without strided slices it would."""
    shape, dtype = ref.shape, ref.dtype
    for step in path:
        if isinstance(step, state.Index):
            strided = any(isinstance(i, state.Slice) and i.stride > 1 for i in step.dims)
            if strided and not all(map(_lies_inside, shape, step.dims)):
                return True
        shape, dtype = memory.viewed_type(shape, dtype, (step,))
    return False


def _lies_inside(dim: int, index: Any) -> bool:
    start = index.start if isinstance(index, state.Slice) else index
    length = (index.size - 1) * index.stride + 1 if isinstance(index, state.Slice) else 1
    return isinstance(start, int) and 0 <= start <= dim - length


@lowering_rule("get")
def get(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    values = _get(lowering, eqn, ins)
    if lowering.checker is None:
        return values
    view, mask, _ = state.load(eqn, ins)
    return [lowering.checker.read(view, value, mask) for value in values]


def _get(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    out = contents_type(lowering.type(eqn.outvars[0].aval))
    try:
        access = state.load(eqn, ins)
        _require_near(lowering, eqn)
        elements = array_indices.indices(lowering, access.view, out.shape)
        if elements and access.mask is None:
            with lowering.touching(access.view, None, False):
                return [array_indices.load(lowering, access.view.ref, elements, out)]
        if access.mask is not None or _may_stick_out(lowering, eqn, access):
            raise refs.NotBasic("a mask, or a slice that may leave its ref")
        return [refs.load(lowering, *_basic(lowering, access.view), out)]
    except refs.NotBasic:
        with _touching(lowering, eqn, ins, False):
            return by_discharge(lowering, eqn, ins)


def _touching(
    lowering: Lowering, eqn: Any, ins: Sequence[Value], writes: bool
) -> contextlib.AbstractContextManager[None]:
    """The context of an access by discharge, which loads and stores whole refs."""
    try:
        access = (state.store if writes else state.load)(eqn, ins)
    except Refusal:
        return contextlib.nullcontext()
    return lowering.touching(access.view, access.mask, writes)


@lowering_rule("swap")
def swap(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    before = _swap(lowering, eqn, ins)
    return before if lowering.checker is None else checked_swap(lowering, eqn, ins, before)


def checked_swap(
    lowering: Lowering, eqn: Any, ins: Sequence[Value], before: Sequence[Value]
) -> Sequence[Value]:
    """Emits the checks of a store that gives the elements ``before``, and returns these."""
    checker = lowering.checker
    assert checker is not None
    view, value, mask = state.store(eqn, ins)
    checker.decides(view, before[0], value)
    change = (value, before[0])
    if checker.is_used(eqn.outvars[0]):
        before = [checker.read(view, each, mask) for each in before]
    checker.write(view, mask, change=change)
    return before


def _swap(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    out = contents_type(lowering.type(eqn.outvars[0].aval))
    try:
        access = state.store(eqn, ins)
        _require_near(lowering, eqn)
        if lowering.checked is not None and access.mask is not None:
            with lowering.touching(access.view, access.mask, True):
                ref, path, leaves = _basic(lowering, access.view)
                return [refs.masked_swap(lowering, ref, path, leaves, access.value, access.mask)]
        elements = array_indices.indices(lowering, access.view, out.shape)
        if elements and access.mask is None:
            with lowering.touching(access.view, None, True):
                before = array_indices.load(lowering, access.view.ref, elements, out)
                array_indices.store(lowering, access.view.ref, elements, access.value)
            return [before]
        if access.mask is not None or _may_stick_out(lowering, eqn, access):
            raise refs.NotBasic("a mask, or a slice that may leave its ref")
        ref, path, leaves = _basic(lowering, access.view)
        refs.guard(lowering, ref, path, leaves, "swap", ValueError)
        if refs.reaches_beside(lowering, ref, path):
            return [refs.masked_swap(lowering, ref, path, leaves, access.value, None)]
        before = refs.load_inside(lowering, ref, path, leaves, out)
        refs.store_inside(lowering, ref, path, leaves, access.value)
        return [before]
    except refs.NotBasic:
        with _touching(lowering, eqn, ins, True):
            return by_discharge(lowering, eqn, ins)


def _require_near(lowering: Lowering, eqn: Any) -> None:
    """Checks that loads and stores may access this memory, if memory is checked."""
    if lowering.checked is not None and jax_compat.in_hbm(eqn.invars[0].aval):
        raise Unsupported(
            eqn.primitive.name, "InterpretParams refuses it: a ref in HBM or ANY can only be copied"
        )


def _may_stick_out(lowering: Lowering, eqn: Any, access: state.LoadInfo | state.StoreInfo) -> bool:
    """Whether an unmasked pl.load or pl.store may have indices that must not be clamped."""
    unclamped = lowering.checked is None and eqn.primitive.name in ("masked_load", "masked_swap")
    return unclamped and not inside(access)


def inside(access: state.LoadInfo | state.StoreInfo) -> bool:
    """Whether an unmasked pl.load or pl.store can't leave its ref. A ref's own indexing moves a
    slice inside if it sticks out. These primitives don't."""
    shape, dtype = access.view.ref.type.shape, access.view.ref.type.dtype
    for step in access.view.steps:
        dims = step.dims if isinstance(step, state.Index) else ()
        for dim, index in zip(shape, dims, strict=False):
            start = index.start if isinstance(index, state.Slice) else index
            if isinstance(start, Value):
                if start.const is None or start.type.shape:
                    return False
                start = int(start.const)
            last = start
            if isinstance(index, state.Slice):
                last = start + max(index.size - 1, 0) * index.stride
            if start < 0 or last >= dim:
                return False
        shape, dtype = memory.viewed_type(shape, dtype, (step,))
    return True


@lowering_rule("addupdate")
def _addupdate(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    try:
        access = state.store(eqn, ins)
        _require_near(lowering, eqn)
        ref, path, leaves = _basic(lowering, access.view)
        if refs.reaches_beside(lowering, ref, path):
            raise refs.NotBasic("a slice that may leave its ref")
    except refs.NotBasic:
        with _touching(lowering, eqn, ins, True):
            return by_discharge(lowering, eqn, ins)
    value = access.value
    refs.guard(lowering, ref, path, leaves, "write", ValueError)
    before = refs.load_inside(lowering, ref, path, leaves, value.type)
    if lowering.checker is not None:
        before = lowering.checker.read(access.view, before, what="adds to")
        lowering.checker.write(access.view, what="adds to")
    (total,) = lowering.apply("add", [before, value], [value.type], {})
    refs.store_inside(lowering, ref, path, leaves, total)
    return []


@lowering_rule("run_scoped")
def _run_scoped(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    jaxpr, collective_axes = jax_compat.run_scoped(eqn)
    common = [a for a in collective_axes if not is_alone(lowering, "run_scoped", a)]
    if common and not (lowering.machine.talks and lowering.machine.levels[-1].kind == "core"):
        raise Unsupported("run_scoped", f"memory shared along {common}, where no core waits")
    opened, _ = jax_compat.open_jaxpr(jaxpr)
    if lowering.checked is not None and not lowering.checked.hbm_in_run_scoped:
        if any(jax_compat.in_hbm(v.aval) for v in opened.invars):
            raise Unsupported("run_scoped", "InterpretParams refuses it: it allocates HBM")
    buffers = [refs.allocate(lowering, ref_type(lowering.type(v.aval))) for v in opened.invars]
    lowering.names.update(zip(buffers, jax_compat.argument_names(opened), strict=False))
    if lowering.checker is not None:
        for ref in buffers:
            lowering.checker.allocated(ref, lowering.names.get(ref))
    if common:
        buffers = [remote.of_first(lowering, ref, common) for ref in buffers]
    elif lowering.machine.talks and lowering.machine.levels[-1].kind == "core":
        # HBM that a kernel allocates belongs to all cores of its device.
        cores = list(lowering.machine.levels[-1].sizes)
        buffers = [
            remote.of_first(lowering, ref, cores) if jax_compat.in_hbm(var.aval) else ref
            for var, ref in zip(opened.invars, buffers, strict=True)
        ]
    results = lowering.inline(jaxpr, buffers, ins)
    if lowering.checker is not None:
        lowering.checker.left(buffers)
    semaphores = [ref for ref in buffers if ref.ref.space.startswith("semaphore")]
    programs.emit_scope_exit(lowering, [] if common else semaphores)
    return results


@lowering_rule("run_state")
def _run_state(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    opened, _ = jax_compat.open_jaxpr(eqn.params["jaxpr"])
    given = iter(ins)
    buffers = []
    for var, is_initialised in zip(opened.invars, eqn.params["is_initialized"], strict=True):
        buffers.append(refs.allocate(lowering, ref_type(lowering.type(var.aval))))
        if is_initialised:
            refs.store(lowering, buffers[-1], (), (), next(given))
    lowering.inline(eqn.params["jaxpr"], buffers)
    return [refs.load(lowering, r, (), (), r.ref.contents) for r in buffers]


@lowering_rule("new_ref")
def _new_ref(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    ref = refs.allocate(lowering, ref_type(lowering.type(eqn.outvars[0].aval)))
    refs.store(lowering, ref, (), (), ins[0])
    return [ref]


@lowering_rule("empty_ref")
def _empty_ref(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    return [refs.allocate(lowering, ref_type(lowering.type(eqn.outvars[0].aval)))]


@lowering_rule("free_ref")
def _free_ref(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    return []


@lowering_rule("freeze")
def _freeze(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    (ref,) = ins
    return [refs.load(lowering, ref, (), (), ref.ref.contents)]
