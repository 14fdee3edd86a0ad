"""Watches JAX trace: times it, for the plan that follows, and finds breakpoints."""

from __future__ import annotations

import dis
import functools
import sys
import threading
from types import CodeType
from typing import Any

from pallas_shim.dispatch import observing

_traced = threading.local()


def note_tracing(function: str, seconds: float) -> None:
    """Remembers, for this thread, how long JAX traced a function."""
    _traced.last = (function, seconds)


def last_tracing(function: str) -> float | None:
    """Returns the seconds noted last, if they belong to this function. Reading removes them."""
    last: tuple[str, float] | None = getattr(_traced, "last", None)
    _traced.last = None
    return last[1] if last is not None and last[0] == function else None


_told: set[CodeType] = set()


def tell_of_breakpoints(kernel: Any) -> None:
    """Says, once for each kernel, that a breakpoint in it stops while JAX traces it.

    Only the kernel's own code is searched, and functions inside it.
    """
    if observing.current is not None:
        return
    while isinstance(kernel, functools.partial):
        kernel = kernel.func
    code = getattr(kernel, "__code__", None)
    if not isinstance(code, CodeType) or code in _told:
        return
    called = _breakpoint_in(code)
    if called is not None:
        _told.add(code)
        print(
            f"pallas_shim: the kernel {code.co_name} ({code.co_filename}:{code.co_firstlineno}) "
            f"calls {called}(), which stops while JAX traces it, where arrays have no values yet; "
            f"python -m pallas_shim debug {sys.argv[0] or 'script.py'} stops there with numbers",
            file=sys.stderr,
        )


def _breakpoint_in(code: CodeType) -> str | None:
    """The function that stops, if the code calls one. jax.debug.breakpoint doesn't stop there."""
    if not {"breakpoint", "set_trace"}.isdisjoint(code.co_names):
        for instruction in dis.get_instructions(code):
            loads = instruction.opname.startswith(("LOAD_GLOBAL", "LOAD_NAME"))
            if instruction.argval == "set_trace" or loads and instruction.argval == "breakpoint":
                return str(instruction.argval)
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return next(filter(None, map(_breakpoint_in, inner)), None)
