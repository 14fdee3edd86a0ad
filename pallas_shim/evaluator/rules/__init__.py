"""The rules: one module per family of primitives.

`load_own` imports them all. It runs with Pallas' import, so that no first call waits for it.
`registry.load` adds the rules of other packages before the first lowering.
"""

from __future__ import annotations

import importlib

from pallas_shim.evaluator.registry import (
    IMPL_RULES,
    LOWERING_RULES,
    ImplRule,
    Unsupported,
    impl_rule,
    load,
    lowering_rule,
    register_rule,
)

__all__ = [
    "LOWERING_RULES",
    "IMPL_RULES",
    "ImplRule",
    "Unsupported",
    "load",
    "load_own",
    "lowering_rule",
    "register_rule",
    "impl_rule",
]

FAMILIES = (
    "elementwise",
    "guarded",
    "convert",
    "shape",
    "indexing",
    "one_hot",
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
    "dma",
    "tpu",
    "packing",
    "sparsecore",
    "matrix_unit",
    "hardware_random",
    "triton",
    "callbacks",
)


def load_own() -> None:
    """Registers our rules. Idempotent."""
    for family in FAMILIES:
        importlib.import_module(f"{__name__}.{family}")
    importlib.import_module("pallas_shim.evaluator.batched_ops")
