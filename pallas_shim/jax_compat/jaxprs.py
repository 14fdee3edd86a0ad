"""One normal form of jaxprs and of the control-flow primitives, for every JAX version."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import core, source_info_util
from jax._src import dtypes as jax_dtypes
from jax._src.pallas import core as pallas_core
from jax._src.state import types as state_types

from pallas_shim.refusal import Refusal

# The jaxpr of these primitives is a Pallas kernel.
KERNEL_PRIMITIVES = frozenset({"pallas_call", "core_map", "mpmd_map"})
# These primitives only call the jaxpr in one of their parameters.
CALL_PRIMITIVES = (
    "jit",
    "closed_call",
    "call",
    "core_call",
    "eval_jaxpr",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vmap_call",
    "remat2",
    "remat_opt",
    "composite",
    "xla_metadata_call",
    "linear_call",
    "custom_partitioning",  # one device runs it, so nothing is partitioned
    "program_order",  # orders communication between devices
)
# Since JAX 0.12 a jaxpr holds its own consts, and there is no separate closed jaxpr.
_CLOSED = getattr(core, "ClosedJaxpr", None)
_JAX = os.path.join(os.path.dirname(jax.__file__), "")
_CALLED = ("jaxpr", "call_jaxpr", "call", "callee", "fun_jaxpr", "fwd_jaxpr")


class AvalInfo(NamedTuple):
    """An abstract value. ``space`` is None for arrays, and the memory space's name for refs.

    ``key_ndim``: the number of trailing dimensions that make up one PRNG key.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    space: str | None
    key_ndim: int = 0


class Scan(NamedTuple):
    """Operands: consts, carry, xs. The jaxpr's results: carry, ys."""

    jaxpr: Any
    length: int
    reverse: bool
    num_consts: int
    num_carry: int


class WhileLoop(NamedTuple):
    """Operands: condition consts, body consts, carry."""

    condition: Any
    body: Any
    num_condition_consts: int
    num_body_consts: int


class UnsupportedType(Refusal):
    """A JAX type has no NumPy form here. The message names it."""


def is_of_jax(jaxpr: Any) -> bool:
    """Whether JAX's own code defines the function, as that of `jnp.add` and `jax.random.key`."""
    file = open_jaxpr(jaxpr)[0].debug_info.func_filename
    return file is not None and file.startswith(_JAX)


def open_jaxpr(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and the values of its constvars. They are empty if it doesn't hold them."""
    if _CLOSED is not None and isinstance(jaxpr, _CLOSED):
        return jaxpr.jaxpr, jaxpr.consts
    return jaxpr, getattr(jaxpr, "consts", ())


def closed(jaxpr: Any) -> Any:
    """Closes a jaxpr that has no constants, so that it can be evaluated."""
    if _CLOSED is None or isinstance(jaxpr, _CLOSED):
        return jaxpr
    return _CLOSED(jaxpr, ())


def new_variable(aval: Any) -> Any:
    """A variable of a jaxpr that stands for a value of this type."""
    return core.Var(aval)


def with_equations(jaxpr: Any, equations: Sequence[Any]) -> Any:
    """The jaxpr with other equations, which have the same effects."""
    opened, _ = open_jaxpr(jaxpr)
    changed = opened.replace(eqns=list(equations))
    return changed if opened is jaxpr else jaxpr.replace(jaxpr=changed)


def with_jaxprs(eqn: Any, changed: Mapping[int, Any]) -> Any:
    """The equation with other jaxprs. ``changed`` has them by the ids of the present ones."""
    params = {}
    for name, value in eqn.params.items():
        if isinstance(value, tuple):
            params[name] = tuple(changed.get(id(each), each) for each in value)
        else:
            params[name] = changed.get(id(value), value)
    return eqn.replace(params=params)


_JAXPRS = (core.Jaxpr,) if _CLOSED is None else (core.Jaxpr, _CLOSED)
# The types of most parameters, none of which is a jaxpr. Asking for these first is faster.
_PLAIN = frozenset({bool, int, float, str, type(None), np.dtype})


def inner_jaxprs(eqn: Any) -> list[Any]:
    """The jaxprs that an equation holds, opened."""
    return [
        held.jaxpr if _CLOSED is not None and isinstance(held, _CLOSED) else held
        for held in held_jaxprs(eqn)
    ]


def held_jaxprs(eqn: Any) -> list[Any]:
    """The jaxprs that an equation holds, as they are."""
    return [
        held
        for value in eqn.params.values()
        if type(value) not in _PLAIN
        for held in (value if isinstance(value, tuple) else (value,))
        if type(held) not in _PLAIN and isinstance(held, _JAXPRS)
    ]


def equations(jaxpr: Any) -> Iterator[Any]:
    """The equations of a jaxpr, each followed by those of the jaxprs inside it."""
    for eqn in open_jaxpr(jaxpr)[0].eqns:
        yield eqn
        for inner in inner_jaxprs(eqn):
            yield from equations(inner)


_primitives: weakref.WeakKeyDictionary[Any, frozenset[str]] = weakref.WeakKeyDictionary()


def primitives(jaxpr: Any) -> frozenset[str]:
    """JAX's names of the primitives in a jaxpr and in the jaxprs inside it.

    The answer is kept with the jaxpr, so whoever looks for a rare primitive asks this first. A
    jaxpr that many equations call, such as that of ``jnp.where``, is read once.
    """
    opened = open_jaxpr(jaxpr)[0]
    found = _primitives.get(opened)
    if found is None:
        names: set[str] = set()
        inside: dict[int, Any] = {}
        for eqn in opened.eqns:
            names.add(eqn.primitive.name)
            for inner in inner_jaxprs(eqn):
                inside[id(inner)] = inner
        found = _primitives[opened] = frozenset(names.union(*map(primitives, inside.values())))
    return found


def primitive_name(primitive: Any) -> str:
    """A unique name of a primitive. JAX gives some SparseCore primitives the names of others."""
    name = primitive.name
    if name in _BORROWED and _SPARSECORE in sys.modules:
        if primitive is getattr(sys.modules[_SPARSECORE], f"{name}_p", None):
            return f"sparsecore_{name}"
    return name


_SPARSECORE = "jax._src.pallas.mosaic.sc_primitives"
_BORROWED = frozenset({"gather", "scatter", "swap", "bitcast", "load"})


def is_literal(atom: Any) -> bool:
    return type(atom) is core.Literal


def called_jaxpr(eqn: Any) -> Any:
    """The jaxpr that one of CALL_PRIMITIVES calls."""
    for name in _CALLED:
        if name in eqn.params:
            return eqn.params[name]
    raise KeyError(f"{eqn.primitive.name} holds no jaxpr among {sorted(eqn.params)}")


def is_own(jaxpr: Any) -> bool:
    """Whether a jaxpr is of a function of JAX's own, and holds none of the user's (such as a
    kernel). Its equations have the places of the first call with these types, or none."""
    opened = open_jaxpr(jaxpr)[0]
    found = _own.get(opened)
    if found is None:
        found = _own[opened] = _of_jax(opened) is True and not any(
            _of_jax(inner) is False for eqn in equations(opened) for inner in inner_jaxprs(eqn)
        )
    return found


_own: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def _of_jax(jaxpr: Any) -> bool | None:
    """Whether JAX's code defines the function of this jaxpr alone. None if that isn't known."""
    debug_info = getattr(open_jaxpr(jaxpr)[0], "debug_info", None)
    _, at, where = (getattr(debug_info, "func_src_info", None) or "").partition(" at ")
    return not source_info_util.is_user_filename(where.rpartition(":")[0]) if at else None


def scan(eqn: Any) -> Scan:
    p = eqn.params
    if "ft_in" in p:  # JAX >= 0.12 keeps the argument groups as flat trees
        consts, carry, _ = (len(list(group)) for group in p["ft_in"].unpack())
    else:
        consts, carry = p["num_consts"], p["num_carry"]
    return Scan(p["jaxpr"], p["length"], p["reverse"], consts, carry)


def while_loop(eqn: Any) -> WhileLoop:
    p = eqn.params
    return WhileLoop(p["cond_jaxpr"], p["body_jaxpr"], p["cond_nconsts"], p["body_nconsts"])


def branches(eqn: Any) -> Sequence[Any]:
    return eqn.params["branches"]


def describe_aval(aval: Any) -> AvalInfo:
    """The shape, dtype and memory space of an abstract value.

    A key array is described as the integers of its keys, with the trailing dimensions of one key.
    A semaphore is described as an int32 count.

    Raises:
      UnsupportedType: the type has no NumPy form.
    """
    if isinstance(aval, state_types.AbstractRef):
        inner: Any = aval.inner_aval
        space = aval.memory_space
        if _is_semaphore(inner.dtype):
            space = "semaphore_dma" if _counts_copies(inner.dtype) else "semaphore"
            return AvalInfo(inner.shape, np.dtype(np.int32), space)
        name = "any" if space is None else getattr(space, "value", None) or str(space)
        return describe_aval(inner)._replace(space=str(name).lower())
    key_ndim = 0
    shape, dtype = getattr(aval, "shape", None), getattr(aval, "dtype", None)
    if shape is None or dtype is None:
        raise UnsupportedType(f"the type {aval} is not an array")
    if not all(isinstance(d, (int, np.integer)) for d in shape):
        raise UnsupportedType(f"the shape {shape} is not static")
    if jax_dtypes.issubdtype(dtype, jax_dtypes.extended):
        if _is_semaphore(dtype):
            return AvalInfo(tuple(shape), np.dtype(np.int32), None)
        if not jax_dtypes.issubdtype(dtype, jax_dtypes.prng_key):
            raise UnsupportedType(f"the dtype {dtype} has no NumPy form")
        physical: Any = core.physical_aval(aval)
        key_ndim = len(physical.shape) - len(shape)
        shape, dtype = physical.shape, physical.dtype
    if dtype == jax_dtypes.float0:
        raise UnsupportedType("float0 has no NumPy form that holds values")
    return AvalInfo(tuple(map(int, shape)), np.dtype(dtype), None, key_ndim)


def _counts_copies(dtype: Any) -> bool:
    """Whether a semaphore is a DMA's. A DMA's semaphore counts the copied data."""
    return type(dtype).__name__ == "DMASemaphore" or getattr(dtype, "name", "") == "dma_sem"


def _is_semaphore(dtype: Any) -> bool:
    return jax_dtypes.issubdtype(dtype, pallas_core.semaphore_dtype)


def to_numpy(value: Any, dtype: np.dtype | None) -> np.ndarray:
    """A constant of a jaxpr as a NumPy array of the dtype that JAX gives it."""
    if isinstance(value, (bool, int, float, complex)):
        array = np.asarray(value, jax_dtypes.dtype(value) if dtype is None else dtype)
    elif hasattr(value, "dtype") and jax_dtypes.issubdtype(value.dtype, jax_dtypes.extended):
        array = np.asarray(value._base_array)
    else:
        # JAX's literals are a subclass of ndarray whose arithmetic is slow.
        array = np.asarray(value)
    if dtype is not None and array.dtype != dtype:
        array = array.astype(dtype)
    if dtype is None and array.dtype in _WIDE:
        array = array.astype(jax_dtypes.canonicalize_dtype(array.dtype))
    if array.flags.writeable and not isinstance(value, _SCALARS):
        array = array.copy()  # the user may write to an array that a function closes over
    return array


_SCALARS = (bool, int, float, complex, np.generic)

_WIDE = frozenset(map(np.dtype, (np.int64, np.uint64, np.float64, np.complex128)))


def source_of(eqn: Any) -> Any:
    """The source info of an equation. `user_source` turns it into text."""
    return eqn.source_info


def user_source(source: Any) -> str | None:
    """ "file:line (function)" of the user's own code. None if it isn't known. For a program from
    disk, ``source`` already is such a text."""
    if source is None or isinstance(source, str):
        return source
    frame = source_info_util.user_frame(source.traceback)
    if frame is None:
        return None
    return f"{frame.file_name}:{frame.start_line} ({frame.function_name})"


class Frame(NamedTuple):
    """A place in the user's code that an equation comes from."""

    file: str
    function: str
    line: int


def user_frames(source: Any) -> tuple[Frame, ...]:
    """The frames of the user's own code that an equation comes from, the innermost first."""
    if source is None or isinstance(source, str):
        return ()
    return tuple(
        Frame(frame.file_name, frame.function_name, frame.start_line)
        for frame in source_info_util.user_frames(source.traceback)
    )


def variable(value: Any) -> Any | None:
    """The variable of a jaxpr that a tracer stands for, while the jaxpr is made. None if it stands
    for none, or isn't a tracer."""
    found = getattr(value, "val", None) if isinstance(value, core.Tracer) else None
    return found if isinstance(found, core.Var) else None


def is_tracer(value: Any) -> bool:
    return isinstance(value, core.Tracer)


def is_users(file: str) -> bool:
    """Whether a file is the user's, not JAX's."""
    return source_info_util.is_user_filename(file)
