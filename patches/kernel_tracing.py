"""Makes JAX trace kernels with garbage collection paused, and tells of breakpoints in them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt

from pallas_shim import dispatch
from pallas_shim.gc_pause import gc_paused
from pallas_shim.jax_compat.hooks import tracing


def patch(pallas: ModuleType) -> Callable[[], None]:
    """Called when jax.experimental.pallas is imported."""
    del pallas
    module, name = tracing.KERNEL_TRACING
    stock = getattr(module, name)
    setattr(module, name, wrapt.FunctionWrapper(stock, _trace))
    return lambda: setattr(module, name, stock)


def _trace(stock: Callable[..., Any], instance: None, args: Any, kwargs: Any) -> Any:
    dispatch.tell_of_breakpoints(args[0] if args else None)
    return gc_paused(stock, *args, **kwargs)
