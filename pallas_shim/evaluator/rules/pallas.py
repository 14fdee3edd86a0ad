"""Pallas core: pallas_call itself, program ids, hints."""

from __future__ import annotations

from pallas_shim import jax_compat
from pallas_shim.evaluator import grid
from pallas_shim.evaluator.registry import Unsupported, lowering_rule
from pallas_shim.evaluator.rules.mesh import require_no_waiting


@lowering_rule("pallas_call")
def _pallas_call(lowering, eqn, ins):
    call = jax_compat.pallas_call(eqn)
    if call.cores is not None:
        require_no_waiting("pallas_call", [call.cores])
    return grid.lower_call(lowering, call, ins)


def _axis(lowering, eqn):
    axis = eqn.params["axis"]
    if not lowering.kernels:
        raise Unsupported(eqn.primitive.name, "used outside a kernel")
    indices, sizes, *_ = lowering.kernels[-1]
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


@lowering_rule("delay", "trace_value", "pretend_for_verification")
def _nothing(lowering, eqn, ins):
    return []


@lowering_rule(
    "add_dependency", "with_memory_space_constraint", "xla_metadata_value", "pin", "unpin"
)
def _same(lowering, eqn, ins):
    """pltpu.touch has the first one's name, and no result."""
    return ins[: len(eqn.outvars)]


@lowering_rule("check")
def _check(lowering, eqn, ins):
    if not eqn.params["debug"]:
        raise Unsupported("check", "JAX needs checkify around it, which would have replaced it")
    return []


@lowering_rule("get_barrier_semaphore")
def _barrier_semaphore(lowering, eqn, ins):
    type = lowering.type(eqn.outvars[0].aval)
    return [lowering.shared("barrier", type, "get_barrier_semaphore")]


@lowering_rule("get_global")
def _global(lowering, eqn, ins):
    type = lowering.type(eqn.outvars[0].aval)
    if type.space != "semaphore":
        raise Unsupported("get_global", f"memory in {type.space} that outlives the call")
    # Each equation has its own semaphore, however often the kernel's code is repeated.
    return [lowering.shared(id(eqn), type, "get_global")]
