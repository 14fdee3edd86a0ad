"""Which tracer each local variable of the user's stands for, at each line that JAX traces.

JAX runs the user's functions once, with tracers for arrays, and keeps no names. So a trace
function, as debuggers set one, notes the local variables at each line. Later, when the kernel runs,
a tracer's variable in the jaxpr leads to its value.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from collections import defaultdict
from types import CodeType, FrameType
from typing import Any, NamedTuple

import jax
import numpy as np

from pallas_shim import jax_compat
from pallas_shim.jax_compat import jaxprs

_STANDARD = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
_OWN = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")
_SITE = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib")})
# What is shown as it is. Other objects may change before the kernel runs.
_FIXED = (bool, int, float, complex, str, bytes, type(None), np.generic, np.dtype, jax.Array)


class TracedLocal(NamedTuple):
    """A local variable that stands for a variable of a jaxpr."""

    variable: Any


Names = dict[str, Any]  # name: a `TracedLocal`, or a Python value, or a tuple or list of these


class Snapshots:
    """The user's local variables, by file, function and line, in the order of tracing.

    ``hook`` is called in place of ``breakpoint`` and ``pdb.set_trace`` where JAX traces.
    """

    def __init__(self) -> None:
        self._taken: dict[tuple[str, str], dict[int, list[Names]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self._users: dict[CodeType, bool] = {}

    def start(self) -> None:
        self._before = threading.gettrace(), sys.gettrace()
        threading.settrace(self._call)
        sys.settrace(self._call)

    def stop(self) -> None:
        of_threads, own = self._before
        threading.settrace(of_threads)
        sys.settrace(own)

    def at(self, frame: jaxprs.Frame) -> list[Names]:
        """The snapshots of a line, or else of the last line before it that has any."""
        lines = self._taken.get((frame.file, frame.function), {})
        known = [line for line in lines if line <= frame.line]
        return lines[max(known)] if known else []

    def _call(self, frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        known = self._users.get(code)
        if known is None:
            known = self._users[code] = _is_users(code)
        return self._line if known else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        # At "return" the names are those after the last line, which nothing stops at.
        if event == "line":
            names, traced = names_of(frame)
            if traced:
                code = frame.f_code
                self._taken[code.co_filename, code.co_qualname][frame.f_lineno].append(names)
        return self._line


def names_of(frame: FrameType) -> tuple[Names, bool]:
    """The local variables of a frame that can be shown, and whether any is a tracer."""
    names: Names = {}
    traced = False
    for name, value in frame.f_locals.items():
        shown, has_tracer = _shown(value)
        traced |= has_tracer
        if shown is not _HIDDEN:
            names[name] = shown
    return names, traced


_HIDDEN = object()


def _shown(value: Any) -> tuple[Any, bool]:
    if jaxprs.is_tracer(value):
        variable = jaxprs.variable(value)
        return (_HIDDEN if variable is None else TracedLocal(variable)), True
    if type(value) in (tuple, list) and len(value) <= 64:
        parts = [_shown(part) for part in value]
        if any(part is _HIDDEN for part, _ in parts):
            return _HIDDEN, any(traced for _, traced in parts)
        return type(value)(part for part, _ in parts), any(traced for _, traced in parts)
    if isinstance(value, _FIXED):
        return value, False
    return _HIDDEN, False


def _is_users(code: CodeType) -> bool:
    file = code.co_filename
    return (
        code.co_name != "<module>"
        and jax_compat.is_users(file)
        and not file.startswith(_OWN)
        and (file.startswith(_SITE) or not file.startswith(_STANDARD))
        and not file.startswith("<")
    )
