"""Pallas core: pallas_call itself, program ids, hints."""

from __future__ import annotations

from pallas_shim import jax_compat
from pallas_shim.evaluator import grid
from pallas_shim.evaluator.rules.registry import Unsupported, lowering_rule


@lowering_rule("pallas_call")
def _pallas_call(lowering, eqn, ins):
    try:
        call = jax_compat.pallas_call(eqn)
    except jax_compat.UnsupportedCall as error:
        raise Unsupported("pallas_call", str(error)) from error
    return grid.lower_call(lowering, call, ins)


def _axis(lowering, eqn):
    axis = eqn.params["axis"]
    if not lowering.grid:
        raise Unsupported(eqn.primitive.name, "used outside a kernel")
    indices, sizes = lowering.grid[-1]
    if axis >= len(indices):
        raise Unsupported(
            eqn.primitive.name, f"axis {axis} of a grid of {len(indices)} dimensions"
        )
    return indices[axis], sizes[axis]


@lowering_rule("program_id")
def _program_id(lowering, eqn, ins):
    return [_axis(lowering, eqn)[0]]


@lowering_rule("num_programs")
def _num_programs(lowering, eqn, ins):
    return [_axis(lowering, eqn)[1]]


@lowering_rule("multiple_of", "max_contiguous", "assume_for_verification")
def _hint(lowering, eqn, ins):
    return ins[:1]


@lowering_rule("delay", "debug_barrier", "debug_barrier_p")
def _nothing(lowering, eqn, ins):
    return []
