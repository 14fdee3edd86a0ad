"""Regions that wait, as generators. The parts that don't wait run as ordinary steps.

Each function here takes an instruction, and makes the generator function that runs it on a frame
and yields where it has to wait. The functions mirror the structured steps of execute.py. They get
the preparation, which assigns slots to values.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from typing import Any

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator import memory, progress
from pallas_shim.evaluator.frames import (
    Frame,
    Step,
    Steps,
    blame,
    moves,
    note_cell,
    row_of,
    run_steps,
)
from pallas_shim.evaluator.machine import order, scheduler
from pallas_shim.evaluator.machine.operations import (
    AWAIT,
    MEET,
    PASS_BY,
    PROGRAMS,
    TURN,
)
from pallas_shim.evaluator.program import Instruction, Region

Waiting = Callable[[Frame], Generator[scheduler.Request, Any, None]]


def waits(instruction: Instruction) -> bool:
    """Whether an instruction of a program, or one inside it, may wait."""
    if instruction.name in (AWAIT, MEET, PASS_BY, PROGRAMS, TURN):
        return instruction.operation.fn is None
    return any(waits(inner) for region in instruction.regions for inner in region.body)


class Segments(tuple[Any, ...]):
    """The steps of a region that waits: `Steps` that don't wait, and `Waiting` steps between."""

    def __new__(cls, pairs: Iterable[tuple[Any, Instruction]], waiting: Collection[int]) -> Any:
        """``waiting``: the positions of the pairs whose step is `Waiting`."""
        parts: list[Any] = []
        numbered = enumerate(pairs)
        for is_waiting, group in itertools.groupby(numbered, lambda pair: pair[0] in waiting):
            members = [pair for _, pair in group]
            parts += members if is_waiting else [Steps(members)]
        return super().__new__(cls, parts)


def run(segments: Steps | Segments, f: Frame) -> Generator[scheduler.Request, Any, None]:
    """Runs a region's steps, and yields where one has to wait."""
    if type(segments) is Steps:
        run_steps(segments, f)
        return
    part: Any
    for part in segments:
        if type(part) is Steps:
            run_steps(part, f)
        else:
            step, instruction = part
            try:
                yield from step(f)
            except (Exception, KeyboardInterrupt) as error:
                progress.abandon()
                blame(error, instruction)
                raise


# -- structured operations ------------------------------------------------------------------


def _scan(prepare: Any, instruction: Instruction) -> Waiting:
    params = instruction.operation.params
    length, reverse, num_carry = params["length"], params["reverse"], params["num_carry"]
    ins = [prepare.slot(v) for v in instruction.ins]
    outs = [prepare.slot(v) for v in instruction.outs]
    (region,) = instruction.regions
    at, steps, results = prepare.region(region)
    begin = moves(ins[:num_carry], at[:num_carry])
    go_on = moves(results[:num_carry], at[:num_carry])
    carried = tuple(zip(outs[:num_carry], at[:num_carry], strict=True))
    taken, row = ins[num_carry:], row_of(at[num_carry:])
    made = tuple(zip(outs[num_carry:], results[num_carry:], strict=True))
    made_types = [v.type for v in instruction.outs[num_carry:]]
    rounds = range(length - 1, -1, -1) if reverse else range(length)

    def step(f: Frame) -> Any:
        begin(f)
        xs = [f[i] for i in taken]
        ys = [np.empty(t.shape, t.dtype) for t in made_types]
        for i in rounds:
            f[row] = [x[i] for x in xs]
            yield from run(steps, f)
            for y, (_, slot) in zip(ys, made, strict=True):
                y[i] = f[slot]
            go_on(f)
        for out, slot in carried:
            f[out] = f[slot]
        for y, (out, _) in zip(ys, made, strict=True):
            f[out] = y

    return step


def _while(prepare: Any, instruction: Instruction) -> Waiting:
    ins = [prepare.slot(v) for v in instruction.ins]
    outs = [prepare.slot(v) for v in instruction.outs]
    condition, body = instruction.regions
    condition_at, condition_steps, (going,) = prepare.region(condition)
    body_at, body_steps, body_results = prepare.region(body)
    begin = moves(ins, condition_at)
    enter = moves(condition_at, body_at)
    repeat = moves(body_results, condition_at)
    carried = tuple(zip(outs, condition_at, strict=True))

    def step(f: Frame) -> Any:
        begin(f)
        while True:
            yield from run(condition_steps, f)
            if not f[going]:
                break
            enter(f)
            yield from run(body_steps, f)
            repeat(f)
        for out, slot in carried:
            f[out] = f[slot]

    return step


def _switch(prepare: Any, instruction: Instruction) -> Waiting:
    (index,) = [prepare.slot(v) for v in instruction.ins]
    outs = [prepare.slot(v) for v in instruction.outs]
    branches = []
    for region in instruction.regions:
        _, steps, results = prepare.region(region)
        branches.append((steps, tuple(zip(outs, results, strict=True))))
    last = len(branches) - 1

    def step(f: Frame) -> Any:
        steps, results = branches[min(max(int(f[index]), 0), last)]
        yield from run(steps, f)
        for out, slot in results:
            f[out] = f[slot]

    return step


def _grid(prepare: Any, instruction: Instruction) -> Waiting:
    sizes = [prepare.slot(v) for v in instruction.ins]
    (region,) = instruction.regions
    at, steps, _ = prepare.region(region)
    cells, name = row_of(at), instruction.operation.params["name"]

    def step(f: Frame) -> Any:
        bounds = [int(f[slot]) for slot in sizes]
        cell: Sequence[Any] | None = None
        try:
            for cell in progress.over_grid(name, bounds):
                f[cells] = cell
                yield from run(steps, f)
        except (Exception, KeyboardInterrupt) as error:
            if cell is not None:
                note_cell(error, instruction, cell)
            raise

    return step


# -- waits ----------------------------------------------------------------------------------


def _source(instruction: Instruction) -> Callable[[], str | None]:
    return lambda: jax_compat.user_source(instruction.source)


def _await(prepare: Any, instruction: Instruction) -> Waiting:
    """ins: a ref of semaphores, the count, the leaves of the path, and the memory that other
    programs may change meanwhile."""
    params = instruction.operation.params
    ref_type, path = instruction.ins[0].ref, params["path"]
    view = memory.viewer(ref_type.shape, ref_type.dtype, path)
    ref, value, *leaves = [prepare.slot(v) for v in instruction.ins[: 2 + params["num_leaves"]]]
    decrement, name, source = params["decrement"], params["semaphore"], _source(instruction)

    def step(f: Frame) -> Any:
        at = view(f[ref], *[f[leaf] for leaf in leaves])
        needed = int(f[value])
        if at[()] < needed:
            yield scheduler.Count(source, name, lambda: int(at[()]), needed, address_of(at))
        if decrement:
            at[...] -= needed
        order.current().pass_by()

    return step


def _turn(prepare: Any, instruction: Instruction) -> Waiting:
    """ins: the memory that other programs may change."""
    source = _source(instruction)

    def step(f: Frame) -> Any:
        yield scheduler.TurnRequest(source)

    return step


def _pass_by(prepare: Any, instruction: Instruction) -> Waiting:
    """ins: the memory that other programs may change."""
    source = _source(instruction)

    def step(f: Frame) -> Any:
        yield scheduler.YieldPoint(source)

    return step


def _meet(prepare: Any, instruction: Instruction) -> Waiting:
    """ins: the program's number, what it brings, and the memory that others may change."""
    params = instruction.operation.params
    number, *brought = [prepare.slot(v) for v in instruction.ins[: 1 + params["num_brought"]]]
    outs = [prepare.slot(v) for v in instruction.outs]
    groups, names, combine = params["groups"], params["names"], params["combine"]
    name, key, patient = params["name"], params["key"], params["patient"]
    source = _source(instruction)

    def step(f: Frame) -> Any:
        program = int(f[number])
        group, rank = groups[program]
        members = [names[member] for member in group]
        taken = yield scheduler.Meet(
            source, name, (key, group), rank, members, [f[slot] for slot in brought], combine,
            patient,
        )  # fmt: skip
        for out, result in zip(outs, taken or (), strict=bool(taken)):
            f[out] = result

    return step


# -- copies that happen later -------------------------------------------------------------------


def address_of(semaphore: np.ndarray) -> int:
    """What identifies a semaphore, given the view of its count."""
    return int(semaphore.__array_interface__["data"][0])


def copy_later(prepare: Any, instruction: Instruction) -> Step:
    """ins: for each step of the copy the semaphore to which it adds and the leaves of the path.
    regions: the steps. They run on the frame as it is when the copy starts."""
    paths, values = instruction.operation.params["semaphores"], list(instruction.ins)
    steps: list[Any] = []
    semaphores: list[Any] = []
    for region, entry in zip(instruction.regions, paths, strict=True):
        steps.append(prepare.region(region)[1])
        if entry is None:
            semaphores.append(None)
            continue
        path, count = entry
        ref, *leaves = (prepare.slot(values.pop(0)) for _ in range(1 + count))
        type = instruction.ins[len(instruction.ins) - len(values) - 1 - count].ref
        semaphores.append((memory.viewer(type.shape, type.dtype, path), ref, leaves))

    def step(f: Frame) -> None:
        frame = f.copy()
        taken = []
        for body, semaphore in zip(steps, semaphores, strict=True):
            address = None
            if semaphore is not None:
                view, ref, leaves = semaphore
                address = address_of(view(f[ref], *[f[leaf] for leaf in leaves]))
            taken.append(order.TimedStep(functools.partial(run_steps, body, frame), address))
        order.current().start(order.CopyUnderWay(taken))

    return step


# -- programs -------------------------------------------------------------------------------


def _make_programs(
    prepare: Any, instruction: Instruction
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns ``start(f)``, which gives the names and generators of the programs and their frames,
    and ``end(f, frames)``, which joins the programs' results."""
    params = instruction.operation.params
    outer, *ins = [prepare.slot(v) for v in instruction.ins]
    outs = [prepare.slot(v) for v in instruction.outs]
    (region,) = instruction.regions
    at, steps, results = prepare.region_of_program(region)
    row = row_of(at)
    count, coordinates, names = params["count"], params["coordinates"], params["names"]
    present = [n for n in range(count) if n not in params["missing"]]
    splits, joins = params["splits"], params["joins"]
    types = [v.type for v in instruction.outs]
    keeps = [v in prepare.kept for v in instruction.outs]

    def start(f: Frame) -> Any:
        operands = [f[slot] for slot in ins]
        first = int(f[outer]) * count
        programs, frames = [], []
        for n in present:
            frame = f.copy()
            frame[row] = [
                np.int32(first + n),
                *coordinates[n],
                *[
                    x[n] if type(x) is list else x[split[n]]
                    for x, split in zip(operands, splits, strict=True)
                ],
            ]
            frames.append(frame)
            programs.append((names[first + n], run(steps, frame)))
        return programs, frames

    def end(f: Frame, frames: Sequence[Frame]) -> None:
        for out, slot, join, type_, keep in zip(outs, results, joins, types, keeps, strict=True):
            arrays = [frame[slot] for frame in frames]
            if keep:
                f[out] = arrays
                continue
            whole = np.empty(type_.shape, type_.dtype)
            for key, array in zip(join, arrays, strict=True):
                if key is not None:
                    whole[key] = array
            f[out] = whole

    return start, end


def programs(prepare: Any, instruction: Instruction) -> Step:
    """ins: the number of the enclosing program, then the operands. Region params: a program's
    number, its coordinates, its parts of the operands."""
    start, end = _make_programs(prepare, instruction)

    def step(f: Frame) -> None:
        started, frames = start(f)
        scheduler.run_programs(started, order.current())
        end(f, frames)

    return step


def _programs_of_program(prepare: Any, instruction: Instruction) -> Waiting:
    start, end = _make_programs(prepare, instruction)
    source = _source(instruction)

    def step(f: Frame) -> Any:
        started, frames = start(f)
        yield scheduler.Spawn(source, started)
        end(f, frames)

    return step


WAITING: dict[str, Callable[[Any, Instruction], Waiting]] = {
    "scan": _scan,
    "while": _while,
    "switch": _switch,
    "grid": _grid,
    AWAIT: _await,
    MEET: _meet,
    PASS_BY: _pass_by,
    TURN: _turn,
    PROGRAMS: _programs_of_program,
}


def holds_programs(region: Region) -> bool:
    return any(i.name == PROGRAMS for i in region.walk())
