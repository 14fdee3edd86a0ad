"""Keeps JAX from loading libtpu where there is no TPU: only the compiler's processes need it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jax._src import config, hardware_utils, xla_bridge


def leave_out() -> Callable[[], None]:
    """Has JAX find no TPU if this machine has none; returns the undoing.

    Otherwise JAX loads libtpu, if it is installed, when it looks for devices. The platform stays
    known, as modules of JAX that are imported later require.
    """
    asked = config.jax_platforms.value or ""
    chips, _ = hardware_utils.num_available_tpu_chips_and_device_id()
    factories = xla_bridge._backend_factories
    if chips or "tpu" in asked or "tpu" not in factories:
        return lambda: None
    stock: Any = factories["tpu"]
    factories["tpu"] = dataclasses.replace(stock, factory=lambda: None, fail_quietly=True)

    def undo() -> None:
        factories["tpu"] = stock

    return undo
