"""Kernels on the cores of a mesh, and the names of its axes inside a kernel.

Cores that may wait for one another run as programs of a machine. Other cores run one after the
other, each with its own scratch memory. The hardware may run them in this order, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator import grid, refs
from pallas_shim.evaluator.analysis import alias
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.machine import programs
from pallas_shim.evaluator.program import RefType, Value, ref_type
from pallas_shim.evaluator.registry import Unsupported, lowering_rule
from pallas_shim.evaluator.rules import remote
from pallas_shim.evaluator.rules.axes import axis
from pallas_shim.jax_compat import meshes

# Scratch memory in these spaces belongs to one core. Elsewhere it may belong to several.
_CORES_OWN = ("any", "vmem", "smem", "semaphore", "semaphore_dma", "semaphore_mem")


@lowering_rule("core_map")
def _core_map(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    function = jax_compat.core_map(eqn)
    if any(not isinstance(v.type, RefType) and v.type.shape for v in ins):
        raise Unsupported("core_map", "its function captures arrays, which JAX refuses")
    opened, _ = jax_compat.open_jaxpr(function.jaxpr)
    scratch = [ref_type(lowering.type(v.aval)) for v in opened.invars]

    def body() -> None:
        lowering.inline(function.jaxpr, _scratch(lowering, "core_map", function, scratch), ins)

    _on_cores(lowering, eqn, jax_compat.kernel_name(eqn), function, body)
    return []


@lowering_rule("mpmd_map")
def _mpmd_map(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    call = jax_compat.mpmd_map(eqn)
    if call.external_meshes:
        raise Unsupported("mpmd_map", "memory of a mesh that runs another kernel")
    if len(call.functions) > 1 and any(f.waits is not None for f in call.functions):
        raise Unsupported("mpmd_map", "cores of several kinds that may wait for one another")
    opened, _ = jax_compat.open_jaxpr(call.functions[0].jaxpr)
    types = [lowering.type(v.aval) for v in opened.invars]
    num_inputs, num_operands = len(ins), len(ins) + call.num_outputs
    source = {out: position for position, out in call.aliases}

    operands = [
        Value(type)
        if isinstance(type, RefType) and not isinstance(value.type, RefType)
        else value  # a ref, or a scalar that the function closes over
        for value, type in zip(ins, types[:num_inputs], strict=True)
    ]
    outs = [
        operands[source[out]] if out in source else refs.allocate(lowering, ref_type(type))
        for out, type in enumerate(types[num_inputs:num_operands])
    ]
    with lowering.block() as cores:
        for function in call.functions:

            def body(function: jax_compat.CoreFunction = function) -> None:
                own = list(map(ref_type, types[num_operands:]))
                scratch = _scratch(
                    lowering, "mpmd_map", function, own, len(call.functions) == 1
                )
                lowering.inline(function.jaxpr, [*operands, *outs, *scratch])

            _on_cores(lowering, eqn, call.name, function, body)
    written = alias.written(cores, operands)
    for ref, value in zip(operands, ins, strict=True):
        if ref is not value:
            grid.define_operand(lowering, ref, value, None, ref in written)
    lowering.body.extend(cores)
    return [
        refs.load(lowering, ref, (), (), ref_type(type).contents)
        for ref, type in zip(outs, types[num_inputs:num_operands], strict=True)
    ]


def _scratch(
    lowering: Lowering,
    primitive: str,
    function: jax_compat.CoreFunction,
    types: Sequence[RefType],
    alone: bool = True,
) -> list[Value]:
    """Scratch memory of the core that is being lowered. ``alone``: there is no other kind of
    core."""
    made = []
    for at, type in enumerate(types):
        space, _, owner = type.space.partition("@")
        if math.prod(function.axes.values()) == 1 or space in _CORES_OWN and not owner:
            made.append(refs.allocate(lowering, type))
        elif space in _CORES_OWN and alone:
            made.append(refs.allocate(lowering, type))
        elif space != "vmem_shared":
            raise Unsupported(primitive, f"several cores with scratch memory in {type.space}")
        elif function.waits_for_others:
            # Memory of a SparseCore belongs to all of its subcores.
            ref = refs.allocate(lowering, type)
            made.append(remote.of_first(lowering, ref, list(function.axes)[1:]))
        else:
            made.append(lowering.shared(("scratch", at), type, primitive))
    return made


def _on_cores(
    lowering: Lowering,
    eqn: Any,
    name: str,
    function: jax_compat.CoreFunction,
    body: Callable[[], None],
) -> None:
    where = jax_compat.kernel_source(eqn) or ""
    sizes = [lowering.const(np.int32(size)) for size in function.axes.values()]
    with lowering.machine.within(name, where, meshes.talks(function.jaxpr)):
        programs.emit_entry(lowering)
        cells = grid.lower_cells(
            lowering, name, sizes, tuple(function.axes), range(len(sizes)), lambda indices: body(),
            function.checked, function.for_device, () if function.waits_for_others else None,
        )  # fmt: skip
        lowering.body.extend(cells)
        programs.emit_exit(lowering, ())


@lowering_rule("axis_index")
def _axis_index(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    return [axis(lowering, "axis_index", eqn.params["axis_name"])[0]]
