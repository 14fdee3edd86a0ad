"""The rules: one module per family of primitives.

`load` imports them all, and those that other packages offer under the entry-point
group ``pallas_shim.rules``; it is called before the first lowering, so that starting
Python with the shim on costs none of it.
"""

from __future__ import annotations

import functools
import importlib

from pallas_shim.evaluator.rules.registry import (
    LOWERING_RULES,
    RULES,
    Rule,
    Unsupported,
    lowering_rule,
    register_rule,
    rule,
)

__all__ = [
    "LOWERING_RULES",
    "RULES",
    "Rule",
    "Unsupported",
    "load",
    "lowering_rule",
    "register_rule",
    "rule",
]

FAMILIES = (
    "elementwise",
    "convert",
    "shape",
    "indexing",
    "reduce",
    "sort",
    "linalg",
    "window",
    "random",
    "control",
    "calls",
    "state",
    "pallas",
    "mesh",
    "tpu",
    "packing",
    "hardware_random",
    "triton",
    "callbacks",
    "cells",
)


@functools.cache
def load() -> None:
    """Registers every rule, ours and other packages'. Idempotent."""
    for family in FAMILIES:
        importlib.import_module(f"{__name__}.{family}")
    import importlib_metadata

    for entry_point in importlib_metadata.entry_points(group="pallas_shim.rules"):
        entry_point.load()
