"""The checks of what a kernel leaves in its results: elements that nobody wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pallas_shim.evaluator.checks import undefined
from pallas_shim.evaluator.checks.run import AccessSite, Activation
from pallas_shim.evaluator.checks.shadow import DEFINED, Shadow, Window
from pallas_shim.evaluator.program import Array, Effects, Value

if TYPE_CHECKING:
    from pallas_shim.evaluator.checks.lowering import Aspect, Checker

# The shadow of a result, or that of each program by its number.
Shadows = Shadow | Mapping[int, Shadow]


def check_result(
    checker: Checker,
    activation: Value,
    shadows: Aspect,
    site: AccessSite,
    initial: int,
    value: Value,
) -> Value:
    """Emits the check that all of a result was written, and returns the result as the program uses
    it. ``shadows``: see `Shadows`. ``initial``: the code of elements in which no block has been."""
    ins = [activation, shadows.value]
    checker.emit("output", ins, _check(site, initial, value.type.shape), shadows)
    if checker.asked.disturbing and not value.type.key_ndim:
        (value,) = checker.lowering.memory(
            "disturb", [value, *ins], [value.type], _disturb(site, initial), Effects(io=True),
            view=True,
        )  # fmt: skip
    return value


def _codes(shadows: Shadows, initial: int, shape: tuple[int, ...]) -> np.ndarray | None:
    """The codes of a result. None if all of it is defined."""
    if isinstance(shadows, Mapping):
        found = [_codes(shadow, initial, shape) for shadow in shadows.values()]
        codes = np.stack([np.zeros(shape, np.uint8) if c is None else c for c in found])
        merged = codes.max(0)
        if initial != DEFINED:  # then it is enough that one program wrote an element
            merged = np.where(codes.min(0) == DEFINED, np.uint8(DEFINED), merged)
        return merged if merged.any() else None
    if isinstance(shadows, Window):
        shadows = shadows.undefined(initial)
    if shadows.defined:
        return None
    codes = shadows.entries()
    # Whole blocks may stick out of the array.
    inner = codes[tuple(slice(0, n) for n in shape[: codes.ndim])]
    return inner if inner.any() else None


def _check(
    site: AccessSite, initial: int, shape: tuple[int, ...]
) -> Callable[..., tuple[()]]:
    def check(activation: Activation, shadows: Shadows) -> tuple[()]:
        activation.cell = None
        codes = _codes(shadows, initial, shape)
        if codes is not None:
            finding = undefined.unwritten(activation, site, codes)
            activation.run.candidates[site.number] = finding
        return ()

    return check


def _disturb(site: AccessSite, initial: int) -> Callable[..., Any]:
    def disturb(value: Array, activation: Activation, shadows: Shadows) -> Array:
        if not activation.run.disturbs(site):
            return value
        codes = _codes(shadows, initial, np.shape(value))
        if codes is None:
            return value
        return undefined.replaced(np.asarray(value), codes, activation.run.garbage)[()]

    return disturb
