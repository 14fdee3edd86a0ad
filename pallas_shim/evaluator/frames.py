"""Frames, and the closures that run on them.

A frame is a flat list with a slot for each value of a program. A step is a closure that reads and
writes slots.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Self

from pallas_shim import jax_compat
from pallas_shim.evaluator import progress
from pallas_shim.evaluator.call_stack import with_room
from pallas_shim.evaluator.program import CELLS, Instruction

Frame = list[Any]
Step = Callable[[Frame], None]


class Steps(tuple[Step, ...]):
    """Closures in the order in which they run, each with the instruction that it came from."""

    instructions: tuple[Instruction, ...]

    def __new__(cls, pairs: Iterable[tuple[Step, Instruction]]) -> Self:
        pairs = tuple(pairs)
        self = super().__new__(cls, [step for step, _ in pairs])
        self.instructions = tuple([instruction for _, instruction in pairs])
        return self


def run_steps(steps: Steps, frame: Frame) -> None:
    remaining: Any = iter(steps)
    try:
        for step in remaining:
            step(frame)
    except BaseException as error:
        progress.abandon()
        # The iterator knows how far the run has come, so the loop itself keeps no count.
        at = len(steps) - remaining.__length_hint__() - 1
        if steps:
            blame(error, steps.instructions[max(at, 0)])
        raise


def run_with_room(steps: Steps, frame: Frame) -> None:
    with_room(run_steps, steps, frame)


# A chunk of stack costs 30 to 50 microseconds to reserve, and pays from this many steps on.
# Without it, one run in thirty or so stands at the end of a chunk, and each of its steps takes 10
# microseconds more.
MANY_STEPS = 200


def blame(error: BaseException, instruction: Instruction) -> None:
    """Adds a note to the error that names the instruction; only the innermost one does."""
    if getattr(error, "_pallas_shim_blamed", False):
        return
    where = jax_compat.user_source(instruction.source)
    what = "raised by" if isinstance(error, Exception) else "interrupted in"  # as by Ctrl-C
    error.add_note(f"{what} {instruction.name}" + (f" at {where}" if where else ""))
    try:
        error._pallas_shim_blamed = True  # type: ignore[attr-defined]
    except AttributeError:
        pass  # an exception with slots gets a note from each enclosing loop


def loop_name(loop: Instruction) -> str:
    """The name by which the user knows a loop."""
    return f"loop at {jax_compat.user_source(loop.source) or 'an unknown line'}"


def note_cell(error: BaseException, grid: Instruction, indices: Sequence[Any]) -> None:
    """Adds a note to the error that names the cell of a kernel's grid.

    ``indices``: those of the instruction. If cells were batched, one stands for a chunk of cells
    along its axis, and there may be no index for an axis.
    """
    cells = grid.operation.params.get(CELLS)
    if cells is None:
        return  # a loop
    name = grid.operation.params["name"]
    single = [(axis, 0, 1) for axis in range(len(cells))]
    if list(cells) == single:
        at = tuple([int(index) for index in indices])
        error.add_note(f"in grid cell {at} of the kernel {name}")
        return
    along = []
    for (axis, first, count), index in zip(cells, indices, strict=True):
        low = first + int(index) * count
        along.append(f"{low} to {low + count - 1}" if count > 1 else str(low))
        along[-1] += f" along axis {axis}"
    error.add_note(f"in the grid cells {', '.join(along)} of the kernel {name}")


def row_of(slots: Sequence[int]) -> slice:
    """The slots of a region's parameters."""
    return slice(slots[0], slots[-1] + 1) if slots else slice(0)


def moves(sources: Sequence[int], targets: Sequence[int]) -> Step:
    """Copies slots to the slots of a region's parameters, all at once."""
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


# -- the slots of structured operations -----------------------------------------------------------


class ScanSlots(NamedTuple):
    """How a scan moves values. Operands: carry, xs. Region: carry, x; its results: carry, ys.

    ``begin`` and ``go_on`` give the region its carry, at first and after each round. ``taken`` are
    the slots of xs, and ``row`` those of a round's x. ``made``: for each of ys, the slots of the
    stack and of the round's part of it, whose types are ``types``. ``order``: the rounds' numbers.
    ``carried``: for each result of the carry, its slot and the region's.
    """

    begin: Step
    steps: Any
    go_on: Step
    taken: list[int]
    row: slice
    made: tuple[tuple[int, int], ...]
    types: list[Any]
    order: range
    carried: tuple[tuple[int, int], ...]


def scan_slots(prepare: Any, instruction: Instruction) -> ScanSlots:
    params = instruction.operation.params
    length, count = params["length"], params["num_carry"]
    ins = [prepare.slot(v) for v in instruction.ins]
    outs = [prepare.slot(v) for v in instruction.outs]
    (region,) = instruction.regions
    at, steps, results = prepare.region(region)
    return ScanSlots(
        begin=moves(ins[:count], at[:count]),
        steps=steps,
        go_on=moves(results[:count], at[:count]),
        taken=ins[count:],
        row=row_of(at[count:]),
        made=tuple(zip(outs[count:], results[count:], strict=True)),
        types=[v.type for v in instruction.outs[count:]],
        order=range(length - 1, -1, -1) if params["reverse"] else range(length),
        carried=tuple(zip(outs[:count], at[:count], strict=True)),
    )


class WhileSlots(NamedTuple):
    """How a while loop moves its carry, which is its operands and results.

    ``begin``, ``enter`` and ``repeat`` give it to the condition, to the body, and to the condition
    again. ``going`` is the slot of the condition's result. ``carried``: for each result of the
    loop, its slot and the condition's.
    """

    begin: Step
    condition: Any
    going: int
    enter: Step
    body: Any
    repeat: Step
    carried: tuple[tuple[int, int], ...]


def while_slots(prepare: Any, instruction: Instruction) -> WhileSlots:
    ins = [prepare.slot(v) for v in instruction.ins]
    outs = [prepare.slot(v) for v in instruction.outs]
    condition, body = instruction.regions
    condition_at, condition_steps, (going,) = prepare.region(condition)
    body_at, body_steps, body_results = prepare.region(body)
    return WhileSlots(
        begin=moves(ins, condition_at),
        condition=condition_steps,
        going=going,
        enter=moves(condition_at, body_at),
        body=body_steps,
        repeat=moves(body_results, condition_at),
        carried=tuple(zip(outs, condition_at, strict=True)),
    )


Branches = list[tuple[Any, tuple[tuple[int, int], ...]]]


def switch_slots(prepare: Any, instruction: Instruction) -> tuple[int, Branches]:
    """The slot of a switch's index. For each branch, its steps, and for each result of the switch
    its slot and the branch's."""
    (index,) = [prepare.slot(v) for v in instruction.ins]
    outs = [prepare.slot(v) for v in instruction.outs]
    branches: Branches = []
    for region in instruction.regions:
        _, steps, results = prepare.region(region)
        branches.append((steps, tuple(zip(outs, results, strict=True))))
    return index, branches
