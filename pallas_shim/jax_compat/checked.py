"""Reads ``interpret=pltpu.InterpretParams()``: its options, and what JAX refuses under them."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import jax
import numpy as np

# `hooks.communication` uses options of this type. Then it, not the user, asks for the interpreter.
ASKED_FOR_HERE = "InterpretParamsOfRemoteKernels"


# A function of the user's that is told of each cell: where it is in the grid, and its core.
Recorder = Callable[[tuple[np.int32, ...], np.int32], Any]


class InterpretOptions(NamedTuple):
    """How a kernel runs under ``InterpretParams``. Its memory is like a TPU's: an index that leaves
    its ref is an error, and isn't moved inside.

    ``raises``: reads outside are errors too. Otherwise they give uninitialised elements. ``zero``:
    uninitialised elements are zeros, not NaN and the largest integer. ``hbm_in_run_scoped``:
    whether a kernel may allocate HBM in run_scoped. ``padded``: only what leaves the whole tiles of
    a buffer is outside; beside the buffer, but in its tiles, reads give uninitialised elements, and
    writes do nothing. ``skips_floats``: what only gives floats isn't computed, and each float is
    infinite. ``recorder``: the user's, or None.
    """

    raises: bool
    zero: bool
    hbm_in_run_scoped: bool
    padded: bool
    skips_floats: bool
    recorder: Recorder | None


def interpret_options(eqn: Any) -> InterpretOptions | None:
    """What a pallas_call, core_map or mpmd_map asks for. None if it asks for no
    ``InterpretParams``."""
    interpret = eqn.params.get("interpret", False)
    if type(interpret).__name__ != "InterpretParams":
        return None
    return InterpretOptions(
        interpret.out_of_bounds_reads == "raise",
        interpret.uninitialized_memory == "zero",
        interpret.allow_hbm_allocation_in_run_scoped,
        getattr(interpret, "buffer_bounds", "logical") == "padded",
        interpret.skip_floating_point_ops,
        _recorder(interpret.grid_point_recorder),
    )


def _recorder(given: Callable[..., Any] | None) -> Recorder | None:
    """The user's recorder without the token that it gets and returns since JAX 0.10."""
    token = getattr(sys.modules[_INTERPRETER], "TOKEN_SHAPE_DTYPE", None)
    if given is None or token is None:
        return given
    return functools.partial(given, np.zeros(token.shape, token.dtype))


def in_whole_tiles(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    """The shape of a buffer in whole tiles, as JAX's interpreter pads it.

    Raises:
      Exception: JAX's own, where it can't tell, as it doesn't know of arrays of one dimension
        unless it knows the TPU.
    """
    interpreter: Any = sys.modules[_INTERPRETER]
    padded: tuple[int, ...] = interpreter._get_padded_shape(shape, dtype)
    return padded


def memory_space(aval: Any) -> str:
    """The text of a ref's memory space, such as "vmem"; "none" if it has none."""
    return _value(aval.memory_space)


def in_hbm(aval: Any) -> bool:
    """Whether a ref is in HBM. A kernel can only copy from and to HBM."""
    return memory_space(aval) in ("any", "hbm")


def compiler_params(eqn: Any) -> tuple[Any, ...]:
    """The compiler parameters that the user gave, of one platform or of several."""
    given = eqn.params.get("compiler_params")
    if isinstance(given, Mapping):  # JAX < 0.9 has them by platform
        return tuple(given.values())
    return () if given is None else (given,)


def dimension_semantics(eqn: Any) -> tuple[str, ...]:
    """The user's declarations of the axes of the grid: "parallel", "arbitrary" and the like."""
    for params in compiler_params(eqn):
        declared = getattr(params, "dimension_semantics", None)
        if declared is not None:
            return tuple(map(_value, declared))
    return ()


def refused_grid(eqn: Any) -> str | None:
    """The reason why JAX refuses a pallas_call's parallel dimensions. None if it doesn't."""
    mapping = eqn.params["grid_mapping"]
    parallel = [semantics == "parallel" for semantics in dimension_semantics(eqn)]
    if sorted(parallel, reverse=True) != parallel:
        return "parallel dimensions of the grid come after others"
    if any(p and not isinstance(n, int) for p, n in zip(parallel, mapping.grid, strict=False)):
        return "a parallel dimension of the grid has a dynamic size"
    return None


class GridOrder(NamedTuple):
    """The order of the cells of a grid, as ``InterpretParams`` or the cores of a TPU want it.

    ``permutations``: for each axis the indices in their order, or None for the usual one.
    ``parallel``: so many axes, the first ones, are parallel. ``cores`` take equal parts of the
    cells along these, one part after the other; each has scratch memory of its own.
    """

    permutations: tuple[tuple[int, ...] | None, ...]
    parallel: int
    cores: int


def num_cores(interpret: Any) -> int:
    """The number of cores that ``InterpretParams`` asks for."""
    old = getattr(interpret, "num_cores_per_device", 1)  # before JAX 0.9
    return getattr(interpret, "num_cores_or_threads", old)


def grid_order(eqn: Any) -> GridOrder | None:
    """The order that the user asks for. None: the usual one, on one core."""
    interpret = eqn.params.get("interpret", False)
    if type(interpret).__name__ != "InterpretParams":
        return None
    seed, cores = interpret.random_seed, num_cores(interpret)
    semantics = dimension_semantics(eqn)
    parallel = sum(each == "parallel" for each in semantics)
    if seed is None and cores == 1 or not parallel:
        return None
    grid = eqn.params["grid_mapping"].grid
    permutations: list[tuple[int, ...] | None] = [None] * len(grid)
    with jax.ensure_compile_time_eval():  # as JAX's interpreter draws them
        key = jax.random.key(seed or 0)
        for axis in range(parallel):
            key, drawn = jax.random.split(key)
            order = jax.random.permutation(drawn, int(grid[axis]))
            permutations[axis] = tuple(map(int, np.asarray(order)))
    return GridOrder(tuple(permutations), parallel, cores)


def order_on_cores(eqn: Any, parallel: Sequence[bool], cores: int) -> GridOrder | None:
    """The order on a TPU of several cores, for a kernel whose values may depend on it: one with
    memory of its own. None: one core runs it.

    The first axis that isn't of size 1 is cut, if it is parallel. ``parallel``: which axes are.
    """
    grid = eqn.params["grid_mapping"].grid
    cut = next((axis for axis, size in enumerate(grid) if size != 1), None)
    if cores == 1 or cut is None or not parallel[cut] or not isinstance(grid[cut], int):
        return None
    return GridOrder((None,) * len(grid), cut + 1, cores)


def waits_for_copies(interpret: Any) -> bool:
    """Whether copies are to happen when they are waited for, and not when they are started."""
    if type(interpret).__name__ != "InterpretParams":
        return False
    return interpret.dma_execution_mode == "on_wait"


# JAX's TPU interpreter, and its original functions. This module doesn't import it, because that
# takes long.
_INTERPRETER = "jax._src.pallas.mosaic.interpret.interpret_pallas_call"
_functions: dict[str, FunctionType] = {}


def remember_interpreter() -> None:
    """Keeps the interpreter's original functions. Called when Pallas for TPUs is imported, which
    imports its interpreter."""
    for name, value in vars(sys.modules.get(_INTERPRETER, object)).items():
        if inspect.isfunction(value):
            _functions.setdefault(name, value)


def replaced_in_interpreter() -> str | None:
    """A function of the interpreter that somebody has replaced, or None. They may count its calls,
    so the interpreter has to run."""
    now = vars(sys.modules[_INTERPRETER]) if _functions else {}
    return next((name for name, value in _functions.items() if now.get(name) is not value), None)


def note_race(found: str | None) -> None:
    """Says what JAX's race detector says: at the start of a run, for None, that there is none yet,
    else that one was ``found``."""
    interpreter: Any = sys.modules[_INTERPRETER]
    if found is None:
        make = interpreter.RaceDetectionState
        fields = inspect.signature(make).parameters
        interpreter.races = make(**{"num_cores": 1} if "num_cores" in fields else {})
        return
    print(f"RACE DETECTED\n  {found}\n")
    if getattr(interpreter, "races", None) is not None:
        interpreter.races.races_found = True


def _value(member: Any) -> str:
    """The text of a member of a Pallas enumeration. Some JAX versions take the text itself."""
    return str(getattr(member, "value", member)).lower()
