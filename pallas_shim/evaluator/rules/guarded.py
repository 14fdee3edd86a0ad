"""Guarded operations on floats: those whose bits `dispatch/exact.py` can't tell from a jaxpr.

Each computes its result as NumPy does, and raises `Inexact` if XLA's may have other bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from pallas_shim.evaluator.program import Array, Types
from pallas_shim.evaluator.registry import impl_rule
from pallas_shim.refusal import Inexact


@impl_rule("guarded")
def _guarded(
    ins: Types, outs: Types, operation: str, known: tuple[int, ...], chain: bool, fused: bool
) -> Callable[..., Any]:
    """The callable of a guarded operation.

    Args:
      operation: the name of a primitive, or "normal", which returns its operand.
      known: the operands that XLA may know when it compiles.
      chain: another operand was made by the same operation with a known number.
      fused: the result may be added to something.
    """
    if operation == "normal":
        return _normal
    compute = _COMPUTE[operation]

    def run(*operands: Array) -> Array:
        if operation == "square":
            operands *= 2
        result = compute(*operands)
        given: Any = operands[known[0]] if known else None
        if len(known) == len(operands):
            # XLA folds it to a constant, and doesn't flush subnormal numbers then.
            _require(not any(map(_any_subnormal, (*operands, result))))
        elif compute is not np.add and given is not None and (np.abs(given) == 1).any():
            # x * 1 is x for XLA, and a subnormal number isn't flushed then.
            _require(not any(map(_any_subnormal, operands)))
        if compute is np.divide:
            _require(_are_powers_of_two(operands[1]))
        elif compute is np.multiply:
            _require(not chain or bool((given == 1).all()))
            _require(not fused or _is_exact(result, operands))
        else:
            _require(not chain or bool((given == 0).all()))
            # x + 0 is x for XLA, but -0.0 + 0.0 is 0.0.
            _require(bool(np.all(given)) or bool(np.all(result)))
        return result

    return run


_COMPUTE = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "square": np.multiply,
    "div": np.divide,
}


def _normal(x: Array) -> Array:
    _require(not _any_subnormal(x))
    return x


def _require(defined: bool) -> None:
    if not defined:
        raise Inexact("XLA may round these numbers in another way")


def _any_subnormal(x: Array) -> bool:
    # Compared as integers, since the program runs with subnormal numbers taken for zeros.
    bits = np.asarray(x).view(f"u{x.dtype.itemsize}")
    magnitude = bits << bits.dtype.type(1)  # without the sign
    least_normal = bits.dtype.type(2 << ml_dtypes.finfo(x.dtype).nmant)
    return bool(((magnitude != 0) & (magnitude < least_normal)).any())


def _are_powers_of_two(x: Array) -> bool:
    mantissa, _ = np.frexp(np.abs(x))
    with_reciprocal = (np.abs(x) >= 2.0**-100) & (np.abs(x) <= 2.0**100)
    return bool(((mantissa == 0.5) & with_reciprocal).all())


def _is_exact(product: Array, operands: tuple[Array, ...]) -> bool:
    """Whether a product of float32 numbers wasn't rounded. Those of float64 are taken for
    rounded."""
    if product.dtype != np.float32:
        return False
    wide = np.multiply(*operands, dtype=np.float64)
    return bool(((wide == product) | (product != product)).all())
