"""Native programs that jit's C++ path enters by itself.

Python's way to a program takes longer than a small program. So an executable of XLA's, which is one
call of the native code, becomes jit's own answer to such calls. As with any jitted function, jit
then neither asks Python nor can be interrupted, so only quick programs get one.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pallas_shim.dispatch import background, native, observing, stock
from pallas_shim.dispatch.plan import Plan
from pallas_shim.jax_compat import arrays, custom_call
from pallas_shim.jax_compat.forks import xla_is_lost
from pallas_shim.jax_compat.hooks import jit_calls
from pallas_shim.reports.uses import REPORT

# Seconds: a longer program gains nothing, and one that isn't interrupted shouldn't be longer.
_QUICK = 0.01
# XLA forgets no target, so the code behind one stays for good.
_MOST = 200

_numbers = itertools.count()
_kept: list[Any] = []


class _Entry:
    """The executable of a program, when there is one, and its device."""

    def __init__(self, device: Any):
        self.device = device
        self.executable: Any = None
        self.is_compared = False


def executable(
    way: native.Way, args: Sequence[Any], plan: Plan, out: Sequence[Any]
) -> Any | None:
    """The executable that jit may use from now on for calls like this one, whose program is native.
    ``out`` are its results. Often there is none yet, or never."""
    if not _may_be_entered() or not arrays.are_uncommitted(args, plan.in_dtypes):
        return None
    entry = way.entry
    if entry is None:
        way.entry = entry = _Entry(out[0].device if out else None)
        if _has_an_executable(way, plan, out) and len(_kept) < _MOST:
            types = list(map(_type, args)), list(map(_type, out))
            background.later(functools.partial(_compile, way, entry, plan.event, *types))
        return None
    if entry.executable is None or out[0].device != entry.device:
        return None
    if not entry.is_compared:
        others = entry.executable.unsafe_call(*args)
        if not native.same(list(map(np.asarray, out)), list(map(np.asarray, others))):
            way.is_wrong("called by XLA, it gave other bits")
            return None
        entry.is_compared = True
        way.use.meters.append(native.Meter(way.code))  # not of the call before
        way.use.native = f"{way.use.native}, called by jit itself"
        leave()  # jit has noted that Python answers these calls, and would go on asking it
        return None
    return entry.executable


def leave() -> None:
    """Makes jit forget its answers, so that all calls come here again."""
    if _kept:
        jit_calls.forget_executables()


def _may_be_entered() -> bool:
    """Whether nobody wants to see each call."""
    return observing.current is None and REPORT.hear is None and not xla_is_lost()


def _has_an_executable(way: native.Way, plan: Plan, out: Sequence[Any]) -> bool:
    assert way.seconds is not None
    return (
        way.seconds < _QUICK
        and way.code.handler is not None
        and bool(out)
        and plan.mesh is None
        and plan.trial is None
        and not plan.deleted
        and not plan.ordered
        and out[0].device.platform == "cpu"
        and all(key_type is None for _, key_type in plan.out_types)
        and all(isinstance(dtype, np.dtype) for dtype in plan.in_dtypes)
    )


def _type(array: jax.Array | np.ndarray) -> jax.ShapeDtypeStruct:
    weak_type = getattr(array, "weak_type", False)
    return jax.ShapeDtypeStruct(array.shape, array.dtype, weak_type=weak_type)


def _compile(
    way: native.Way,
    entry: _Entry,
    name: str,
    args: Sequence[jax.ShapeDtypeStruct],
    out: Sequence[jax.ShapeDtypeStruct],
) -> None:
    handler = way.code.handler
    target = f"pallas_shim_{os.getpid()}_{next(_numbers)}"
    _kept.append(way.code)
    try:
        with stock.left_to_jax():
            made = custom_call.compiled(
                name.removeprefix("jit_"), target, handler.address, args, handler.used, out,
                handler.workspace, entry.device,
            )  # fmt: skip
    except Exception as error:
        # Calls come here as before, but a bug must be visible.
        native.log.warning("%s: no executable: %s: %s", name, type(error).__name__, error)
        return
    _kept.append(made)
    entry.executable = made


observing.listeners.append(leave)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=leave)
