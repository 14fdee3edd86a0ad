"""How long JAX traced a function: what each thread notes for the plan that it makes next."""

from __future__ import annotations

import threading

_traced = threading.local()


def note_tracing(function: str, seconds: float) -> None:
    """Remembers how long JAX traced a function."""
    _traced.last = (function, seconds)


def last_tracing(function: str) -> float | None:
    """The seconds that were noted last, if they are this function's. They are given once."""
    last: tuple[str, float] | None = getattr(_traced, "last", None)
    _traced.last = None
    return last[1] if last is not None and last[0] == function else None
