"""Identities: instructions that return one of their operands, whatever its value.

Each entry of `IDENTITIES` takes an operation, its operands and `uniform`, and returns that operand,
or None. Floats have no neutral elements here, since arithmetic makes zeros of subnormals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pallas_shim.evaluator.program import Operation, Value

Uniform = Callable[[Value], Any]
Identity = Callable[[Operation, tuple[Value, ...], Uniform], Value | None]

# Larger constants are not searched.
_LARGEST_SEARCHED = 1 << 16


def uniform(value: Value) -> Any:
    """The only element of a constant, None if its elements differ."""
    array = value.const
    if array is None or not 0 < array.size <= _LARGEST_SEARCHED:
        return None
    first = array[(0,) * array.ndim]
    if array.size > 1 and not (array == first).all():
        return None
    return first


def _same_type(operation: Operation, ins: tuple[Value, ...], uniform: Uniform) -> Value | None:
    return ins[0] if operation.outs[0] == ins[0].type else None


def _select(operation: Operation, ins: tuple[Value, ...], uniform: Uniform) -> Value | None:
    predicate, *cases = ins
    if all(case is cases[0] for case in cases):
        return cases[0]
    chosen = uniform(predicate)
    return None if chosen is None else cases[int(chosen)]


def _neutral(
    is_neutral: Callable[[Any], bool],
    kinds: str,
    either_side: bool = True,
    idempotent: bool = False,
) -> Identity:
    """The identity of a binary operation with a neutral element, for dtypes of some kinds."""

    def identity(operation: Operation, ins: tuple[Value, ...], uniform: Uniform) -> Value | None:
        x, y = ins
        if idempotent and x is y:
            return x
        for constant, other in ((y, x), (x, y)) if either_side else ((y, x),):
            if constant.const is None or constant.const.dtype.kind not in kinds:
                continue
            element = uniform(constant)
            if element is not None and is_neutral(element) and other.type == operation.outs[0]:
                return other
        return None

    return identity


def _transpose(operation: Operation, ins: tuple[Value, ...], uniform: Uniform) -> Value | None:
    permutation = operation.params["permutation"]
    return ins[0] if list(permutation) == sorted(permutation) else None


def _reshape(operation: Operation, ins: tuple[Value, ...], uniform: Uniform) -> Value | None:
    in_order = operation.params.get("dimensions") is None
    return _same_type(operation, ins, uniform) if in_order else None


def _is(number: int) -> Callable[[Any], bool]:
    return lambda element: element == number


def _all_ones(element: Any) -> bool:
    return np.invert(element) == 0


IDENTITIES: dict[str, Identity] = {
    "select_n": _select,
    "convert_element_type": _same_type,
    "broadcast_in_dim": _same_type,
    "slice": _same_type,
    "dynamic_slice": _same_type,
    "concatenate": _same_type,
    "reshape": _reshape,
    "transpose": _transpose,
    "add": _neutral(_is(0), "iu"),
    "sub": _neutral(_is(0), "iu", either_side=False),
    "mul": _neutral(_is(1), "iu"),
    "div": _neutral(_is(1), "iu", either_side=False),
    "and": _neutral(_all_ones, "biu", idempotent=True),
    "or": _neutral(_is(0), "biu", idempotent=True),
    "xor": _neutral(_is(0), "biu"),
    "shift_left": _neutral(_is(0), "iu", either_side=False),
    "shift_right_logical": _neutral(_is(0), "iu", either_side=False),
    "shift_right_arithmetic": _neutral(_is(0), "iu", either_side=False),
}
