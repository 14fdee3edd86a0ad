"""The kernels in a jaxpr: their names, and the options that the user gave the interpreter."""

from __future__ import annotations

import dataclasses
import inspect
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax._src.pallas import hlo_interpreter

from pallas_shim.jax_compat import meshes
from pallas_shim.jax_compat.checked import (
    ASKED_FOR_HERE,
    grid_order,
    num_cores,
    refused_grid,
    replaced_in_interpreter,
    waits_for_copies,
)
from pallas_shim.jax_compat.jaxprs import KERNEL_PRIMITIVES, equations, inner_jaxprs
from pallas_shim.jax_compat.pallas import kernel_name, kernel_source


class KernelInfo(NamedTuple):
    """A kernel's names for the user."""

    name: str
    source: str | None
    grid: str


_kernels: weakref.WeakKeyDictionary[Any, tuple[Any, ...]] = weakref.WeakKeyDictionary()


def kernel_equations(jaxpr: Any) -> tuple[Any, ...]:
    """The equations of a jaxpr, and of those inside it, that call a kernel."""
    found = _kernels.get(jaxpr)
    if found is None:
        found = _kernels[jaxpr] = tuple(_find_kernels(getattr(jaxpr, "jaxpr", jaxpr)))
    return found


def _find_kernels(jaxpr: Any) -> Iterator[Any]:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in KERNEL_PRIMITIVES:
            yield eqn
        else:
            for inner in inner_jaxprs(eqn):
                yield from kernel_equations(inner)


def is_a_kernel(jaxpr: Any) -> bool:
    """Whether a jaxpr is a kernel and nothing else, as it is where one is called outside of jit."""
    eqns = getattr(jaxpr, "jaxpr", jaxpr).eqns
    return len(eqns) == 1 and eqns[0].primitive.name in KERNEL_PRIMITIVES


def nesting(jaxpr: Any) -> int:
    """The depth of nested jaxprs. A deep one takes no more of Python's stack."""
    deepest: dict[int, int] = {}  # by the jaxpr's id, at which depth it was met
    waiting = [(getattr(jaxpr, "jaxpr", jaxpr), 0)]
    while waiting:
        jaxpr, depth = waiting.pop()
        if deepest.get(id(jaxpr), -1) < depth:
            deepest[id(jaxpr)] = depth
            waiting += [(j, depth + 1) for eqn in jaxpr.eqns for j in inner_jaxprs(eqn)]
    return max(deepest.values())


def describe_kernel(eqn: Any) -> KernelInfo:
    """The name, definition and grid of the kernel that an equation calls."""
    if eqn.primitive.name != "pallas_call":
        return KernelInfo(kernel_name(eqn), kernel_source(eqn), "")
    grid = eqn.params["grid_mapping"].grid
    sizes = (str(size) if isinstance(size, int) else "?" for size in grid)
    return KernelInfo(kernel_name(eqn), kernel_source(eqn), f"({', '.join(sizes)})")


def talks(eqn: Any) -> bool:
    """Whether a kernel reaches other devices or cores."""
    return any(map(meshes.talks, _kernel_jaxprs(eqn)))


# -- the debug parameter ------------------------------------------------------------------------


def asks_for_prints(jaxpr: Any) -> bool:
    """Whether a kernel in a jaxpr has ``debug=True``."""
    return any(eqn.params.get("debug") for eqn in kernel_equations(jaxpr))


def debug_text(eqn: Any) -> str | None:
    """The text that JAX prints when it lowers a pallas_call with ``debug=True``.

    With ``interpret=True`` it is the jaxpr that JAX's interpreter would run. Otherwise it is the
    kernel's jaxpr; a TPU's Mosaic module, which JAX also prints, isn't made here. None: nothing is
    to be printed.
    """
    if not eqn.params.get("debug") or eqn.primitive.name != "pallas_call":
        return None
    jaxpr, where = eqn.params["jaxpr"], eqn.params["jaxpr"].debug_info.func_src_info
    interpret = eqn.params["interpret"]
    if interpret is not True:
        return None if interpret else f"\nThe kernel jaxpr for pallas_call {where}:\n{jaxpr}"
    make: Any = hlo_interpreter.kernel_to_hlo_jaxpr
    more = {"backend": None} if "backend" in inspect.signature(make).parameters else {}
    try:
        discharged = make(jaxpr, (), eqn.params["grid_mapping"], **more)[0]
    except Exception as error:  # JAX has no rule for one of its primitives
        return f"\nThe kernel jaxpr for pallas_call {where}, which JAX can't discharge " \
               f"({type(error).__name__}):\n{jaxpr}"  # fmt: skip
    return f"\nJaxpr of {_THE} kernel in pallas_call {where}:\n{discharged}"


# It says so.
_THE = "the the" if jax.__version_info__ < (0, 9, 2) else "the"


# -- the interpret parameter ------------------------------------------------------------------

# What ``logging_mode`` logs of kernels for TPUs. These have no barriers.
_LOGGED = ("SEMAPHORE", "SHARED_MEMORY")
# Fields of InterpretParams that `interpret_options` hands on.
_HONOURED = frozenset(
    {
        "allow_hbm_allocation_in_run_scoped",
        "buffer_bounds",
        "grid_point_recorder",
        "out_of_bounds_reads",
        "skip_floating_point_ops",
        "uninitialized_memory",
    }
)
# Fields that `grid_order` and `waits_for_copies` hand on.
_ORDER = frozenset(
    {"dma_execution_mode", "num_cores_or_threads", "num_cores_per_device", "random_seed"}
)
# Fields that don't change what a correct kernel computes.
_WITHOUT_CONSEQUENCE = frozenset({"vector_clock_size"})
# Fields that `races_wanted` and `raises_on_race` hand on.
_RACES = frozenset({"on_race"})


def waits_for_its_copies(jaxpr: Any) -> bool:
    """Whether the user asks that copies in some kernel happen when they are waited for."""
    return any(
        waits_for_copies(eqn.params.get("interpret", False))
        and any(
            inner.primitive.name == "dma_start"
            for kernel in _kernel_jaxprs(eqn)
            for inner in equations(kernel)
        )
        for eqn in kernel_equations(jaxpr)
    )


def _kernel_jaxprs(eqn: Any) -> tuple[Any, ...]:
    return eqn.params["jaxprs"] if "jaxprs" in eqn.params else (eqn.params["jaxpr"],)


def races_wanted(eqn: Any) -> frozenset[str]:
    """The kinds of findings that ``InterpretParams(detect_races=True)`` asks for and that are
    checked here. JAX finds races between cells only if it has several cores."""
    interpret = eqn.params.get("interpret", False)
    if type(interpret).__name__ != "InterpretParams" or not interpret.detect_races:
        return frozenset()
    if talks(eqn):
        return frozenset({"sync", "races"})
    if eqn.primitive.name != "pallas_call":
        return frozenset()
    return frozenset({"sync", "races"} if num_cores(interpret) > 1 else {"sync"})


def raises_on_race(jaxpr: Any) -> bool:
    """Whether a race in some kernel of a jaxpr is to raise an error, as since JAX 0.12."""
    return any(
        races_wanted(eqn) and getattr(eqn.params["interpret"], "on_race", "warn") == "raise"
        for eqn in kernel_equations(jaxpr)
    )


def unhonoured(eqn: Any) -> str | None:
    """Options of the user's ``interpret=`` that only JAX's own interpreter honours."""
    interpret = eqn.params.get("interpret", False)
    if interpret is None or isinstance(interpret, bool):  # Mosaic GPU's kernels have None
        return None
    name = type(interpret).__name__
    if name == ASKED_FOR_HERE:
        return "its devices talk to one another, as in JAX's TPU interpreter"
    if name != "InterpretParams":
        return f"interpret={name}(...) isn't supported here"
    for field in dataclasses.fields(interpret):
        value = getattr(interpret, field.name)
        known = _HONOURED | _ORDER | _WITHOUT_CONSEQUENCE | _RACES
        if field.name == "detect_races" and races_wanted(eqn):
            continue
        if field.name == "logging_mode" and value is not None:
            logged = [mode.name for mode in type(value) if mode in value and mode.name in _LOGGED]
            if logged:
                return f"interpret=InterpretParams(logging_mode={value!r}) logs what " \
                       "objects of JAX's own interpreter do, which aren't there here"  # fmt: skip
            continue
        if field.name not in known and value != field.default:
            return f"interpret=InterpretParams({field.name}={value!r}) isn't honoured here"
    size = interpret.vector_clock_size
    if size is not None and size <= num_cores(interpret):
        return f"InterpretParams refuses it: vector_clock_size={size} is too small"
    mapping = eqn.params.get("grid_mapping")
    if mapping is not None and mapping.vmapped_dims and grid_order(eqn) is not None:
        return "InterpretParams asks for an order of a grid to which vmap added an axis"
    replaced = replaced_in_interpreter()
    if replaced is not None:
        return f"somebody has replaced `{replaced}` in the interpreter of InterpretParams"
    refused = refused_grid(eqn) if eqn.primitive.name == "pallas_call" else None
    return None if refused is None else f"InterpretParams refuses it: {refused}"
