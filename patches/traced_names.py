"""Shortens the way to the names of a traced function's arguments."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from pallas_shim.jax_compat.hooks import argument_names


def patch(pallas: ModuleType) -> Callable[[], None]:
    """Called when jax.experimental.pallas is imported."""
    del pallas
    return argument_names.shorten()
