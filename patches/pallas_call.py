"""Lowers pallas_call to a callback to its NumPy form, in programs that XLA compiles for a CPU."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from pallas_shim import dispatch
from pallas_shim.jax_compat.hooks import kernel_lowering


def patch(pallas: ModuleType) -> Callable[[], None]:
    """Called when jax.experimental.pallas is imported."""
    del pallas
    return kernel_lowering.register_kernel_lowering(dispatch.choose_kernel)
