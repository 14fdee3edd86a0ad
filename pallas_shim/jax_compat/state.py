"""One normal form of refs' transforms and of the primitives that access memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import tree_util, util
from jax._src.state import discharge as state_discharge
from jax._src.state import indexing
from jax._src.state import types as state_types

from pallas_shim.refusal import Refusal

# -- transforms -----------------------------------------------------------------------------
# If JAX's form holds an array, ours holds the leaf that the caller gave for it. Tuples with equal
# entries are equal, so each kind of step also holds its name.


class Slice(NamedTuple):
    """``size`` elements from ``start`` in steps of ``stride``. ``start`` may be a leaf. ``size``
    may be a leaf if a DMA copies the slice."""

    start: Any
    size: Any
    stride: int


class Index(NamedTuple):
    """One entry per dimension: an int, a leaf (an integer or integer array) or a Slice. In a DMA an
    entry may also be a view of a ref of indices, or Marked indices."""

    dims: tuple[Any, ...]
    kind: str = "index"


class Marked(NamedTuple):
    """An array of indices. Indices equal to ``ignored`` are skipped."""

    values: Any
    ignored: int


class Bitcast(NamedTuple):
    dtype: np.dtype
    kind: str = "bitcast"


class Reshape(NamedTuple):
    shape: tuple[int, ...]
    kind: str = "reshape"


class Transpose(NamedTuple):
    permutation: tuple[int, ...]
    kind: str = "transpose"


Step = Index | Bitcast | Reshape | Transpose


class UnsupportedTransform(Refusal):
    """A transform of a ref has no normal form. The message names it."""


class RefView(NamedTuple):
    """A ref, and the transforms that lead to the accessed part, in order."""

    ref: Any
    steps: tuple[Step, ...]


class Choice(NamedTuple):
    """One of ``cases``. ``index``, an int or a leaf, selects it."""

    index: Any
    cases: tuple[Any, ...]


def _steps(transforms: Sequence[Any]) -> tuple[Step, ...]:
    return tuple(
        step for t in transforms or () if t is not None for step in (_step(t),) if step is not None
    )


def _step(transform: Any) -> Step | None:
    if isinstance(transform, indexing.NDIndexer):
        return Index(tuple(map(_dim, transform.indices)))
    name = type(transform).__name__
    if name in ("BitcastTransform", "RefBitcaster"):
        return Bitcast(np.dtype(transform.dtype))
    if name in ("ReshapeTransform", "RefReshaper"):
        return Reshape(tuple(transform.shape))
    if name in ("TransposeTransform", "TransposeRef", "RefTransposer"):
        return Transpose(tuple(transform.permutation))
    if name in ("MemorySpaceCastTransform", "AccessAssumptionTransform"):
        return None  # the transform neither moves nor changes data
    raise UnsupportedTransform(f"the ref transform {name}")


def _dim(index: Any) -> Any:
    if isinstance(index, indexing.Slice):
        return Slice(_known(index.start), _known(index.size), int(index.stride))
    return _known(index)


def _known(index: Any) -> Any:
    if isinstance(index, state_types.TransformedRef):
        return _view(index)
    if hasattr(index, "ignored_value"):  # the indices of a SparseCore's DMA
        values, ignored = _known(index.values), index.ignored_value
        return values if ignored is None else Marked(values, ignored)
    return int(index) if isinstance(index, (int, np.integer)) else index


def _view(ref: Any, transforms: Sequence[Any] = ()) -> RefView:
    view = _view_or_choice(ref, transforms)
    if isinstance(view, Choice):
        raise UnsupportedTransform("a selection among several refs")
    return view


def _view_or_choice(ref: Any, transforms: Sequence[Any] = ()) -> Any:
    """Newer JAX passes refs as TransformedRef, older JAX as a pair."""
    if not isinstance(ref, state_types.TransformedRef):
        return RefView(ref, _steps(transforms))
    own: Any = ref.transforms
    if isinstance(ref.ref, (tuple, list)):
        select, *own = own
        inner: Any = Choice(_known(select.idx), tuple(map(_view_or_choice, ref.ref)))
    else:
        inner = _view_or_choice(ref.ref)
    return _extended(inner, (*_steps(own), *_steps(transforms)))


def _extended(view: Any, steps: tuple[Step, ...]) -> Any:
    if isinstance(view, Choice):
        return view._replace(cases=tuple(_extended(case, steps) for case in view.cases))
    return RefView(view.ref, view.steps + steps)


# -- primitives -----------------------------------------------------------------------------


class LoadInfo(NamedTuple):
    view: RefView
    mask: Any
    other: Any


class StoreInfo(NamedTuple):
    view: RefView
    value: Any
    mask: Any


def load(eqn: Any, ins: Sequence[Any]) -> LoadInfo:
    """`get` and `masked_load`."""
    if "args_tree" in eqn.params:
        ref, transforms, mask, other = eqn.params["args_tree"].unflatten(ins)
        return LoadInfo(_view(ref, transforms), mask, other)
    ref, *leaves = ins
    return LoadInfo(_view(ref, tree_util.tree_unflatten(eqn.params["tree"], leaves)), None, None)


def store(eqn: Any, ins: Sequence[Any]) -> StoreInfo:
    """`swap`, `addupdate` and `masked_swap`."""
    if "args_tree" in eqn.params:
        ref, transforms, value, mask = eqn.params["args_tree"].unflatten(ins)
        return StoreInfo(_view(ref, transforms), value, mask)
    ref, value, *leaves = ins
    view = _view(ref, tree_util.tree_unflatten(eqn.params["tree"], leaves))
    return StoreInfo(view, value, None)


class Dma(NamedTuple):
    """``device_id`` is None for a copy within one device."""

    src: RefView
    dst: RefView
    dst_sem: RefView
    src_sem: RefView | None
    device_id: Any
    add: bool


def dma(eqn: Any, ins: Sequence[Any]) -> Dma | Choice:
    """`dma_start` and `dma_wait`. The result is a choice if some ref is one of several."""
    refs, device_id = _copied(eqn, ins)
    views = [None if ref is None else _view_or_choice(ref, steps) for ref, steps in refs]
    return _choices(views, device_id, bool(eqn.params.get("add", False)))


def _copied(eqn: Any, ins: Sequence[Any]) -> tuple[list[tuple[Any, Any]], Any]:
    """The refs of a DMA in the order of `Dma`, each with its transforms, and its device id."""
    *refs, device_id = tree_util.tree_unflatten(eqn.params["tree"], ins)
    if len(refs) == 4:
        return [(ref, ()) for ref in refs], device_id
    return list(zip(refs[::2], refs[1::2], strict=True)), device_id  # before JAX 0.9


def device_id(eqn: Any, ins: Sequence[Any]) -> Any:
    """The id of the device that `dma_start`, `dma_wait` or `semaphore_signal` reaches. None for its
    own device. The refs may have any transforms, even unsupported ones."""
    if eqn.primitive.name == "semaphore_signal":
        *_, device, _ = eqn.params["args_tree"].unflatten(ins)
        return device
    return _copied(eqn, ins)[1]


def device_axes(device_id: Any) -> frozenset[Any] | None:
    """The axes along which a device id gives places. None for an id that numbers devices."""
    if not isinstance(device_id, dict):
        return None
    keys = (key if isinstance(key, tuple) else (key,) for key in device_id)
    return frozenset(name for key in keys for name in key)


def _choices(refs: Sequence[Any], device_id: Any, add: bool) -> Dma | Choice:
    for position, ref in enumerate(refs):
        if isinstance(ref, Choice):
            before, after = refs[:position], refs[position + 1 :]
            cases = (_choices([*before, case, *after], device_id, add) for case in ref.cases)
            return Choice(ref.index, tuple(cases))
    src, dst, dst_sem, src_sem = refs
    return Dma(src, dst, dst_sem, src_sem, device_id, add)


class Semaphore(NamedTuple):
    """An access to a semaphore. ``value`` is the increment, or the count to wait for. None for a
    read."""

    view: RefView
    value: Any
    device_id: Any
    core_index: Any
    decrement: bool


def semaphore(eqn: Any, ins: Sequence[Any]) -> Semaphore:
    """`semaphore_read`, `semaphore_signal` and `semaphore_wait`."""
    parts = eqn.params["args_tree"].unflatten(ins)
    view = _view(parts[0], parts[1])
    match eqn.primitive.name:
        case "semaphore_read":
            return Semaphore(view, None, None, None, False)
        case "semaphore_signal":
            _, _, value, device_id, core_index = parts
            return Semaphore(view, value, device_id, core_index, False)
        case _:
            _, _, value, decrement = parts
            # JAX flattened the bool too, so the leaf for it comes back.
            const = getattr(decrement, "const", decrement)
            return Semaphore(view, value, None, None, bool(const))


class Accumulator(NamedTuple):
    """The accumulator of a TPU's matrix unit, named by a ref or by an address, and the LHS, if any.

    ``view`` is None if there is an ``address``: (unit, address). JAX < 0.12 has addresses.
    """

    view: RefView | None
    address: tuple[int, int] | None
    lhs: Any


def accumulator(eqn: Any, ins: Sequence[Any]) -> Accumulator:
    """`matmul_acc_lhs` and `matmul_pop`."""
    p, has_lhs = eqn.params, eqn.primitive.name == "matmul_acc_lhs"
    if "acc_addr" in p:
        return Accumulator(None, (p["mxu_index"], p["acc_addr"]), ins[0] if has_lhs else None)
    ref, *rest = ins
    lhs = rest.pop(0) if has_lhs else None
    view = _view(ref, tree_util.tree_unflatten(p["acc_transforms_tree"], rest))
    return Accumulator(view, None, lhs)


class ParallelLoop(NamedTuple):
    """SparseCore's `parallel_loop`: its bounds, its carry, and the jaxpr of one round.

    The jaxpr takes ``leading``, the index and the carry. ``consts`` are the values of its
    constvars.
    """

    jaxpr: Any
    bounds: tuple[Any, Any, Any]  # start, end, step
    consts: tuple[Any, ...]
    leading: tuple[Any, ...]
    carry: tuple[Any, ...]


def parallel_loop(eqn: Any, ins: Sequence[Any]) -> ParallelLoop:
    """`parallel_loop`. If the jaxpr has no constvars (JAX >= 0.12), the values that it closes over
    are its leading inputs."""
    start, end, step, closed_over, carry = eqn.params["tree"].unflatten(ins)
    jaxpr, closed_over = eqn.params["jaxpr"], tuple(closed_over)
    consts, leading = (closed_over, ()) if jaxpr.constvars else ((), closed_over)
    return ParallelLoop(jaxpr, (start, end, step), consts, leading, tuple(carry))


class SparseAccess(NamedTuple):
    """``indices``: one array per dimension of the view, or none. ``value``: the stored value."""

    view: RefView
    indices: tuple[Any, ...]
    value: Any
    mask: Any


def sparse_access(eqn: Any, ins: Sequence[Any]) -> SparseAccess:
    """SparseCore's `load`, `swap`, `gather` and `scatter`."""
    tree, name = eqn.params["tree"], eqn.primitive.name
    if name == "gather":
        ref, transforms, indices, mask = tree.unflatten(ins)
        return SparseAccess(_view(ref, transforms), tuple(indices), None, mask)
    if name == "scatter":
        ref, transforms, indices, value, mask = tree.unflatten(ins)
        return SparseAccess(_view(ref, transforms), tuple(indices), value, mask)
    ref, *rest = ins
    value = rest.pop(0) if name == "swap" else None
    mask = rest.pop() if eqn.params["has_mask"] else None
    return SparseAccess(_view(ref, tree.unflatten(rest)), (), value, mask)


# -- discharge: the meaning of a memory primitive as JAX itself gives it ------------------------


class Discharged(NamedTuple):
    """A jaxpr that takes the operands, with refs as whole arrays, and returns the changed refs and
    the results.

    ``changed``: the positions of the changed refs among the operands. Their contents come first.
    """

    jaxpr: Any
    changed: tuple[int, ...]


def discharge(eqn: Any) -> Discharged | None:
    """JAX's own discharge rule of a memory primitive as a pure jaxpr. None if there is no rule.

    Raises:
      UnsupportedTransform: JAX's rule refuses the access.
    """
    if eqn.primitive not in state_discharge._discharge_rules:
        return None
    avals_in, avals_out = (tuple([x.aval for x in xs]) for xs in (eqn.invars, eqn.outvars))
    key = (eqn.primitive, avals_in, avals_out, tuple(eqn.params.items()), eqn.ctx)
    try:
        hash(key)
    except TypeError:
        return _discharge(*key)
    return _remembered_discharge(*key)


def _discharge(
    primitive: Any, avals_in: Any, avals_out: Any, params: Any, context: Any
) -> Discharged:
    rule = state_discharge._discharge_rules[primitive]
    changed: list[int] = []

    def pure(*args):
        if _CONTEXT is not None:
            is_ref = [isinstance(a, state_types.AbstractRef) for a in avals_in]
            new, outs = rule(
                _CONTEXT(avals_in, avals_out, is_ref, True), *args, **dict(params)
            )
        else:
            new, outs = rule(avals_in, avals_out, *args, **dict(params))
        changed[:] = [i for i, value in enumerate(new) if value is not None]
        return [new[i] for i in changed], outs

    arrays = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=getattr(a, "weak_type", False))
        for a in (getattr(aval, "inner_aval", aval) for aval in avals_in)
    ]
    # Use the settings under which the user's code was traced, such as type promotion.
    try:
        with context.manager:
            jaxpr = jax.make_jaxpr(pure)(*arrays)
    except Exception as error:
        reason = f"JAX's own rule raises {type(error).__name__}: {error}"
        raise UnsupportedTransform(reason) from error
    return Discharged(jaxpr, tuple(changed))


# JAX takes milliseconds to trace each one, so they are kept.
_remembered_discharge = util.cache()(_discharge)

_CONTEXT = getattr(state_discharge, "DischargeContext", None)
