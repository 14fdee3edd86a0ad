"""What the checks of blocks say and do while a kernel runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator.checks.cuts import Cut, Shared, Starts
from pallas_shim.evaluator.checks.run import AccessSite, Activation
from pallas_shim.evaluator.checks.shadow import Window
from pallas_shim.evaluator.checks.undefined import replaced
from pallas_shim.evaluator.findings import Finding
from pallas_shim.evaluator.program import Array

Cell = tuple[int, ...]


def move(cut: Cut, site: AccessSite, owned: bool) -> Callable[..., tuple[()]]:
    """Moves a window to the block of a cell. ``owned``: no two cells that may run at the same time
    may have the same block."""

    def run(activation: Activation, window: Window, *numbers: Array) -> tuple[()]:
        starts = cut.starts(numbers)
        window.move(starts)
        if owned:
            turn, cell = activation.turn, activation.cell or ()
            first = window.owners.setdefault(starts, (turn, cell))
            if first[0] != turn:
                window.shared.add(starts)
                block = Shared(starts, first[1], cell)
                candidates = activation.run.candidates
                candidates.setdefault(site.number, shared(site, cut, block, activation))
        return ()

    return run


def check_inside(cut: Cut, site: AccessSite) -> Callable[..., tuple[()]]:
    """The check that a block isn't wholly outside its array."""

    def check(activation: Activation, *numbers: Array) -> tuple[()]:
        starts = cut.starts(numbers)
        axis = cut.axis_outside(starts)
        if axis is not None:
            cell = activation.cell or ()
            activation.run.report(outside(site, cut, axis, starts, cell, activation))
        return ()

    return check


def outside(
    site: AccessSite, cut: Cut, axis: int, starts: Starts, cell: Cell, activation: Activation
) -> Finding:
    scale = cut.scales[axis]
    number = starts[axis] // scale if scale else 0
    message = (
        f"has in cell {cell} a block of {site.ref} outside the array: along dimension {axis} the "
        f"index map returns {number}, where the array of shape {cut.shape} is cut into blocks of "
        f"{cut.sizes}"
    )
    advice = "Keep the index map inside the array"
    if scale > 1 and 0 <= number < cut.shape[axis]:
        advice = "Index maps return block numbers, not elements: divide by the block's size"
    access = site.access(cut.text(starts), cell)
    return activation.finding("bounds", "block-outside", message, advice, site, access)


def shared(site: AccessSite, cut: Cut, block: Shared, activation: Activation) -> Finding:
    """The finding of a block that two cells write. It is a fault if the result is used."""
    starts, one, other = block
    message = (
        f"has the block {cut.text(starts)} of {site.ref} in cells {one} and {other}, which differ "
        "along a parallel axis and may run at the same time: each writes the whole block"
    )
    advice = (
        "Declare the axis \"arbitrary\", or give each place along it a block of its own and "
        "combine the blocks afterwards"
    )
    accesses = [site.access(cut.text(starts), cell) for cell in (other, one)]
    return activation.finding("races", "block-of-two", message, advice, site, *accesses)


def too_early(
    site: AccessSite,
    output: AccessSite,
    text: str,
    cell: Cell,
    writer: Cell,
    activation: Activation,
) -> Finding:
    message = (
        f"reads in cell {cell} the block {text} of {site.ref}, which shares its array with "
        f"{output.ref}: a device loads the block before the block of {output.ref} that cell "
        f"{writer} writes there is written back"
    )
    advice = (
        "Give the input and the output the same index map, or let more cells pass before a block "
        "that was written is read"
    )
    accesses = site.access(text, cell), output.access(text, writer)
    return activation.finding("blocks", "alias-disagrees", message, advice, site, *accesses)


def changes_decision(site: AccessSite) -> Callable[..., tuple[()]]:
    """The check that a store to a ref that index maps read changes nothing. The operands are the
    elements before and after."""

    def check(activation: Activation, before: Array, after: Array) -> tuple[()]:
        if not np.array_equal(before, after):
            activation.found(
                "blocks", "index-map-input-written",
                f"writes other numbers to {site.ref}, which index maps read: a device has already "
                "read them for the next cell",
                "Don't write to scalar prefetch operands; compute the numbers before the kernel",
                site,
            )  # fmt: skip
        return ()

    return check



def disturb_shared(site: AccessSite, cut: Cut, known: Sequence[Starts]) -> Callable[..., Any]:
    """Replaces the elements of blocks that several cells write, if the run asks for it. Without
    ``known`` blocks, an operand is the window that has them."""

    def disturb(value: Array, activation: Activation, *windows: Window) -> Array:
        shared = known or [starts for window in windows for starts in window.shared]
        if not shared or not activation.run.disturbs(site):
            return value
        codes = np.zeros(np.shape(value), np.uint8)
        for starts in shared:
            codes[cut.inside(starts)[0]] = 1
        return replaced(np.asarray(value), codes, activation.run.garbage)[()]

    return disturb
