"""Inlines primitives that call a jaxpr, or are defined by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.program import Value
from pallas_shim.evaluator.registry import Unsupported, lowering_rule
from pallas_shim.jax_compat import definitions, jaxprs


@lowering_rule(*jax_compat.CALL_PRIMITIVES)
def _call(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    called = jax_compat.called_jaxpr(eqn)
    if jaxprs.is_own(called):
        return lowering.inline_definition(called, ins)
    return lowering.inline(called, ins)


@lowering_rule("call_hi_primitive", "einshape_lo", "scaled_dot")
def _defined(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    return lowering.inline_definition(definitions.definition(eqn), ins)


@lowering_rule("fusible")
def _fusible(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    """A function that Pallas may fuse with its neighbours. What it has captured comes first."""
    count = eqn.params["num_consts"]
    return lowering.inline(eqn.params["jaxpr"], ins[count:], ins[:count])


@lowering_rule("custom_fusion")
def _custom_fusion(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    """A function with another for kernels, if the user gave one. What each captured comes first."""
    count, in_kernel = eqn.params["num_consts"], eqn.params["pallas_num_consts"]
    consts, others = ins[:count], ins[count : count + in_kernel]
    args, jaxpr = ins[count + in_kernel :], eqn.params["pallas_jaxpr"]
    if jaxpr is not None and lowering.kernels:
        return lowering.inline(jaxpr, args, others)
    return lowering.inline(eqn.params["jaxpr"], args, consts)


@lowering_rule("platform_index")
def _platform_index(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    """The index of the group that has the platform that JAX compiles for. The group None stands
    for any platform."""
    platforms = eqn.params["platforms"]
    for index, group in enumerate(platforms):
        if group is None or "cpu" in group:
            return [lowering.const(np.int32(index))]
    raise Unsupported("platform_index", f"no code for a CPU, only for {platforms}")


@lowering_rule("dce_sink")
def _nothing(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    return []
