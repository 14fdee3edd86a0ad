"""The host function behind each of JAX's callback primitives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from jax._src import debugging

CALLBACK_PRIMITIVES = ("debug_callback", "debug_print", "pure_callback", "io_callback")


def host_function(eqn: Any) -> Callable[..., Any]:
    """``fn(*arrays)`` -> a sequence of arrays (empty for the debugging ones)."""
    p = eqn.params
    if eqn.primitive.name != "debug_print":
        return p["callback"]
    record = (p["logging_record"],) if "logging_record" in p else ()
    write = functools.partial(
        debugging._format_print_callback,
        p["fmt"],
        dict(p["np_printoptions"]),
        p["has_placeholders"],
        *record,
    )
    return debugging._make_flat_callback(p["in_tree"], write, p["static_args"])
