"""Runs a Program on a Frame of NumPy arrays.

A program is prepared once. Each value gets a slot in a flat list, the frame. Each instruction
becomes a small closure that reads and writes slots, so the run loop only calls closures. Structured
operations become closures that run their regions as Python loops and branches.
"""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator import broadcasting, codegen, progress, scalars
from pallas_shim.evaluator.analysis import induction
from pallas_shim.evaluator.analysis.liveness import dead_after
from pallas_shim.evaluator.call_stack import with_depth
from pallas_shim.evaluator.floating import as_xla
from pallas_shim.evaluator.frames import (
    MANY_STEPS,
    Frame,
    Step,
    Steps,
    loop_name,
    note_cell,
    row_of,
    run_steps,
    run_with_room,
    scan_slots,
    switch_slots,
    while_slots,
)
from pallas_shim.evaluator.heap import keep_freed_memory
from pallas_shim.evaluator.machine import operations, regions
from pallas_shim.evaluator.memory import same
from pallas_shim.evaluator.program import Instruction, Program, Region, Value

# More nested regions than this need a higher recursion limit. Each takes two or three frames on
# Python's stack.
_MANY_LEVELS = 50


class Executable:
    """A prepared program: call it with NumPy arrays, get a list of NumPy arrays.

    The results may share memory with the arguments or with each other; they must not
    be written to. Safe to call from several threads at once.

    ``emits`` says which loops become functions of their own; ``emitted`` is told the source of
    each. Arguments may be lists of parts where only the programs of a mesh take them, as
    `machine.shards.parameters` says; so are the results at the positions of ``parts``, which have
    to be among `machine.shards.results`. `machine.order.running` sets the order of programs.
    """

    def __init__(
        self,
        program: Program,
        emits: Callable[[Instruction], bool] = codegen.pays,
        emitted: Callable[[Instruction, str], None] | None = None,
        parts: Collection[int] = (),
    ) -> None:
        keep_freed_memory()
        self.program = program
        kept = {program.top.results[position] for position in parts}
        prepare = _Preparation(emits, emitted, kept, program.loops)
        top = program.top
        for param in top.params:  # which take the first slots, in order
            prepare.slot(param)
        self._params = len(top.params)
        self._steps = prepare.steps(top.body, keep=top.results)
        self._results = tuple([prepare.slot(v) for v in top.results])
        self._rest = tuple(prepare.frame[self._params :])
        self._run = run_with_room if prepare.steps_run >= MANY_STEPS else run_steps
        if prepare.deepest > _MANY_LEVELS:
            self._run = functools.partial(with_depth, prepare.deepest, self._run)

    def __call__(self, *args: np.ndarray) -> list[np.ndarray]:
        return self.run(args)

    def run(self, args: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Does the same as a call, faster, since it has no star. Subclasses override this."""
        assert len(args) == self._params
        frame = [*args, *self._rest]
        as_xla(self._run, self._steps, frame)
        return list(map(frame.__getitem__, self._results))


class _Preparation:
    """Assigns slots and makes closures. ``frame`` is the initial frame, constants set;
    ``steps_run``, about how many closures a run calls; ``deepest``, how many regions are inside
    one another."""

    def __init__(
        self,
        emits: Callable[[Instruction], bool],
        emitted: Callable[[Instruction, str], None] | None,
        kept: Collection[Value],
        loops: dict[str, types.CodeType],
    ) -> None:
        self.frame: Frame = []
        self.kept = kept  # results of programs that stay in parts
        self._in_program = False
        self.steps_run = 0.0
        self.deepest = 0
        self._depth = 0
        self._rounds = 1.0  # of what is being prepared, in a run
        self._emits = emits
        self._emitted = emitted
        self._loops = loops
        self._slots: dict[Value, int] = {}

    def slot(self, value: Value) -> int:
        slot = self._slots.get(value)
        if slot is None:
            slot = self._slots[value] = len(self.frame)
            const = value.const
            # This gives a scalar for rank 0, and the array for any other rank.
            self.frame.append(None if const is None else const[()])
        return slot

    def steps(self, body: Sequence[Instruction], keep: Sequence[Value] = ()) -> Any:
        pairs: list[tuple[Step, Instruction]] = []
        waiting: set[int] = set()
        dead = dead_after(body, keep)
        for index, instruction in enumerate(body):
            if instruction.operation.fn is same:
                self._slots[instruction.outs[0]] = self.slot(instruction.ins[0])
            else:
                if self._in_program and regions.waits(instruction):
                    waiting.add(len(pairs))
                pairs.append((self.step(instruction), instruction))
            if index in dead:
                pairs.append((_drop([self.slot(v) for v in dead[index]]), instruction))
        return regions.Segments(pairs, waiting) if waiting else Steps(pairs)

    def region(self, region: Region) -> tuple[list[int], Any, list[int]]:
        """The slots of its parameters, in a row; its steps; the slots of its results."""
        params = list(range(len(self.frame), len(self.frame) + len(region.params)))
        self.frame += [None] * len(params)
        self._slots.update(zip(region.params, params, strict=True))
        self._depth += 1
        self.deepest = max(self.deepest, self._depth)
        steps = self.steps(region.body, keep=region.results)
        self._depth -= 1
        return params, steps, [self.slot(v) for v in region.results]

    def region_of_program(self, region: Region) -> tuple[list[int], Any, list[int]]:
        """Does what `region` does, for a program that runs beside others: it may wait."""
        outer, self._in_program = self._in_program, True
        try:
            return self.region(region)
        finally:
            self._in_program = outer

    def step(self, instruction: Instruction) -> Any:
        self.steps_run += self._rounds
        structured = _STRUCTURED.get(instruction.name)
        if self._in_program and regions.waits(instruction):
            return self._within(instruction, regions.WAITING[instruction.name])
        if structured is not None and instruction.operation.fn is None:
            wanted = (
                instruction.name not in ("switch", operations.COPY, operations.PROGRAMS)
                and self._emits(instruction)
                and not any(map(regions.holds_programs, instruction.regions))
            )
            emitted = codegen.emit(instruction, self.slot, self._loops) if wanted else None
            if emitted is not None:
                if self._emitted is not None:
                    self._emitted(instruction, emitted.source)
                return _emitted(emitted)
            return self._within(instruction, structured)
        fn = scalars.function(instruction.operation)
        assert fn is not None, instruction
        fn = broadcasting.function(fn, instruction)
        ins = [self.slot(v) for v in instruction.ins]
        outs = [self.slot(v) for v in instruction.outs]
        if not outs:
            return _call_for_effect(fn, ins)
        if instruction.operation.multiple:
            return _call_multiple(fn, ins, outs)
        return _CALLS[len(ins)](fn, ins, outs[0]) if len(ins) < 4 else _call_n(fn, ins, outs[0])

    def _within(self, instruction: Instruction, structured: Callable[..., Any]) -> Any:
        """The step of a structured instruction, of whose steps so many are run as it has rounds."""
        outer = self._rounds
        self._rounds *= codegen.rounds(instruction)
        step = structured(self, instruction)
        self._rounds = outer
        return step


# -- plain instructions ---------------------------------------------------------------------


def _call_0(fn: Callable[..., Any], ins: Sequence[int], out: int) -> Step:
    def step(f: Frame) -> None:
        f[out] = fn()

    return step


def _call_1(fn: Callable[..., Any], ins: Sequence[int], out: int) -> Step:
    (a,) = ins

    def step(f: Frame) -> None:
        f[out] = fn(f[a])

    return step


def _call_2(fn: Callable[..., Any], ins: Sequence[int], out: int) -> Step:
    a, b = ins

    def step(f: Frame) -> None:
        f[out] = fn(f[a], f[b])

    return step


def _call_3(fn: Callable[..., Any], ins: Sequence[int], out: int) -> Step:
    a, b, c = ins

    def step(f: Frame) -> None:
        f[out] = fn(f[a], f[b], f[c])

    return step


_CALLS = (_call_0, _call_1, _call_2, _call_3)


def _call_n(fn: Callable[..., Any], ins: Sequence[int], out: int) -> Step:
    def step(f: Frame) -> None:
        f[out] = fn(*[f[i] for i in ins])

    return step


def _call_for_effect(fn: Callable[..., Any], ins: Sequence[int]) -> Step:
    if len(ins) == 2:
        a, b = ins
        return lambda f: fn(f[a], f[b])
    if len(ins) == 3:
        a, b, c = ins
        return lambda f: fn(f[a], f[b], f[c])
    return lambda f: fn(*[f[i] for i in ins])


def _call_multiple(fn: Callable[..., Any], ins: Sequence[int], outs: Sequence[int]) -> Step:
    def step(f: Frame) -> None:
        for out, result in zip(outs, fn(*[f[i] for i in ins]), strict=True):
            f[out] = result

    return step


def _drop(slots: Sequence[int]) -> Step:
    def step(f: Frame) -> None:
        for slot in slots:
            f[slot] = None

    return step


# -- structured operations ------------------------------------------------------------------


def _emitted(loop: codegen.Emitted) -> Step:
    run = loop.run

    def step(f: Frame) -> None:
        try:
            run(f)
        except BaseException as error:
            loop.blame(error)
            raise

    return step


def _scan(prepare: _Preparation, instruction: Instruction) -> Step:
    begin, steps, go_on, taken, row, made, types, order, carried = scan_slots(prepare, instruction)
    name = functools.partial(loop_name, instruction)
    direction, nothing = slice(None, None, order.step), itertools.repeat(())
    length = len(order)

    def step(f: Frame) -> None:
        begin(f)
        xs = [f[i][direction] for i in taken]
        ys = [np.empty(t.shape, t.dtype) for t in types]
        rounds = zip(order, zip(*xs, strict=True) if xs else nothing, strict=False)
        for i, x in progress.over_rounds(name, length, rounds):
            f[row] = x
            run_steps(steps, f)
            for y, (_, slot) in zip(ys, made, strict=True) if ys else ():
                y[i] = f[slot]
            go_on(f)
        for out, slot in carried:
            f[out] = f[slot]
        for y, (out, _) in zip(ys, made, strict=True):
            f[out] = y

    return step


def _while(prepare: _Preparation, instruction: Instruction) -> Step:
    begin, condition, going, enter, body, repeat, carried = while_slots(prepare, instruction)
    name = functools.partial(loop_name, instruction)
    counted = induction.of_while(instruction)
    counts = None if counted is None else [prepare.slot(v) for v in counted]

    def step(f: Frame) -> None:
        begin(f)
        total = None if counts is None else int(f[counts[1]]) - int(f[counts[0]])
        for _ in itertools.chain.from_iterable(progress.rounds(name, total)):
            run_steps(condition, f)
            if not f[going]:
                break
            enter(f)
            run_steps(body, f)
            repeat(f)
        for out, slot in carried:
            f[out] = f[slot]

    return step


def _switch(prepare: _Preparation, instruction: Instruction) -> Step:
    """The index is clamped to the branches."""
    index, branches = switch_slots(prepare, instruction)
    last = len(branches) - 1  # what `branch_taken` does, without a call

    def step(f: Frame) -> None:
        steps, results = branches[min(max(int(f[index]), 0), last)]
        run_steps(steps, f)
        for out, slot in results:
            f[out] = f[slot]

    return step


def _grid(prepare: _Preparation, instruction: Instruction) -> Step:
    """ins: the grid's sizes; region params: the grid indices. The last axis is fastest."""
    sizes = [prepare.slot(v) for v in instruction.ins]
    (region,) = instruction.regions
    at, steps, _ = prepare.region(region)
    cells = row_of(at)
    name = instruction.operation.params["name"]

    def step(f: Frame) -> None:
        bounds = [int(f[slot]) for slot in sizes]
        cell: Sequence[Any] | None = None
        try:
            for cell in progress.over_grid(name, bounds):
                f[cells] = cell
                run_steps(steps, f)
        except BaseException as error:
            if cell is not None:
                note_cell(error, instruction, cell)
            raise

    return step


_STRUCTURED: dict[str, Callable[[_Preparation, Instruction], Step]] = {
    "scan": _scan,
    "while": _while,
    "switch": _switch,
    "grid": _grid,
    operations.COPY: regions.copy_later,
    operations.PROGRAMS: regions.programs,
}
