"""The rules: one module per family of primitives.

`load_own` imports them all: with Pallas, so that no first call waits for it. `load` adds
those that other packages offer under the entry-point group ``pallas_shim.rules``, before the
first lowering.
"""

from __future__ import annotations

import functools
import importlib

from pallas_shim.discovery import installed
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
    "load_own",
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
    "masked",
    "pallas",
    "mesh",
    "collectives",
    "tpu",
    "packing",
    "sparsecore",
    "matrix_unit",
    "hardware_random",
    "triton",
    "callbacks",
    "cells",
)


def load_own() -> None:
    """Registers our rules. Idempotent."""
    for family in FAMILIES:
        importlib.import_module(f"{__name__}.{family}")


@functools.cache
def load() -> None:
    """Registers every rule, ours and other packages'. Idempotent."""
    load_own()
    for entry_point in installed("pallas_shim.rules"):
        entry_point.load()
