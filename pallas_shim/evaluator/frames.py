"""Frames, and the closures that run on them.

A frame is a flat list with a slot for each value of a program. A step is a closure that reads and
writes slots.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

from pallas_shim import jax_compat
from pallas_shim.evaluator.call_stack import with_room
from pallas_shim.evaluator.program import Instruction

Frame = list[Any]
Step = Callable[[Frame], None]


class Steps(tuple[Step, ...]):
    """Closures in order, and for each the instruction that it came from."""

    instructions: tuple[Instruction, ...]

    def __new__(cls, pairs: Iterable[tuple[Step, Instruction]]) -> Self:
        pairs = tuple(pairs)
        self = super().__new__(cls, (step for step, _ in pairs))
        self.instructions = tuple(instruction for _, instruction in pairs)
        return self


def run_steps(steps: Steps, frame: Frame) -> None:
    remaining: Any = iter(steps)
    try:
        for step in remaining:
            step(frame)
    except Exception as error:
        # The iterator tells the progress, so the loop itself keeps no count.
        at = len(steps) - remaining.__length_hint__() - 1
        blame(error, steps.instructions[at])
        raise


def run_with_room(steps: Steps, frame: Frame) -> None:
    with_room(run_steps, steps, frame)


# From this many steps on, room on the stack pays for its 30 to 50 microseconds. One run in thirty
# or so would stand at the end of a chunk of the stack, and each of its steps would take 10
# microseconds more.
MANY_STEPS = 200


def blame(error: Exception, instruction: Instruction) -> None:
    """Notes on the error which instruction raised it, innermost only."""
    if getattr(error, "_pallas_shim_blamed", False):
        return
    where = jax_compat.user_source(instruction.source)
    error.add_note(f"raised by {instruction.name}" + (f" at {where}" if where else ""))
    try:
        error._pallas_shim_blamed = True  # type: ignore[attr-defined]
    except AttributeError:
        pass  # an exception with slots gets a note from each enclosing loop


def row_of(slots: Sequence[int]) -> slice:
    """The slots of a region's parameters."""
    return slice(slots[0], slots[-1] + 1) if slots else slice(0)


def moves(sources: Sequence[int], targets: Sequence[int]) -> Step:
    """Copies slots to those of a region's parameters, all at once."""
    if not sources:
        return lambda f: None
    get, row = operator.itemgetter(*sources), row_of(targets)
    if len(sources) > 1:

        def move(f: Frame) -> None:
            f[row] = get(f)

        return move
    (source,), (target,) = sources, targets

    def move_one(f: Frame) -> None:
        f[target] = f[source]

    return move_one
