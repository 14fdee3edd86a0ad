"""Runs a Program on a Frame of NumPy arrays.

A program is prepared once. Each value gets a slot in a flat list, the frame. Each instruction
becomes a small closure that reads and writes slots, so the run loop only calls closures. Structured
operations become closures that run their regions as Python loops and branches.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator import codegen, progress, scalars
from pallas_shim.evaluator.analysis.liveness import dead_after
from pallas_shim.evaluator.call_stack import with_depth, with_room
from pallas_shim.evaluator.floating import as_xla
from pallas_shim.evaluator.heap import keep_freed_memory
from pallas_shim.evaluator.memory import same
from pallas_shim.evaluator.program import Instruction, Program, Region, Value

Frame = list[Any]
Step = Callable[[Frame], None]


class Executable:
    """A prepared program: call it with NumPy arrays, get a list of NumPy arrays.

    The results may share memory with the arguments or with each other; they must not
    be written to. Safe to call from several threads at once.

    ``emits`` says which loops become functions of their own; ``emitted`` is told the source of
    each.
    """

    def __init__(
        self,
        program: Program,
        emits: Callable[[Instruction], bool] = codegen.pays,
        emitted: Callable[[Instruction, str], None] | None = None,
    ):
        keep_freed_memory()
        self.program = program
        prepare = _Preparation(emits, emitted)
        top = program.top
        self._params = [prepare.slot(v) for v in top.params]
        self._steps = prepare.steps(top.body, keep=top.results)
        self._results = [prepare.slot(v) for v in top.results]
        self._frame = prepare.frame
        self._run = _run_with_room if prepare.steps_run >= _MANY_STEPS else _run
        if prepare.deepest > _MANY_LEVELS:
            self._run = functools.partial(with_depth, prepare.deepest, self._run)

    def __call__(self, *args: np.ndarray) -> list[np.ndarray]:
        frame = self._frame.copy()
        for slot, arg in zip(self._params, args, strict=True):
            frame[slot] = arg
        as_xla(self._run, self._steps, frame)
        return [frame[slot] for slot in self._results]


class Steps(tuple):
    """Closures in order, and for each the instruction that it came from."""

    instructions: tuple[Instruction, ...]

    def __new__(cls, pairs: Iterable[tuple[Step, Instruction]]):
        pairs = tuple(pairs)
        self = super().__new__(cls, (step for step, _ in pairs))
        self.instructions = tuple(instruction for _, instruction in pairs)
        return self


def _run(steps: Steps, frame: Frame) -> None:
    remaining: Any = iter(steps)
    try:
        for step in remaining:
            step(frame)
    except Exception as error:
        # The iterator tells the progress, so the loop itself keeps no count.
        at = len(steps) - remaining.__length_hint__() - 1
        _blame(error, steps.instructions[at])
        raise


def _run_with_room(steps: Steps, frame: Frame) -> None:
    with_room(_run, steps, frame)


# From this many steps on, room on the stack pays for its 30 to 50 microseconds. One run in thirty
# or so would stand at the end of a chunk of the stack, and each of its steps would take 10
# microseconds more.
_MANY_STEPS = 200
# More nested regions than this need a higher recursion limit. Each takes two or three frames on
# Python's stack.
_MANY_LEVELS = 50


def _blame(error: Exception, instruction: Instruction) -> None:
    """Notes on the error which instruction raised it, innermost only."""
    if getattr(error, "_pallas_shim_blamed", False):
        return
    where = jax_compat.user_source(instruction.source)
    error.add_note(f"raised by {instruction.name}" + (f" at {where}" if where else ""))
    try:
        error._pallas_shim_blamed = True  # type: ignore[attr-defined]
    except AttributeError:
        pass  # an exception with slots gets a note from each enclosing loop


class _Preparation:
    """Assigns slots and makes closures. ``frame`` is the initial frame, constants set;
    ``steps_run``, about how many closures a run calls; ``deepest``, how many regions are inside
    one another."""

    def __init__(
        self,
        emits: Callable[[Instruction], bool],
        emitted: Callable[[Instruction, str], None] | None,
    ) -> None:
        self.frame: Frame = []
        self.steps_run = 0.0
        self.deepest = 0
        self._depth = 0
        self._rounds = 1.0  # of what is being prepared, in a run
        self._emits = emits
        self._emitted = emitted
        self._slots: dict[Value, int] = {}

    def slot(self, value: Value) -> int:
        slot = self._slots.get(value)
        if slot is None:
            slot = self._slots[value] = len(self.frame)
            const = value.const
            # This gives a scalar for rank 0, and the array for any other rank.
            self.frame.append(None if const is None else const[()])
        return slot

    def steps(self, body: Sequence[Instruction], keep: Sequence[Value] = ()) -> Steps:
        pairs: list[tuple[Step, Instruction]] = []
        dead = dead_after(body, keep)
        for index, instruction in enumerate(body):
            if instruction.operation.fn is same:
                self._slots[instruction.outs[0]] = self.slot(instruction.ins[0])
            else:
                pairs.append((self.step(instruction), instruction))
            if index in dead:
                pairs.append((_drop([self.slot(v) for v in dead[index]]), instruction))
        return Steps(pairs)

    def region(self, region: Region) -> tuple[list[int], Steps, list[int]]:
        """The slots of its parameters, in a row; its steps; the slots of its results."""
        params = list(range(len(self.frame), len(self.frame) + len(region.params)))
        self.frame += [None] * len(params)
        self._slots.update(zip(region.params, params, strict=True))
        self._depth += 1
        self.deepest = max(self.deepest, self._depth)
        steps = self.steps(region.body, keep=region.results)
        self._depth -= 1
        return params, steps, [self.slot(v) for v in region.results]

    def step(self, instruction: Instruction) -> Step:
        self.steps_run += self._rounds
        structured = _STRUCTURED.get(instruction.name)
        if structured is not None and instruction.operation.fn is None:
            wanted = instruction.name != "switch" and self._emits(instruction)
            emitted = codegen.emit(instruction, self.slot) if wanted else None
            if emitted is not None:
                if self._emitted is not None:
                    self._emitted(instruction, emitted.source)
                return _emitted(emitted)
            outer = self._rounds
            self._rounds *= codegen.rounds(instruction)
            step = structured(self, instruction)
            self._rounds = outer
            return step
        fn = scalars.function(instruction.operation)
        assert fn is not None, instruction
        ins = [self.slot(v) for v in instruction.ins]
        outs = [self.slot(v) for v in instruction.outs]
        if not outs:
            return _call_for_effect(fn, ins)
        if instruction.operation.multiple:
            return _call_multiple(fn, ins, outs)
        return _CALLS[len(ins)](fn, ins, outs[0]) if len(ins) < 4 else _call_n(fn, ins, outs[0])


# -- plain instructions ---------------------------------------------------------------------


def _call_0(fn, ins, out):
    def step(f):
        f[out] = fn()

    return step


def _call_1(fn, ins, out):
    (a,) = ins

    def step(f):
        f[out] = fn(f[a])

    return step


def _call_2(fn, ins, out):
    a, b = ins

    def step(f):
        f[out] = fn(f[a], f[b])

    return step


def _call_3(fn, ins, out):
    a, b, c = ins

    def step(f):
        f[out] = fn(f[a], f[b], f[c])

    return step


_CALLS = (_call_0, _call_1, _call_2, _call_3)


def _call_n(fn, ins, out):
    def step(f):
        f[out] = fn(*[f[i] for i in ins])

    return step


def _call_for_effect(fn, ins):
    if len(ins) == 2:
        a, b = ins
        return lambda f: fn(f[a], f[b])
    if len(ins) == 3:
        a, b, c = ins
        return lambda f: fn(f[a], f[b], f[c])
    return lambda f: fn(*[f[i] for i in ins])


def _call_multiple(fn, ins, outs):
    def step(f):
        for out, result in zip(outs, fn(*[f[i] for i in ins]), strict=True):
            f[out] = result

    return step


def _drop(slots):
    def step(f):
        for slot in slots:
            f[slot] = None

    return step


# -- structured operations ------------------------------------------------------------------


def _emitted(loop: codegen.Emitted) -> Step:
    run = loop.run

    def step(f):
        try:
            run(f)
        except Exception as error:
            _blame(error, loop.source_of(error))
            raise

    return step


def _row(slots: Sequence[int]) -> slice:
    """The slots of a region's parameters."""
    return slice(slots[0], slots[-1] + 1) if slots else slice(0)


def _move(sources: Sequence[int], targets: Sequence[int]) -> Step:
    """Copies slots to those of a region's parameters, all at once."""
    if not sources:
        return lambda f: None
    get, row = operator.itemgetter(*sources), _row(targets)
    if len(sources) > 1:

        def move(f):
            f[row] = get(f)

        return move
    (source,), (target,) = sources, targets

    def move_one(f):
        f[target] = f[source]

    return move_one


def _scan(prepare: _Preparation, instruction: Instruction) -> Step:
    """ins: carry..., xs...; region params: carry..., x...; results and outs: carry..., ys..."""
    params = instruction.operation.params
    length, reverse, num_carry = params["length"], params["reverse"], params["num_carry"]
    ins = [prepare.slot(v) for v in instruction.ins]
    outs = [prepare.slot(v) for v in instruction.outs]
    (region,) = instruction.regions
    at, steps, results = prepare.region(region)
    begin = _move(ins[:num_carry], at[:num_carry])
    go_on = _move(results[:num_carry], at[:num_carry])
    carried = tuple(zip(outs[:num_carry], at[:num_carry], strict=True))
    taken, row = ins[num_carry:], _row(at[num_carry:])
    made = tuple(zip(outs[num_carry:], results[num_carry:], strict=True))
    made_types = [v.type for v in instruction.outs[num_carry:]]
    order = range(length - 1, -1, -1) if reverse else range(length)
    direction, nothing = slice(None, None, -1 if reverse else 1), itertools.repeat(())

    def step(f: Frame) -> None:
        begin(f)
        xs = [f[i][direction] for i in taken]
        ys = [np.empty(t.shape, t.dtype) for t in made_types]
        for i, x in zip(order, zip(*xs, strict=True) if xs else nothing, strict=False):
            f[row] = x
            _run(steps, f)
            for y, (_, slot) in zip(ys, made, strict=True) if ys else ():
                y[i] = f[slot]
            go_on(f)
        for out, slot in carried:
            f[out] = f[slot]
        for y, (out, _) in zip(ys, made, strict=True):
            f[out] = y

    return step


def _while(prepare: _Preparation, instruction: Instruction) -> Step:
    """ins and outs: carry...; regions: condition (result: a bool), body."""
    ins = [prepare.slot(v) for v in instruction.ins]
    outs = [prepare.slot(v) for v in instruction.outs]
    condition, body = instruction.regions
    condition_at, condition_steps, (go_on,) = prepare.region(condition)
    body_at, body_steps, body_results = prepare.region(body)

    begin = _move(ins, condition_at)
    enter = _move(condition_at, body_at)
    repeat = _move(body_results, condition_at)
    carried = tuple(zip(outs, condition_at, strict=True))

    def step(f: Frame) -> None:
        begin(f)
        while True:
            _run(condition_steps, f)
            if not f[go_on]:
                break
            enter(f)
            _run(body_steps, f)
            repeat(f)
        for out, slot in carried:
            f[out] = f[slot]

    return step


def _switch(prepare: _Preparation, instruction: Instruction) -> Step:
    """ins: an index, clamped to the branches; regions: one a branch, without parameters."""
    (index,) = [prepare.slot(v) for v in instruction.ins]
    outs = [prepare.slot(v) for v in instruction.outs]
    branches = []
    for region in instruction.regions:
        _, steps, results = prepare.region(region)
        branches.append((steps, tuple(zip(outs, results, strict=True))))
    last = len(branches) - 1  # what `branch_taken` does, without a call

    def step(f: Frame) -> None:
        steps, results = branches[min(max(int(f[index]), 0), last)]
        _run(steps, f)
        for out, slot in results:
            f[out] = f[slot]

    return step


def _grid(prepare: _Preparation, instruction: Instruction) -> Step:
    """ins: the grid's sizes; region params: the grid indices. The last axis is fastest."""
    sizes = [prepare.slot(v) for v in instruction.ins]
    (region,) = instruction.regions
    at, steps, _ = prepare.region(region)
    cells = _row(at)
    name = instruction.operation.params["name"]

    def step(f: Frame) -> None:
        bounds = [int(f[slot]) for slot in sizes]
        for cell in progress.over_grid(name, bounds):
            f[cells] = cell
            _run(steps, f)

    return step


_STRUCTURED: dict[str, Callable[[_Preparation, Instruction], Step]] = {
    "scan": _scan,
    "while": _while,
    "switch": _switch,
    "grid": _grid,
}
