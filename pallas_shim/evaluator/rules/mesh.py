"""Kernels on the cores of a mesh, and the names of its axes inside a kernel.

The cores of a mesh run one after the other, each with its own scratch memory. The hardware may run
them in this order, too, if none waits for another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator import grid, refs
from pallas_shim.evaluator.analysis import alias
from pallas_shim.evaluator.program import RefType, Value
from pallas_shim.evaluator.registry import Unsupported, lowering_rule

# Scratch memory in other spaces may belong to several cores.
_CORES_OWN = ("any", "vmem", "smem", "semaphore", "semaphore_mem")


@lowering_rule("core_map")
def _core_map(lowering, eqn, ins):
    function = jax_compat.core_map(eqn)
    if any(not isinstance(v.type, RefType) and v.type.shape for v in ins):
        raise Unsupported("core_map", "its function captures arrays, which JAX refuses")
    require_no_waiting("core_map", [function])
    opened, _ = jax_compat.open_jaxpr(function.jaxpr)
    scratch = [lowering.type(v.aval) for v in opened.invars]

    def body():
        lowering.inline(function.jaxpr, _scratch(lowering, "core_map", function, scratch), ins)

    _on_cores(lowering, jax_compat.kernel_name(eqn), function, body)
    return []


@lowering_rule("mpmd_map")
def _mpmd_map(lowering, eqn, ins):
    call = jax_compat.mpmd_map(eqn)
    if call.external_meshes:
        raise Unsupported("mpmd_map", "memory of a mesh that runs another kernel")
    require_no_waiting("mpmd_map", call.functions)
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
        operands[source[out]] if out in source else refs.allocate(lowering, type)
        for out, type in enumerate(types[num_inputs:num_operands])
    ]
    with lowering.block() as cores:
        for function in call.functions:

            def body(function=function):
                scratch = _scratch(lowering, "mpmd_map", function, types[num_operands:])
                lowering.inline(function.jaxpr, [*operands, *outs, *scratch])

            _on_cores(lowering, call.name, function, body)
    written = alias.written(cores, operands)
    for ref, value in zip(operands, ins, strict=True):
        if ref is not value:
            grid.define_operand(lowering, ref, value, None, ref in written)
    lowering.body.extend(cores)
    return [
        refs.load(lowering, ref, (), (), type.contents)
        for ref, type in zip(outs, types[num_inputs:num_operands], strict=True)
    ]


def require_no_waiting(primitive: str, functions: Sequence[jax_compat.CoreFunction]) -> None:
    """Raises Unsupported if there are several cores, and one may wait for another."""
    cores = sum(math.prod(f.axes.values()) for f in functions)
    waits = next((f.waits for f in functions if f.waits is not None), None)
    if cores > 1 and waits is not None:
        raise Unsupported(
            primitive, f"its {cores} cores would run one after the other, but have a {waits}"
        )


def _scratch(
    lowering, primitive: str, function: jax_compat.CoreFunction, types: Sequence[RefType]
) -> list[Value]:
    """Scratch memory of the core that is being lowered."""
    shared = [t.space for t in types if t.space not in _CORES_OWN]
    if shared and math.prod(function.axes.values()) > 1:
        raise Unsupported(primitive, f"several cores with scratch memory in {shared[0]}")
    return [refs.allocate(lowering, type) for type in types]


def _on_cores(lowering, name: str, function: jax_compat.CoreFunction, body) -> None:
    sizes = [lowering.const(np.int32(size)) for size in function.axes.values()]
    cells = grid.lower_cells(
        lowering, name, sizes, tuple(function.axes), range(len(sizes)), lambda indices: body(),
        function.checked, function.for_device,
    )
    lowering.body.extend(cells)


# -- names of axes ----------------------------------------------------------------------------


def _axis(lowering, primitive: str, name: Any) -> tuple[Value, Value]:
    """The index and size of the innermost kernel axis of that name, or of a lone device's."""
    for kernel in reversed(lowering.kernels):
        if name in kernel.names:
            return kernel.names[name]
    if lowering.axes.get(name) == 1:
        return lowering.const(np.int32(0)), lowering.const(np.int32(1))
    raise Unsupported(
        primitive, f"the axis {name!r} is of devices, not of the kernel's grid or its cores"
    )


def is_alone(lowering, primitive: str, name: Any) -> bool:
    """Whether there is nothing else along the axis of that name."""
    size = _axis(lowering, primitive, name)[1]
    return size.const is not None and int(size.const) == 1


@lowering_rule("axis_index")
def _axis_index(lowering, eqn, ins):
    return [_axis(lowering, "axis_index", eqn.params["axis_name"])[0]]


@lowering_rule(
    "psum",
    "psum_invariant",
    "pmax",
    "pmin",
    "pbroadcast",
    "all_gather",
    "all_gather_invariant",
    "all_to_all",
    "reduce_scatter",
)
def _alone(lowering, eqn, ins):
    """A collective among the cores of a mesh that has one: it may give its operands a new axis."""
    primitive = eqn.primitive.name
    axes = eqn.params["axes"] if "axes" in eqn.params else eqn.params["axis_name"]
    for name in axes if isinstance(axes, tuple) else (axes,):
        if not is_alone(lowering, primitive, name):
            raise Unsupported(primitive, f"between the cells of the axis {name!r}")
    types = [lowering.type(v.aval) for v in eqn.outvars]
    return [
        lowering.apply("reshape", [v], [t], {"new_sizes": t.shape, "dimensions": None})[0]
        if v.type != t
        else v
        for v, t in zip(ins, types, strict=True)
    ]
