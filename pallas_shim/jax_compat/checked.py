"""Reads ``interpret=pltpu.InterpretParams()``: its options, and what JAX refuses under them."""

from __future__ import annotations

import inspect
import sys
from types import FunctionType
from typing import Any, NamedTuple

# The type of what `hooks.communication` asks of the TPU interpreter, and not the user.
ASKED_FOR_HERE = "InterpretParamsOfRemoteKernels"


class CheckedMemory(NamedTuple):
    """Memory as a TPU has it: an index that leaves its ref is an error, not moved inside.

    ``raises``: so is one that reads; otherwise it gives uninitialised elements. ``zero``:
    those are zeros, not NaN and the largest integer. ``hbm_in_run_scoped``: whether a kernel
    may allocate such memory.
    """

    raises: bool
    zero: bool
    hbm_in_run_scoped: bool


def checked_memory(eqn: Any) -> CheckedMemory | None:
    """The memory that a pallas_call, core_map or mpmd_map asks for; None for interpret=True's."""
    interpret = eqn.params.get("interpret", False)
    if type(interpret).__name__ != "InterpretParams":
        return None
    return CheckedMemory(
        interpret.out_of_bounds_reads == "raise",
        interpret.uninitialized_memory == "zero",
        interpret.allow_hbm_allocation_in_run_scoped,
    )


def in_hbm(aval: Any) -> bool:
    """Whether a ref is in HBM, from where a kernel can only copy."""
    return _value(aval.memory_space) in ("any", "hbm")


def refused_grid(eqn: Any) -> str | None:
    """Why JAX refuses a pallas_call's parallel dimensions, or None."""
    mapping = eqn.params["grid_mapping"]
    semantics = getattr(eqn.params["compiler_params"], "dimension_semantics", None) or ()
    parallel = [_value(s) == "parallel" for s in semantics]
    if sorted(parallel, reverse=True) != parallel:
        return "parallel dimensions of the grid come after others"
    if any(p and not isinstance(n, int) for p, n in zip(parallel, mapping.grid, strict=False)):
        return "a parallel dimension of the grid has a dynamic size"
    return None


# JAX's TPU interpreter, and its functions as they were. Looked up, since importing it takes long.
_INTERPRETER = "jax._src.pallas.mosaic.interpret.interpret_pallas_call"
_functions: dict[str, FunctionType] = {}


def remember_interpreter() -> None:
    """Called when Pallas for TPUs is imported, and with it its interpreter."""
    for name, value in vars(sys.modules.get(_INTERPRETER, object)).items():
        if inspect.isfunction(value):
            _functions.setdefault(name, value)


def replaced_in_interpreter() -> str | None:
    """A function of the interpreter that somebody has put another in the place of: they count its
    calls, say, and mean it to run."""
    now = vars(sys.modules[_INTERPRETER]) if _functions else {}
    return next((name for name, value in _functions.items() if now.get(name) is not value), None)


def _value(member: Any) -> str:
    """The text of a member of one of Pallas' enumerations, for which some JAX take the text."""
    return str(getattr(member, "value", member)).lower()
