"""One normal form of refs' transforms and of the primitives that touch memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import tree_util
from jax._src.state import discharge as state_discharge
from jax._src.state import indexing
from jax._src.state import types as state_types

# -- transforms -----------------------------------------------------------------------------
# Where JAX's form holds an array, ours holds the leaf that the caller gave for it.


class Slice(NamedTuple):
    """``size`` elements from ``start`` in steps of ``stride``. ``start`` may be a leaf, and
    ``size`` too, if the slice is copied by a DMA."""

    start: Any
    size: Any
    stride: int


class Index(NamedTuple):
    """One entry a dimension: an int, a leaf (an integer or integer array), or a Slice."""

    dims: tuple[Any, ...]


class Bitcast(NamedTuple):
    dtype: np.dtype


class Reshape(NamedTuple):
    shape: tuple[int, ...]


class Transpose(NamedTuple):
    permutation: tuple[int, ...]


Step = Index | Bitcast | Reshape | Transpose


class UnsupportedTransform(Exception):
    """A transform of a ref that has no normal form; the message names it."""


class RefView(NamedTuple):
    """A ref and what is done to it before it is read or written, in order."""

    ref: Any
    steps: tuple[Step, ...]


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
        return None  # neither moves nor changes data
    raise UnsupportedTransform(f"the ref transform {name}")


def _dim(index: Any) -> Any:
    if isinstance(index, indexing.Slice):
        return Slice(_known(index.start), _known(index.size), int(index.stride))
    return _known(index)


def _known(index: Any) -> Any:
    return int(index) if isinstance(index, (int, np.integer)) else index


def _view(ref: Any, transforms: Sequence[Any] = ()) -> RefView:
    """Newer JAX hands refs over as TransformedRef, older as a pair."""
    if isinstance(ref, state_types.TransformedRef):
        if isinstance(ref.ref, (tuple, list)):
            raise UnsupportedTransform("a selection among several refs")
        inner = _view(ref.ref)
        return RefView(inner.ref, inner.steps + _steps(ref.transforms) + _steps(transforms))
    return RefView(ref, _steps(transforms))


# -- primitives -----------------------------------------------------------------------------


class Load(NamedTuple):
    view: RefView
    mask: Any
    other: Any


class Store(NamedTuple):
    view: RefView
    value: Any
    mask: Any


def load(eqn: Any, ins: Sequence[Any]) -> Load:
    """`get` and `masked_load`."""
    if "args_tree" in eqn.params:
        ref, transforms, mask, other = eqn.params["args_tree"].unflatten(ins)
        return Load(_view(ref, transforms), mask, other)
    ref, *leaves = ins
    return Load(_view(ref, tree_util.tree_unflatten(eqn.params["tree"], leaves)), None, None)


def store(eqn: Any, ins: Sequence[Any]) -> Store:
    """`swap`, `addupdate` and `masked_swap`."""
    if "args_tree" in eqn.params:
        ref, transforms, value, mask = eqn.params["args_tree"].unflatten(ins)
        return Store(_view(ref, transforms), value, mask)
    ref, value, *leaves = ins
    view = _view(ref, tree_util.tree_unflatten(eqn.params["tree"], leaves))
    return Store(view, value, None)


class Dma(NamedTuple):
    """``device_id`` is None for a copy within one device."""

    src: RefView
    dst: RefView
    dst_sem: RefView
    src_sem: RefView | None
    device_id: Any
    add: bool


def dma(eqn: Any, ins: Sequence[Any]) -> Dma:
    """`dma_start` and `dma_wait`."""
    parts = tree_util.tree_unflatten(eqn.params["tree"], ins)
    if len(parts) == 9:  # refs and their transforms apart, before JAX 0.9
        src, src_t, dst, dst_t, sem, sem_t, src_sem, src_sem_t, device_id = parts
    else:
        (src, dst, sem, src_sem, device_id), src_t, dst_t, sem_t, src_sem_t = parts, (), (), (), ()
    return Dma(
        _view(src, src_t),
        _view(dst, dst_t),
        _view(sem, sem_t),
        None if src_sem is None else _view(src_sem, src_sem_t),
        device_id,
        bool(eqn.params.get("add", False)),
    )


class Semaphore(NamedTuple):
    """``value`` is the increment or the count waited for; None for a read."""

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
            # A bool that was flattened comes back as the leaf that stands for it.
            const = getattr(decrement, "const", decrement)
            return Semaphore(view, value, None, None, bool(const))


# -- discharge: the meaning of a memory primitive as JAX itself gives it ------------------------


class Discharged(NamedTuple):
    """A jaxpr from the operands, refs as whole arrays, to the changed refs and the results.

    ``changed``: positions of the operands whose new contents come first.
    """

    jaxpr: Any
    changed: tuple[int, ...]


def discharge(eqn: Any) -> Discharged | None:
    """JAX's own discharge rule of a memory primitive as a pure jaxpr, or None without one."""
    rule = state_discharge._discharge_rules.get(eqn.primitive)
    if rule is None:
        return None
    avals_in = [atom.aval for atom in eqn.invars]
    avals_out = [var.aval for var in eqn.outvars]
    changed: list[int] = []

    def pure(*args):
        if _CONTEXT is not None:
            is_ref = [isinstance(a, state_types.AbstractRef) for a in avals_in]
            context = _CONTEXT(avals_in, avals_out, is_ref, True)
            new, outs = rule(context, *args, **eqn.params)
        else:
            new, outs = rule(avals_in, avals_out, *args, **eqn.params)
        changed[:] = [i for i, value in enumerate(new) if value is not None]
        return [new[i] for i in changed], outs

    arrays = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=getattr(a, "weak_type", False))
        for a in (getattr(aval, "inner_aval", aval) for aval in avals_in)
    ]
    # With the settings under which the user's code was traced, such as type promotion.
    with eqn.ctx.manager:
        jaxpr = jax.make_jaxpr(pure)(*arrays)
    return Discharged(jaxpr, tuple(changed))


_CONTEXT = getattr(state_discharge, "DischargeContext", None)
