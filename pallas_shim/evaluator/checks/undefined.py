"""Undefined elements: what finds reads of them, follows them, and replaces them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pallas_shim.evaluator.checks.place import AnyPlace
from pallas_shim.evaluator.checks.run import AccessSite, Activation
from pallas_shim.evaluator.checks.shadow import CODES, DEFINED, NEVER, Shadow
from pallas_shim.evaluator.findings import Finding
from pallas_shim.evaluator.program import Array


def check(site: AccessSite, place: AnyPlace) -> Callable[..., tuple[()]]:
    """Notes a read of undefined elements as a candidate."""

    def run(activation: Activation, shadow: Shadow, *leaves: Array) -> tuple[()]:
        if shadow.defined:
            return ()
        codes = place.read(shadow.entries(), leaves)
        if not codes.any():
            if place.whole:
                shadow.settle()
            return ()
        if site.number not in activation.run.candidates:
            text = place.text(leaves)
            activation.run.candidates[site.number] = _finding(activation, site, codes, text)
        return ()

    return run


def _finding(activation: Activation, site: AccessSite, codes: np.ndarray, text: str) -> Finding:
    code = int(codes.max())
    kind, rule, why, advice = CODES[code]
    wrong = np.argwhere(codes == code)
    first = ", ".join(map(str, wrong[0]))
    message = (
        f"{site.what} {site.ref or 'a ref'} where it is undefined ({len(wrong)} of {codes.size} "
        f"elements read, the first at [{first}] of these): {why}"
    )
    return activation.finding(
        kind, rule, message, advice, site, activation.access(site, text)
    )


def unwritten(activation: Activation, site: AccessSite, codes: np.ndarray) -> Finding:
    """The candidate for a result with undefined elements. ``codes`` are those of the array."""
    wrong = np.argwhere(codes != DEFINED)
    code = int(codes[tuple(wrong[0])])
    kind, _, why, _ = CODES[code]
    first = ", ".join(map(str, wrong[0]))
    what = "nothing was written to them" if code == NEVER else why
    message = (
        f"{site.what} {site.ref} with {len(wrong)} of {codes.size} elements undefined, the first "
        f"at [{first}]: {what}"
    )
    advice = "Write all elements of each block of the output, and give each block a cell"
    return activation.finding(
        kind, "never-written" if code == NEVER else CODES[code][1], message, advice, site,
        site.access(f"[{first}]"),
    )  # fmt: skip


def disturb(site: AccessSite, place: AnyPlace, dtype: np.dtype) -> Callable[..., Any]:
    """Replaces undefined elements of a loaded value if the run asks for it."""

    def run(value: Array, activation: Activation, shadow: Shadow, *leaves: Array) -> Array:
        if shadow.defined or not activation.run.disturbs(site):
            return value
        codes = place.read(shadow.entries(), leaves)
        if place.packed:
            codes = codes.max(-1)
        return replaced(np.asarray(value), codes, activation.run.garbage)[()]

    return run


def replaced(value: np.ndarray, codes: np.ndarray, garbage: int) -> np.ndarray:
    """The array with other elements where codes are set."""
    wrong = np.broadcast_to(codes != DEFINED, value.shape)
    if value.dtype.kind == "b":
        return value ^ wrong
    bits = value.dtype.itemsize * 8
    other = np.asarray(garbage % (1 << min(bits - 1, 14)) if bits > 4 else 1)
    other = (other if value.dtype.kind in "iu" else -other).astype(value.dtype)
    third = np.asarray(2 if bits > 2 else 0).astype(value.dtype)
    with np.errstate(all="ignore"):
        return np.where(wrong, np.where(value == other, third, other), value)


def write_all(shadow: Shadow) -> tuple[()]:
    shadow.reset(DEFINED)
    return ()


def write(place: AnyPlace) -> Callable[..., tuple[()]]:
    """Notes that elements become defined."""

    def run(shadow: Shadow, *leaves: Array) -> tuple[()]:
        if not shadow.defined:
            place.write(shadow.entries(), leaves, DEFINED)
        return ()

    return run


def copy(source: AnyPlace, target: AnyPlace, count: int) -> Callable[..., tuple[()]]:
    """Copies what is undefined, as a DMA copies elements. The first leaves are the source's."""

    def run(given: Shadow, shadow: Shadow, *leaves: Array) -> tuple[()]:
        if given.defined:
            if not shadow.defined:
                target.write(shadow.entries(), leaves[count:], DEFINED)
            return ()
        codes = source.read(given.entries(), leaves[:count])
        if source.packed:
            codes = codes.max(-1)
        if shadow.defined and not codes.any():
            return ()
        entries = shadow.entries()
        shadow.defined = False
        if codes.size == 1:
            codes = codes.reshape(())
        elif target.packed:
            codes = codes[..., None]
        target.write(entries, leaves[count:], codes)
        return ()

    return run
