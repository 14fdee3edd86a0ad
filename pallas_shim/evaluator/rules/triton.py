"""Pallas Triton: atomic operations. They are plain updates here, because cells run in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pallas_shim.evaluator import refs
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.program import Value
from pallas_shim.evaluator.registry import Unsupported, lowering_rule
from pallas_shim.evaluator.rules import masked
from pallas_shim.evaluator.rules.state import by_discharge, inside
from pallas_shim.jax_compat import state

_COMBINED = ("add", "max", "min", "and", "or", "xor")


@lowering_rule("atomic_rmw")
def _read_modify_write(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    access = state.store(eqn, ins)
    ref = access.view.ref
    try:
        path, leaves = refs.path_of(access.view)
    except refs.NotBasic:
        reason = "at array indices: where they meet, JAX's interpreter differs from a GPU"
        raise Unsupported("atomic_rmw", reason) from None
    kind = eqn.params["atomic_type"].value
    if kind not in (*_COMBINED, "xchg"):
        raise Unsupported("atomic_rmw", f"the operation {kind}")

    def combined(before: Value) -> Value:
        if kind == "xchg":
            return access.value
        (new,) = lowering.apply(kind, [before, access.value], [before.type], {})
        return new

    if access.mask is not None and not inside(access):
        elements = masked.update_slice(lowering, access, combined)
        if elements is None:
            raise Unsupported("atomic_rmw", "masked, at a place that may be outside its ref")
        return [_checked(lowering, access.view, elements, access.mask)]
    type = access.value.type
    before = refs.load(lowering, ref, path, leaves, type)
    new = combined(before)
    if access.mask is not None:
        (new,) = lowering.apply("select_n", [access.mask, before, new], [type], {})
    refs.store(lowering, ref, path, leaves, new)
    return [_checked(lowering, access.view, before, access.mask)]


@lowering_rule("atomic_cas")
def _compare_and_swap(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    before = by_discharge(lowering, eqn, ins)
    return [_checked(lowering, state.RefView(ins[0], ()), value, None) for value in before]


def _checked(
    lowering: Lowering, view: state.RefView, before: Value, mask: Value | None
) -> Value:
    """Emits the checks of an atomic operation, and returns the elements before it."""
    checker = lowering.checker
    if checker is None:
        return before
    what = "updates atomically"
    before = checker.read(view, before, mask, what, atomic=True)
    checker.write(view, mask, what, atomic=True)
    return before


@lowering_rule("debug_barrier", "debug_barrier_p")
def _nothing(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    return []
