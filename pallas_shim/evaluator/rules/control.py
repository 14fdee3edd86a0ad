"""Control flow: makes regions, which execute.py runs, of scan, while and cond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.program import ArrayType, Region, Value, branch_taken
from pallas_shim.evaluator.registry import lowering_rule


@lowering_rule("scan")
def _scan(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
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
def _while(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    loop = jax_compat.while_loop(eqn)
    n, m = loop.num_condition_consts, loop.num_body_consts
    condition_consts, body_consts, carry = ins[:n], ins[n : n + m], ins[n + m :]
    types = [lowering.type(v.aval) for v in eqn.outvars]
    predicate = jax_compat.open_jaxpr(loop.condition)[0].outvars[0].aval
    batch = tuple(range(predicate.ndim))

    def going(args: Sequence[Value]) -> Sequence[Value]:
        return lowering.inline(loop.condition, [*condition_consts, *args])

    def any_going(args: Sequence[Value]) -> Sequence[Value]:
        if not batch:
            return going(args)
        any_type = ArrayType((), np.dtype(np.bool_))
        return lowering.apply("reduce_or", going(args), [any_type], {"axes": batch})

    def step(args: Sequence[Value]) -> Sequence[Value]:
        new = lowering.inline(loop.body, [*body_consts, *args])
        if not batch:
            return new
        # vmap made a batch of loops. Loops that are done keep their values.
        (on,) = going(args)
        return [_select(lowering, on, pair) for pair in zip(args, new, strict=True)]

    condition, body = lowering.region(types, any_going), lowering.region(types, step)
    return lowering.structured("while", carry, types, [condition, body], {})


def _select(lowering: Lowering, which: Value, cases: Sequence[Value]) -> Value:
    """The case that ``which`` selects. Its dimensions are the leading dimensions of the cases."""
    type = cases[0].type
    words = ArrayType(type.shape, type.dtype)
    if type.key_ndim:
        cases = [lowering.apply("random_unwrap", [v], [words], {})[0] for v in cases]
    where = ArrayType(type.shape, which.type.dtype)
    params = {"shape": type.shape, "broadcast_dimensions": tuple(range(len(which.type.shape)))}
    (which,) = lowering.apply("broadcast_in_dim", [which], [where], params)
    (result,) = lowering.apply("select_n", [which, *cases], [words], {})
    return lowering.apply("random_wrap", [result], [type], {})[0] if type.key_ndim else result


@lowering_rule("select_n")
def _select_n(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    which, *cases = ins
    if cases[0].type.key_ndim:
        return [_select(lowering, which, cases)]
    return lowering.apply("select_n", ins, [cases[0].type], eqn.params)


@lowering_rule("cond")
def _cond(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    index, *operands = ins
    branches = jax_compat.branches(eqn)
    if index.const is not None:
        taken = branch_taken(int(index.const), len(branches))
        return lowering.inline(branches[taken], operands)

    def region(branch: Any) -> Region:
        return lowering.region((), lambda _: lowering.inline(branch, operands))

    regions = list(map(region, branches))
    types = [lowering.type(v.aval) for v in eqn.outvars]
    return lowering.structured("switch", [index], types, regions, {})
