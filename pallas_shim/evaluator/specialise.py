"""Asks a rule for the operation of a primitive on given types, with given parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pallas_shim.evaluator.program import PURE, ArrayType, Operation, Type
from pallas_shim.evaluator.refused import refusal
from pallas_shim.evaluator.registry import IMPL_RULES, Unsupported


def specialise(
    primitive: str,
    ins: tuple[Type, ...],
    outs: tuple[Type, ...],
    params: Mapping[str, Any],
    multiple: bool,
) -> Operation:
    """Asks the primitive's rule for its callable.

    Raises:
      Unsupported: no rule, or the rule refuses.
    """
    rule = IMPL_RULES.get(primitive)
    if rule is None:
        raise refusal(primitive)
    if not rule.keys and any(t.key_ndim for t in (*ins, *outs)):
        raise Unsupported(primitive, "on an array of PRNG keys")
    arrays = [tuple(ArrayType(t.shape, t.dtype) for t in types) for types in (ins, outs)]
    fn = rule.make(*arrays, **params)
    return Operation(primitive, params, ins, outs, fn, PURE, rule.view, multiple)
