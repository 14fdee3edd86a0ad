"""Primitives that call a jaxpr: inlined."""

from __future__ import annotations

from pallas_shim import jax_compat
from pallas_shim.evaluator.rules.registry import lowering_rule


@lowering_rule(*jax_compat.CALL_PRIMITIVES)
def _call(lowering, eqn, ins):
    return lowering.inline(jax_compat.called_jaxpr(eqn), ins)


@lowering_rule("dce_sink")
def _nothing(lowering, eqn, ins):
    return []
