"""Compiles kernels whose devices communicate for JAX's TPU interpreter, which runs them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from pallas_shim.jax_compat.hooks import communication


def patch(pallas: ModuleType) -> Callable[[], None]:
    """Called when jax.experimental.pallas is imported."""
    del pallas
    return communication.compile_for_tpu_interpreter()
