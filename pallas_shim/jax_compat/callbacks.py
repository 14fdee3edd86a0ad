"""The host function behind each of JAX's callback primitives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax._src import debugging

CALLBACK_PRIMITIVES = ("debug_callback", "debug_print", "pure_callback", "io_callback")


def host_function(eqn: Any) -> Callable[..., Any]:
    """``fn(*arrays)`` -> a sequence of arrays (empty for the debugging ones).

    The arrays are NumPy's, and may be kept by whom they are given to.
    """
    p = eqn.params
    if eqn.primitive.name != "debug_print":
        return functools.partial(_call_back, p["callback"])
    record = (p["logging_record"],) if "logging_record" in p else ()
    write = functools.partial(
        debugging._format_print_callback,
        p["fmt"],
        dict(p["np_printoptions"]),
        p["has_placeholders"],
        *record,
    )
    return debugging._make_flat_callback(p["in_tree"], write, p["static_args"])


def _call_back(callback: Callable[..., Any], *values: np.ndarray) -> Any:
    """Calls a user's function as JAX does, with JAX's arrays on a CPU."""
    device = jax.local_devices(backend="cpu")[0]
    with jax.default_device(device):
        return callback(*jax.device_put(values, device))
