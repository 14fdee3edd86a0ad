"""Kernels on the cores of a mesh, and the names of its axes inside a kernel.

Cores that may wait for one another run as programs of a machine. Other cores run one after the
other, each with its own scratch memory. The hardware may run them in this order, too.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator import grid, grid_buffers, refs, watching
from pallas_shim.evaluator.analysis import alias
from pallas_shim.evaluator.checks.cores import CoreChecks, CoreOutputs
from pallas_shim.evaluator.checks.lowering import Aspect
from pallas_shim.evaluator.lower import KernelScope, Lowering
from pallas_shim.evaluator.machine import programs
from pallas_shim.evaluator.machine.shards import all_coordinates
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
        own = _scratch(lowering, "core_map", function, scratch)
        lowering.inline(function.jaxpr, own, ins)
        _left(lowering, own)

    _on_cores(lowering, eqn, jax_compat.kernel_name(eqn), function, ins, body)
    return []


@lowering_rule("mpmd_map")
def _mpmd_map(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    call = jax_compat.mpmd_map(eqn)
    if any(size > 1 for size in call.other_axes.values()):
        raise Unsupported("mpmd_map", "memory of several cores that run another kernel")
    outer, lowering.axes = lowering.axes, {**lowering.axes, **call.other_axes}
    try:
        return _emit_mpmd(lowering, eqn, call, ins)
    finally:
        lowering.axes = outer


def _emit_mpmd(
    lowering: Lowering, eqn: Any, call: jax_compat.MpmdMap, ins: Sequence[Value]
) -> Sequence[Value]:
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
    own = list(map(ref_type, types[num_operands:]))
    for ref, name in zip([*operands, *outs], jax_compat.argument_names(opened), strict=False):
        lowering.names.setdefault(ref, name)
    several = len(call.functions) > 1
    made = None
    if lowering.checker is not None:
        new = [ref for out, ref in enumerate(outs) if out not in source]
        made = CoreOutputs(lowering.checker, call.name, jax_compat.kernel_source(eqn), new)
    shadows = {} if made is None else made.shadows
    with lowering.block() as cores:
        if several and any(f.waits is not None for f in call.functions):
            _on_cores_of_several_kinds(lowering, eqn, call, [*operands, *outs], own, shadows)
        for function in () if cores else call.functions:

            def body(function: jax_compat.CoreFunction = function) -> None:
                scratch = _scratch(lowering, "mpmd_map", function, own, not several)
                lowering.inline(function.jaxpr, [*operands, *outs, *scratch])
                _left(lowering, scratch)

            _on_cores(lowering, eqn, call.name, function, [*operands, *outs], body, shadows)
    written = alias.written(cores, operands)
    for ref, value in zip(operands, ins, strict=True):
        if ref is not value:
            grid_buffers.define_operand(lowering, ref, value, None, ref in written)
    if made is not None:
        made.enter()
    lowering.body.extend(cores)
    results = [
        refs.load(lowering, ref, (), (), ref_type(type).contents)
        for ref, type in zip(outs, types[num_inputs:num_operands], strict=True)
    ]
    return results if made is None else list(map(made.result, outs, results))


def _left(lowering: Lowering, scratch: Sequence[Value]) -> None:
    """Emits the checks of what a core leaves on its semaphores."""
    if lowering.checker is not None:
        lowering.checker.left(scratch)


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
    if lowering.checker is not None:
        opened, _ = jax_compat.open_jaxpr(function.jaxpr)
        names = jax_compat.argument_names(opened)
        for ref, name in zip(made, names[len(opened.invars) - len(types) :], strict=False):
            lowering.names.setdefault(ref, name)
        for ref, type in zip(made, types, strict=True):
            # Memory that cores share may have been written by another.
            if type.space.partition("@")[0] in _CORES_OWN:
                lowering.checker.allocated(ref, lowering.names.get(ref))
    return made


def _on_cores(
    lowering: Lowering,
    eqn: Any,
    name: str,
    function: jax_compat.CoreFunction,
    operands: Sequence[Value],
    body: Callable[[], None],
    shadows: Mapping[Value, Aspect] = MappingProxyType({}),
) -> None:
    """``operands`` is the memory that all cores reach, and ``shadows`` the shadows of some."""
    where = jax_compat.kernel_source(eqn) or ""
    sizes = [lowering.const(np.int32(size)) for size in function.axes.values()]
    checks = None
    if lowering.checker is not None:
        memory = [ref for ref in operands if isinstance(ref.type, RefType)]
        counts = tuple(function.axes.values())
        checks = CoreChecks(
            lowering.checker, name, where, memory, counts, function.waits_for_others, shadows
        )

    watch = lowering.watch
    if watch is not None:
        seen = [ref for ref in operands if isinstance(ref.type, RefType)]
        watched = _watched(lowering, name, where, function, seen)

    def core(indices: Sequence[Value]) -> None:
        grid.record(lowering, indices, function)
        with contextlib.nullcontext() if checks is None else checks.core(indices):
            if watch is not None:
                alone = function.waits_for_others  # then each core is a program of one cell
                at, of = (() if alone else indices), (() if alone else sizes)
                watching.emit_cell(lowering, watch, watched, at, of, seen, (), ())
            body()
            if watch is not None:
                watching.emit_cell_end(lowering, watch)

    shared = any(
        isinstance(ref.type, RefType) and ref.type.space.startswith("semaphore") for ref in operands
    )
    talks = shared or meshes.talks(function.jaxpr)
    with lowering.machine.within(name, where, talks):
        programs.emit_entry(lowering)
        cells = grid.lower_cells(
            lowering, name, sizes, tuple(function.axes), range(len(sizes)), core,
            function.checked, function.for_device, () if function.waits_for_others else None,
        )  # fmt: skip
        if checks is not None:
            cells = checks.finish(cells)
        lowering.body.extend(cells)
        programs.emit_exit(lowering, ())
        if watch is not None:
            watching.emit_left(lowering, watch, watched, ())


def _watched(
    lowering: Lowering,
    name: str,
    where: str,
    function: jax_compat.CoreFunction,
    memory: Sequence[Value],
) -> watching.Kernel:
    """A kernel of cores, as a watch is told of it: one without blocks."""
    call = jax_compat.PallasCall(
        name=name, source=where or None, jaxpr=function.jaxpr, grid=tuple(function.axes.values()),
        vmapped_dims=(), axis_names=tuple(function.axes), blocks=(), num_prefetch=0, num_inputs=0,
        num_outputs=0, aliases=(), synchronised_aliases=False, keeps_scalars=True,
        for_device=function.for_device, cores=function, checked=function.checked, on_gpu=False,
        parallel=(), order=None,
    )  # fmt: skip
    names = [lowering.names.get(ref, f"operand {n}") for n, ref in enumerate(memory)]
    return watching.Kernel(call, names, (), [ref.ref.space for ref in memory])


def _on_cores_of_several_kinds(
    lowering: Lowering,
    eqn: Any,
    call: jax_compat.MpmdMap,
    operands: Sequence[Value],
    types: Sequence[RefType],
    shadows: Mapping[Value, Aspect],
) -> None:
    """Runs all cores as programs of one level, which has an axis of their kinds. ``shadows``: of
    some of the memory that all reach, where it is checked."""
    machine, functions = lowering.machine, call.functions
    if any(f.checked is not None and f.checked.recorder is not None for f in functions):
        raise Unsupported("mpmd_map", "a grid_point_recorder of cores of several kinds")
    sizes = {programs.KIND: len(functions)}
    for function in functions:
        sizes.update(function.axes)
    names = [_core_name(functions[place[programs.KIND]], place) for place in all_coordinates(sizes)]
    where = jax_compat.kernel_source(eqn) or ""
    opened, _ = jax_compat.open_jaxpr(functions[0].jaxpr)
    arguments = jax_compat.argument_names(opened)[len(operands) :]
    kinds = [programs.Owner(n, frozenset(f.axes)) for n, f in enumerate(functions)]
    checks = None
    if lowering.checker is not None:
        memory = [ref for ref in operands if isinstance(ref.type, RefType)]
        checks = CoreChecks(lowering.checker, call.name, where, memory, (), True, shadows)

    def branch(
        kind: int, scratch: Sequence[Value], shared: dict[Any, Value], _: Sequence[Value]
    ) -> Sequence[Value]:
        function, level = functions[kind], machine.levels[-1]
        counts = [lowering.const(np.int32(size)) for size in function.axes.values()]
        indices = [level.indices[axis] for axis in function.axes]
        named = dict(zip(function.axes, zip(indices, counts, strict=True), strict=True))
        lowering.kernels.append(
            KernelScope(indices, counts, named, shared, function.checked, function.for_device)
        )
        machine.core = kinds[kind]
        lowering.inline(function.jaxpr, [*operands, *scratch])
        machine.core = None
        lowering.kernels.pop()
        return ()

    def core(_: Sequence[Value]) -> Sequence[Value]:
        index = machine.levels[-1].indices[programs.KIND]
        shared: dict[Any, Value] = {}
        with machine.within(call.name, where, True):
            scratch = [_scratch_of_kinds(lowering, call, kinds, *each)
                       for each in zip(types, call.owners, strict=True)]  # fmt: skip
            lowering.names.update(zip(scratch, arguments, strict=False))
            with lowering.block() as body, _checked(checks, scratch):
                regions = [
                    lowering.region((), functools.partial(branch, kind, scratch, shared))
                    for kind in range(len(functions))
                ]
                lowering.structured("switch", [index], [], regions, {})
            if checks is not None:
                body = checks.finish(body)
            for ref in shared.values():
                grid_buffers.allocate(lowering, ref, functions[0].checked)
            programs.emit_entry(lowering)
            lowering.body.extend(body)
            semaphores = [ref for ref in scratch if ref.ref.space.startswith("semaphore")]
            programs.emit_exit(lowering, semaphores)
        return ()

    programs.emit_programs(lowering, "core", sizes, (), (), (), (), (), core, names)


@contextlib.contextmanager
def _checked(checks: CoreChecks | None, scratch: Sequence[Value]) -> Iterator[None]:
    """A context in which the function of a core of some kind is lowered, with its memory."""
    if checks is None:
        yield
        return
    checker = checks.checker
    with checks.core(()):
        own = [ref for ref in scratch if ref.ref.space.partition("@")[0] in _CORES_OWN]
        for ref in own:
            checker.allocated(ref, checker.lowering.names.get(ref))
        yield
        checker.left(own)


def _core_name(function: jax_compat.CoreFunction, place: dict[Any, int]) -> str | None:
    """The name in messages of the core at a place. None if there is no such core."""
    axes = function.axes.keys()
    if any(index for axis, index in place.items() if axis not in (*axes, programs.KIND)):
        return None
    at = ", ".join(f"{axis}={place[axis]}" for axis in axes)
    return f"{function.kind} ({at})"


def _scratch_of_kinds(
    lowering: Lowering,
    call: jax_compat.MpmdMap,
    kinds: Sequence[programs.Owner],
    type: RefType,
    owner: int | None,
) -> Value:
    """Scratch memory of cores of several kinds. Shared memory of a SparseCore belongs to its cores
    of all kinds."""
    space, _, _ = type.space.partition("@")
    ref = refs.allocate(lowering, type)
    if space == "vmem_shared":
        first = next(iter(call.functions[0].axes))
        axes = [a for a in lowering.machine.levels[-1].sizes if a != first]
        return remote.of_first(lowering, ref, axes)
    if space not in _CORES_OWN or owner is None:
        raise Unsupported("mpmd_map", f"cores of several kinds with scratch memory in {type.space}")
    lowering.machine.owners[ref] = kinds[owner]
    return ref


@lowering_rule("axis_index")
def _axis_index(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    return [axis(lowering, "axis_index", eqn.params["axis_name"])[0]]
