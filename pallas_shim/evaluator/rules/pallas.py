"""Pallas core: pallas_call, program ids, hints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pallas_shim import jax_compat
from pallas_shim.evaluator import grid
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.program import Value, ref_type
from pallas_shim.evaluator.registry import Unsupported, lowering_rule
from pallas_shim.jax_compat import meshes


@lowering_rule("pallas_call")
def _pallas_call(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    call = jax_compat.pallas_call(eqn, lowering.tpu_cores)
    # A kernel may wait for a copy that a kernel before it has started, on another device.
    given = jax_compat.open_jaxpr(call.jaxpr)[0].invars
    given = given[: call.num_prefetch + call.num_inputs + call.num_outputs]
    shared = meshes.shares_semaphores([var.aval for var in given])
    talks = shared or meshes.talks(call.jaxpr)
    unused: list[int] = []
    if lowering.checker is not None:
        used = map(lowering.checker.is_used, eqn.outvars)
        unused = [position for position, is_used in enumerate(used) if not is_used]
    with lowering.machine.within(call.name, call.source or "", talks):
        return grid.lower_call(lowering, call, ins, unused=unused)


def _axis(lowering: Lowering, eqn: Any) -> tuple[Value, Value]:
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
def _program_id(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    return [_axis(lowering, eqn)[0]]


@lowering_rule("num_programs")
def _num_programs(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    return [_axis(lowering, eqn)[1]]


@lowering_rule("multiple_of", "max_contiguous", "assume_for_verification")
def _hint(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    return ins[:1]


@lowering_rule("delay", "trace_value", "pretend_for_verification")
def _nothing(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    return []


@lowering_rule(
    "add_dependency", "with_memory_space_constraint", "xla_metadata_value", "pin", "unpin"
)
def _same(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    """Returns the operands. pltpu.touch has the first primitive's name, and no result."""
    return ins[: len(eqn.outvars)]


@lowering_rule("check")
def _check(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    if not eqn.params["debug"]:
        raise Unsupported("check", "JAX needs checkify around it, which would have replaced it")
    return []


@lowering_rule("get_barrier_semaphore")
def _barrier_semaphore(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    type = ref_type(lowering.type(eqn.outvars[0].aval))
    ref = lowering.shared("barrier", type, "get_barrier_semaphore")
    lowering.names[ref] = "the barrier semaphore"
    lowering.machine.semaphores.append(ref)
    return [ref]


@lowering_rule("get_global")
def _global(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    type = ref_type(lowering.type(eqn.outvars[0].aval))
    if not type.space.startswith("semaphore"):
        raise Unsupported("get_global", f"memory in {type.space} that outlives the call")
    # Each equation has one semaphore, even if the kernel's code is repeated.
    return [lowering.shared(id(eqn), type, "get_global")]
