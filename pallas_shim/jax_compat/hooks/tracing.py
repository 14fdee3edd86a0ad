"""Hooks into the place where JAX traces kernels, and measures the time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
from jax._src import monitoring
from jax._src.pallas import pallas_call as jax_pallas_call

# The function of JAX that traces a kernel to its jaxpr.
KERNEL_TRACING = (jax_pallas_call, "_trace_kernel_to_jaxpr")

TRACE_EVENT = "/jax/core/compile/jaxpr_trace_duration"


def listen_to_tracing(listener: Callable[[str, float], None]) -> Callable[[], None]:
    """Calls ``listener(function, seconds)`` after each tracing by jit; returns the undoing."""

    def on_event(event: str, duration_secs: float, **details: Any) -> None:
        if event == TRACE_EVENT:
            listener(str(details.get("fun_name")), duration_secs)

    jax.monitoring.register_event_duration_secs_listener(on_event)
    old = "_unregister_event_duration_listener_by_callback"  # before JAX 0.8.1
    names = ("unregister_event_duration_listener", old)
    unregister = next(getattr(monitoring, name) for name in names if hasattr(monitoring, name))

    def undo() -> None:
        with contextlib.suppress(AssertionError, ValueError):  # somebody has removed all listeners
            unregister(on_event)

    return undo
