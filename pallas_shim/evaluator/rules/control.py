"""Control flow: scan, while, cond become regions that execute.py runs."""

from __future__ import annotations

from pallas_shim import jax_compat
from pallas_shim.evaluator.rules.registry import lowering_rule


@lowering_rule("scan")
def _scan(lowering, eqn, ins):
    scan = jax_compat.scan(eqn)
    consts, operands = ins[: scan.num_consts], ins[scan.num_consts :]
    inner, _ = jax_compat.open_jaxpr(scan.jaxpr)
    params = [lowering.type(v.aval) for v in inner.invars[scan.num_consts :]]
    body = lowering.region(params, lambda args: lowering.inline(scan.jaxpr, [*consts, *args]))
    return lowering.structured(
        "scan",
        operands,
        [lowering.type(v.aval) for v in eqn.outvars],
        [body],
        {"length": scan.length, "reverse": scan.reverse, "num_carry": scan.num_carry},
    )


@lowering_rule("while")
def _while(lowering, eqn, ins):
    loop = jax_compat.while_loop(eqn)
    n, m = loop.num_condition_consts, loop.num_body_consts
    condition_consts, body_consts, carry = ins[:n], ins[n : n + m], ins[n + m :]
    types = [lowering.type(v.aval) for v in eqn.outvars]
    condition = lowering.region(
        types, lambda args: lowering.inline(loop.condition, [*condition_consts, *args])
    )
    body = lowering.region(types, lambda args: lowering.inline(loop.body, [*body_consts, *args]))
    return lowering.structured("while", carry, types, [condition, body], {})


@lowering_rule("cond")
def _cond(lowering, eqn, ins):
    index, *operands = ins
    branches = jax_compat.branches(eqn)
    if index.const is not None:
        taken = min(max(int(index.const), 0), len(branches) - 1)
        return lowering.inline(branches[taken], operands)
    regions = [
        lowering.region((), lambda _, branch=branch: lowering.inline(branch, operands))
        for branch in branches
    ]
    types = [lowering.type(v.aval) for v in eqn.outvars]
    return lowering.structured("switch", [index], types, regions, {})
