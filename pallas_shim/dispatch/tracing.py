"""Tracing times. Each thread notes how long JAX traced a function, for the plan that follows."""

from __future__ import annotations

import threading

_traced = threading.local()


def note_tracing(function: str, seconds: float) -> None:
    """Remembers how long JAX traced a function."""
    _traced.last = (function, seconds)


def last_tracing(function: str) -> float | None:
    """Returns the seconds noted last, if they belong to this function. Reading removes them."""
    last: tuple[str, float] | None = getattr(_traced, "last", None)
    _traced.last = None
    return last[1] if last is not None and last[0] == function else None
