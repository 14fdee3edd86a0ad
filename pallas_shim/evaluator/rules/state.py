"""Loads and stores of refs, masked ones and accumulating ones among them.

Where memory is checked, see bounds.py; elsewhere indices are clamped as XLA does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator import bounds, memory
from pallas_shim.evaluator.program import ArrayType, Effects, KeyType, Operation, RefType, Value
from pallas_shim.evaluator.rules import array_indices
from pallas_shim.evaluator.rules.registry import Unsupported, lowering_rule
from pallas_shim.jax_compat import state

READS_FIRST = Effects(reads=(0,))
WRITES_FIRST = Effects(writes=(0,))
UPDATES_FIRST = Effects(reads=(0,), writes=(0,))


class NotBasic(Exception):
    """A path that NumPy's basic indexing can't express."""


def path_of(view: state.RefView, *, sized: bool = True) -> tuple[memory.Path, list[Value]]:
    """A path with its constant indices as ints, and the leaves that stay dynamic.

    Raises:
      NotBasic: some index is an array, or a strided slice starts at a dynamic place or
        sticks out (JAX clamps its elements one by one).
      Unsupported: if ``sized``, a slice has a dynamic size.
    """
    leaves: list[Value] = []

    def resolve(index: Any, stride: int = 1) -> Any:
        if isinstance(index, (state.RefView, state.Marked)):
            raise NotBasic
        if not isinstance(index, Value):
            return index
        if index.type.shape:
            raise NotBasic
        if index.const is not None:
            return int(index.const)
        if stride not in (0, 1):
            raise NotBasic
        leaves.append(index)
        return memory.Dynamic(len(leaves) - 1)

    shape, dtype, key_ndim = view.ref.type.shape, view.ref.type.dtype, view.ref.type.key_ndim
    key = tuple(state.Slice(0, dim, 1) for dim in shape[len(shape) - key_ndim :])
    path: list[state.Step] = []
    for step in view.steps:
        if isinstance(step, state.Index):
            step = state.Index(
                tuple(
                    d._replace(start=resolve(d.start, d.stride), size=resolve(d.size, d.stride))
                    if isinstance(d, state.Slice)
                    else resolve(d)
                    for d in (*step.dims, *key)
                )
            )
            if any(map(_sticks_out, shape, step.dims)):
                raise NotBasic
            if sized and has_dynamic_size((step,)):
                raise Unsupported("ref", "a slice of dynamic size")
        elif key_ndim:
            raise Unsupported("ref", f"{type(step).__name__.lower()} of an array of PRNG keys")
        elif has_dynamic_size(tuple(path)):
            raise Unsupported("ref", f"{type(step).__name__.lower()} of a slice of dynamic size")
        path.append(step)
        shape, dtype = memory.viewed_type(shape, dtype, (step,))
    return tuple(path), leaves


def _sticks_out(dim: int, index: Any) -> bool:
    """Whether a strided slice from a known place has elements outside."""
    if not isinstance(index, state.Slice) or index.stride in (0, 1) or index.size == 0:
        return False
    return not 0 <= index.start <= dim - 1 - (index.size - 1) * index.stride


def _slices(path: memory.Path) -> Iterator[state.Slice]:
    for step in path:
        if isinstance(step, state.Index):
            yield from (dim for dim in step.dims if isinstance(dim, state.Slice))


def has_dynamic_size(path: memory.Path) -> bool:
    return any(isinstance(dim.size, memory.Dynamic) for dim in _slices(path))


def normalised(ref: RefType, path: memory.Path) -> memory.Path:
    """The path with constant indices clamped as XLA would, and whole-array indices left out."""
    shape, dtype = ref.shape, ref.dtype
    steps: list[state.Step] = []
    for step in path:
        before = shape
        if isinstance(step, state.Index):
            step = state.Index(tuple(map(_inside, before, step.dims)))
        shape, dtype = memory.viewed_type(shape, dtype, (step,))
        if step != state.Index(tuple(state.Slice(0, dim, 1) for dim in before)):
            steps.append(step)
    return tuple(steps)


class TooLarge(Unsupported):
    """A slice is larger than what it is a slice of."""


def _inside(dim: int, index: Any) -> Any:
    if isinstance(index, int):
        return memory.clamped(index, dim, 1)
    if isinstance(index, state.Slice) and index.stride and index.size > dim:
        raise TooLarge("ref", f"a slice of {index.size} elements of a dimension of {dim}")
    if isinstance(index, state.Slice) and index.stride == 1 and isinstance(index.start, int):
        return index._replace(start=memory.clamped(index.start, dim, index.size))
    return index


def load(lowering, ref: Value, path: memory.Path, leaves, out: ArrayType | KeyType) -> Value:
    """Emits a load, which raises IndexError if memory is checked and an index leaves the ref.

    What a slice has beyond the whole ref is uninitialised.
    """
    if lowering.checked is not None and not lowering.checked.raises:
        if bounds.unproven(ref.type.shape, ref.type.dtype, path):
            return _load_padded(lowering, ref, path, leaves, out)
    guard(lowering, ref, path, leaves, "read", IndexError)
    try:
        return _load_inside(lowering, ref, path, leaves, out)
    except TooLarge:
        return _load_padded(lowering, ref, path, leaves, out)


def _load_inside(lowering, ref: Value, path: memory.Path, leaves, out) -> Value:
    """Emits a load without a check. Its parameter ``as_view`` is the same without the copy,
    for the pass that proves that nothing overwrites what was read."""
    path = normalised(ref.ref, path)
    view = memory.viewer(ref.type.shape, ref.type.dtype, path)

    def copy(*args):
        return view(*args).copy()

    element = memory.element_reader(ref.type.shape, path)
    read, as_view = (copy, view) if element is None else (element, element)
    (value,) = lowering.memory(
        "get", [ref, *leaves], [out], read, READS_FIRST,
        params={"path": path, "as_view": as_view}, key=path,
    )  # fmt: skip
    return value


def _load_padded(lowering, ref: Value, path: memory.Path, leaves, out) -> Value:
    """Emits a load whose elements outside the ref are uninitialised."""
    fill = memory.filler(ref.type.dtype, lowering.checked)
    read = bounds.reader(ref.type.shape, ref.type.dtype, path, fill)
    (value,) = lowering.memory(
        "get_padded", [ref, *leaves], [out], read, READS_FIRST, params={"path": path}, key=path
    )
    return value


def guard(
    lowering, ref: Value, path: memory.Path, leaves, access: str, error: type[Exception]
) -> None:
    """Emits the check that a path stays inside its ref, if memory is checked."""
    if lowering.checked is None:
        return
    reaches = bounds.unproven(ref.type.shape, ref.type.dtype, path)
    if reaches:
        check = bounds.check(reaches, _outside(access, ref), error)
        lowering.memory(
            "check_bounds", leaves, [], check, Effects(io=True), key=(access, ref.type, path)
        )


def _outside(access: str, ref: Value) -> str:
    type = ref.ref
    return f"Out-of-bounds {access} of a ref of shape {type.shape} in {type.space}"


def store(lowering, ref: Value, path: memory.Path, leaves, value: Value) -> None:
    """Emits a store, which raises ValueError if memory is checked and an index leaves the ref."""
    guard(lowering, ref, path, leaves, "write", ValueError)
    _store_inside(lowering, ref, path, leaves, value)


def _store_inside(lowering, ref: Value, path: memory.Path, leaves, value: Value) -> None:
    """Emits a store without a check: operands ref, value, leaves."""
    path = normalised(ref.ref, path)
    if any(dim.stride == 0 for dim in _slices(path)):
        raise Unsupported("ref", "a store to a slice of stride 0")
    write = memory.writer(ref.type.shape, ref.type.dtype, path)
    lowering.memory(
        "store", [ref, value, *leaves], [], _nothing(write), WRITES_FIRST, params={"path": path},
        key=path,
    )


def load_elements(lowering, ref: Value, at: array_indices.Indices, out: ArrayType) -> Value:
    """Emits a load of what `array_indices.indices` found."""
    whole = load(lowering, ref, (), (), ref.ref.contents)
    return array_indices.gathered(lowering, whole, at, out)


def store_elements(lowering, ref: Value, at: array_indices.Indices, value: Value) -> None:
    """Emits a store to what `array_indices.indices` found."""
    whole = load(lowering, ref, (), (), ref.ref.contents)
    store(lowering, ref, (), (), array_indices.scattered(lowering, whole, at, value))


def _nothing(fn):
    def run(*args):
        fn(*args)
        return ()

    return run


# -- primitives -------------------------------------------------------------------------------


def by_discharge(lowering, eqn, ins: Sequence[Value]) -> list[Value]:
    """Any memory primitive as JAX itself discharges it: whole refs in, changed refs out."""
    if lowering.checked is not None:
        raise Unsupported(
            eqn.primitive.name,
            "an array index, a dynamic start of a strided slice, or a mask, in checked memory",
        )
    if any(v.type.key_ndim for v in ins):
        raise Unsupported(eqn.primitive.name, "array indices or a mask on PRNG keys")
    try:
        discharged = state.discharge(eqn)
    except state.UnsupportedTransform as error:
        raise Unsupported(eqn.primitive.name, str(error)) from error
    if discharged is None:
        raise Unsupported(eqn.primitive.name, "JAX has no discharge rule for it")
    wholes = [
        load(lowering, v, (), (), v.ref.contents)
        if isinstance(v.type, RefType)
        else v
        for v in ins
    ]
    results = lowering.inline(discharged.jaxpr, wholes)
    for position, value in zip(discharged.changed, results, strict=False):
        if isinstance(ins[position].type, RefType):
            if value.type != ins[position].ref.contents:
                raise Unsupported(eqn.primitive.name, f"JAX's rule makes a {value.type} of its ref")
            store(lowering, ins[position], (), (), value)
    return results[len(discharged.changed) :]


def _basic(lowering, view: state.RefView) -> tuple[Value, memory.Path, list[Value]]:
    path, leaves = path_of(view)
    if lowering.checked is None and _goes_by_elements(view.ref.ref, path):
        raise NotBasic
    return view.ref, path, leaves


def _goes_by_elements(ref: RefType, path: memory.Path) -> bool:
    """Whether one slice is strided, so that JAX reads and writes element by element, and an index
    beside it may be outside: then that isn't moved inside, as where no slice is strided."""
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
def get(lowering, eqn, ins):
    out = lowering.type(eqn.outvars[0].aval)
    try:
        access = state.load(eqn, ins)
        _require_near(lowering, eqn)
        elements = array_indices.indices(lowering, access.view, out.shape)
        if elements and access.mask is None:
            return [load_elements(lowering, access.view.ref, elements, out)]
        if access.mask is not None or _may_stick_out(lowering, eqn, access):
            raise NotBasic
        return [load(lowering, *_basic(lowering, access.view), out)]
    except NotBasic:
        return by_discharge(lowering, eqn, ins)
    except state.UnsupportedTransform as error:
        raise Unsupported(eqn.primitive.name, str(error)) from error


@lowering_rule("swap")
def swap(lowering, eqn, ins):
    out = lowering.type(eqn.outvars[0].aval)
    try:
        access = state.store(eqn, ins)
        _require_near(lowering, eqn)
        if lowering.checked is not None and access.mask is not None:
            return [_checked_masked_swap(lowering, access, out)]
        elements = array_indices.indices(lowering, access.view, out.shape)
        if elements and access.mask is None:
            before = load_elements(lowering, access.view.ref, elements, out)
            store_elements(lowering, access.view.ref, elements, access.value)
            return [before]
        if access.mask is not None or _may_stick_out(lowering, eqn, access):
            raise NotBasic
        ref, path, leaves = _basic(lowering, access.view)
        guard(lowering, ref, path, leaves, "swap", ValueError)
        before = _load_inside(lowering, ref, path, leaves, out)
        _store_inside(lowering, ref, path, leaves, access.value)
        return [before]
    except NotBasic:
        return by_discharge(lowering, eqn, ins)
    except state.UnsupportedTransform as error:
        raise Unsupported(eqn.primitive.name, str(error)) from error


def _require_near(lowering, eqn) -> None:
    """Checks that checked memory is in reach of loads and stores."""
    if lowering.checked is not None and jax_compat.in_hbm(eqn.invars[0].aval):
        raise Unsupported(
            eqn.primitive.name, "InterpretParams refuses it: a ref in HBM or ANY can only be copied"
        )


def _may_stick_out(lowering, eqn, access: state.Load | state.Store) -> bool:
    """Whether an unmasked pl.load or pl.store needs other than clamped indices."""
    unclamped = lowering.checked is None and eqn.primitive.name in ("masked_load", "masked_swap")
    return unclamped and not inside(access)


def _checked_masked_swap(lowering, access: state.Store, out: ArrayType | KeyType) -> Value:
    ref, path, leaves = _basic(lowering, access.view)
    dims = tuple(state.Slice(0, dim, 1) for dim in ref.type.shape)
    match path:
        case ():
            pass
        case (state.Index(dims),):
            pass
        case _:
            raise NotBasic
    swap = bounds.masked_swap(ref.type.shape, dims, _outside("masked swap", ref))
    (before,) = lowering.memory(
        "masked_swap", [ref, access.value, access.mask, *leaves], [out], swap,
        Effects(reads=(0,), writes=(0,), io=True), key=path,
    )
    return before


def inside(access: state.Load | state.Store) -> bool:
    """Whether an unmasked pl.load or pl.store can't leave its ref. Unlike a ref's own
    indexing, these don't move a slice that sticks out."""
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
def _addupdate(lowering, eqn, ins):
    try:
        access = state.store(eqn, ins)
        _require_near(lowering, eqn)
        ref, path, leaves = _basic(lowering, access.view)
    except NotBasic:
        return by_discharge(lowering, eqn, ins)
    except state.UnsupportedTransform as error:
        raise Unsupported("addupdate", str(error)) from error
    value = access.value
    guard(lowering, ref, path, leaves, "write", ValueError)
    before = _load_inside(lowering, ref, path, leaves, value.type)
    (total,) = lowering.apply("add", [before, value], [value.type], {})
    _store_inside(lowering, ref, path, leaves, total)
    return []


def allocate(lowering, type: RefType, fill: Any = None) -> Value:
    """Emits a new buffer, with what such memory holds at first."""
    if fill is None:
        fill = memory.initial(type.space, type.dtype, lowering.checked)
    (ref,) = lowering.emit(allocation(type, fill), ())
    return ref


def allocation(type: RefType, fill: Any) -> Operation:
    """The operation that makes a new buffer of which each element is ``fill``."""
    shape, dtype = type.shape, type.dtype
    effects = Effects(allocates=True)
    return Operation(
        "allocate", {"fill": fill}, (), (type,), lambda: np.full(shape, fill, dtype), effects
    )


@lowering_rule("run_scoped")
def _run_scoped(lowering, eqn, ins):
    jaxpr, collective_axes = jax_compat.run_scoped(eqn)
    if collective_axes:
        raise Unsupported("run_scoped", "collective axes need several cores")
    opened, _ = jax_compat.open_jaxpr(jaxpr)
    if lowering.checked is not None and not lowering.checked.hbm_in_run_scoped:
        if any(jax_compat.in_hbm(v.aval) for v in opened.invars):
            raise Unsupported("run_scoped", "InterpretParams refuses it: it allocates HBM")
    refs = [allocate(lowering, lowering.type(v.aval)) for v in opened.invars]
    return lowering.inline(jaxpr, refs, ins)


@lowering_rule("run_state")
def _run_state(lowering, eqn, ins):
    opened, _ = jax_compat.open_jaxpr(eqn.params["jaxpr"])
    given = iter(ins)
    refs = []
    for var, is_initialised in zip(opened.invars, eqn.params["is_initialized"], strict=True):
        refs.append(allocate(lowering, lowering.type(var.aval)))
        if is_initialised:
            store(lowering, refs[-1], (), (), next(given))
    lowering.inline(eqn.params["jaxpr"], refs)
    return [load(lowering, r, (), (), r.ref.contents) for r in refs]


@lowering_rule("new_ref")
def _new_ref(lowering, eqn, ins):
    ref = allocate(lowering, lowering.type(eqn.outvars[0].aval))
    store(lowering, ref, (), (), ins[0])
    return [ref]


@lowering_rule("empty_ref")
def _empty_ref(lowering, eqn, ins):
    return [allocate(lowering, lowering.type(eqn.outvars[0].aval))]


@lowering_rule("free_ref")
def _free_ref(lowering, eqn, ins):
    return []


@lowering_rule("freeze")
def _freeze(lowering, eqn, ins):
    (ref,) = ins
    return [load(lowering, ref, (), (), ref.ref.contents)]
