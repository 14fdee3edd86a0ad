"""Shadows: what is known of each element of a piece of memory while a program runs.

A *code* says why an element is undefined. Whole memory that is defined, or undefined for one
reason, has no array of codes.
"""

from __future__ import annotations

import math

import numpy as np

from pallas_shim.evaluator.checks.cuts import Cut, Starts

DEFINED, NEVER, LOST, PADDING, OTHER_CELL = range(5)

# Findings of undefined elements: kind and rule, what the elements are, and what to do.
CODES = {
    NEVER: (
        "uninitialized", "read-before-write", "nothing was written to them before",
        "Write all elements before they are read, for instance in the first cell that has them",
    ),
    LOST: (
        "blocks", "revisited-block", "the block was written in an earlier visit, and a device "
        "doesn't load an output's block again",
        "Order the grid so that visits of a block follow one another, sum in scratch memory, or "
        "ask for pl.Buffered(1, revisit=pl.RevisitMode.ANY)",
    ),
    PADDING: (
        "uninitialized", "outside-array", "they lie outside the array, in the part of its last "
        "block that a device leaves undefined",
        "Mask them, as with jnp.where and the array's size, before they count",
    ),
    OTHER_CELL: (
        "races", "carried-over-parallel", "only cells at other places along parallel axes of the "
        "grid wrote to them, which another core may run",
        "Write them in each place along the parallel axes, or declare these axes \"arbitrary\"",
    ),
}  # fmt: skip


class Shadow:
    """The shadow of one piece of memory.

    ``defined``: all elements are. Otherwise ``codes`` has each element's code, or is None where
    ``code`` is that of all. ``turn``: the place along the grid's parallel axes of the last cell.
    """

    __slots__ = ("shape", "defined", "code", "codes", "turn")

    def __init__(self, shape: tuple[int, ...], code: int = NEVER) -> None:
        self.shape = shape
        self.codes: np.ndarray | None = None
        self.turn: tuple[int, ...] | None = None
        self.reset(code)

    def reset(self, code: int) -> None:
        """Gives all elements this code."""
        self.codes = None
        self.code = code
        self.defined = code == DEFINED

    def entries(self) -> np.ndarray:
        """The codes, which the caller may change if ``defined`` is false."""
        if self.codes is None:
            self.codes = np.full(self.shape, self.code, np.uint8)
        return self.codes

    def undefine(self, code: int) -> None:
        """Gives this code to all elements that are defined."""
        if self.codes is None:
            if self.defined:
                self.reset(code)
            return
        self.codes[self.codes == DEFINED] = code
        self.defined = False

    def settle(self) -> None:
        """Notes if all elements have become defined."""
        if self.codes is not None and not self.codes.any():
            self.reset(DEFINED)


class Window(Shadow):
    """The shadow of a block of an input or output, which moves over the array from cell to cell.

    A device copies an input's block when the index map moves on, and writes an output's back.
    ``past`` has, for each place where an output's block has been, the codes that it had when it
    moved on, None if all were defined. ``reloads``: an output's block is loaded when it comes
    back. ``owners``: for each such place the turn of the first
    cell that was there (see `Activation`), and the cell. ``shared``: the places where cells of
    several turns have been.
    """

    __slots__ = ("cut", "is_output", "reloads", "now", "past", "owners", "shared")

    def __init__(
        self, shape: tuple[int, ...], cut: Cut, is_output: bool, reloads: bool = False
    ) -> None:
        super().__init__(shape)
        self.reloads = reloads
        self.cut = cut
        self.is_output = is_output
        self.now: Starts | None = None
        self.past: dict[Starts, np.ndarray | None] = {}
        self.owners: dict[Starts, tuple[int, tuple[int, ...]]] = {}
        self.shared: set[Starts] = set()

    def move(self, starts: Starts) -> bool:
        """Moves to a block; says whether it is another than before."""
        if starts == self.now:
            return False
        if self.is_output:
            self.leave()
            if self.reloads and starts in self.past:
                codes = self.past[starts]
                self.reset(DEFINED)
                if codes is not None:
                    self.codes, self.defined = codes.copy(), False
            else:
                self.reset(LOST if starts in self.past else NEVER)
        else:
            self.reset(DEFINED)
            if not self.cut.is_inside(starts) and self.cut.axis_outside(starts) is None:
                codes = np.full(self.shape, PADDING, np.uint8)
                codes[self.cut.inside(starts)[1]] = DEFINED
                self.codes, self.defined = codes, False
        self.now = starts
        return True

    def leave(self) -> None:
        """Writes the block back."""
        if self.now is None:
            return
        codes = None
        if not self.defined:
            self.settle()
        if not self.defined:
            codes = self.entries().copy()
        self.past.pop(self.now, None)  # later visits come last
        self.past[self.now] = codes

    def undefined(self, initial: int) -> Shadow:
        """The shadow of the array after all blocks are written back. ``initial``: the code of
        elements in which no block has been."""
        self.leave()
        self.now = None
        cut = self.cut
        result = Shadow(cut.shape, initial)
        partly = [starts for starts, codes in self.past.items() if codes is not None]
        if initial == DEFINED and not partly:
            return result
        counts = [
            -(-dim // size) if scale == size and size else 0
            for dim, size, scale in zip(cut.shape, cut.sizes, cut.scales, strict=True)
        ]
        if not partly and len(self.past) == math.prod(counts) and all(
            cut.axis_outside(starts) is None for starts in self.past
        ):
            result.reset(DEFINED)
            return result
        array = np.full(cut.shape, initial, np.uint8)
        for starts, codes in self.past.items():
            of_array, of_block = cut.inside(starts)
            array[of_array] = DEFINED if codes is None else cut.spread(codes[of_block])
        result.codes, result.defined = array, not array.any()
        return result
