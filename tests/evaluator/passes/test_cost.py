"""What optimising costs: linear in the number of instructions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pallas_shim.evaluator import analysis, passes
from pallas_shim.evaluator.passes import PIPELINE, optimise

from .programs import INTS, MATRIX, ROW, SCALAR, make, names


def unrolled(rounds):
    """A straight line of arithmetic, loads and stores, as of an unrolled kernel."""

    def build(b, i, x, row, matrix):
        for _ in range(rounds):
            x = b.binary("add", b.reverse(x), b.load(matrix, i))
            b.store(matrix, b.binary("xor", x, b.iota()), 1)
            b.store(row, b.select(b.const([True] * 4), x, b.load(row)))
        return [x]

    return make([SCALAR, INTS, ROW, MATRIX], build).program


def looping(rounds):
    """Many loops one after the other, each with buffers of its own and of others."""

    def build(b, i, x, row, matrix):
        for _ in range(rounds):
            own = b.allocate(ROW)

            def body(carry, own=own):
                b.store(own, b.binary("add", carry, b.reverse(b.load(row))))
                b.store(matrix, b.load(own), i)
                return [b.load(own)]

            (x,) = b.scan([x], [], body, length=3)
        return [x]

    return make([SCALAR, INTS, ROW, MATRIX], build).program


def cells(rounds):
    """A grid whose cells are long."""

    def build(b, i, x, row, matrix):
        scratch = b.allocate(ROW)

        def cell(at):
            b.store(scratch, x)
            for _ in range(rounds):
                y = b.binary("add", b.load(scratch), b.broadcast(at))
                b.store(scratch, b.binary("xor", b.reverse(y), x))
            b.store(matrix, b.load(scratch), at)

        b.over_grid([b.int(3)], cell)
        return []

    return make([SCALAR, INTS, ROW, MATRIX], build).program


def lines_run(run, *args):
    """How many lines of the passes, and of what they ask, a call runs; unlike time, the same on
    every machine."""
    homes = tuple(str(Path(package.__file__).parent) for package in (analysis, passes))
    count = 0

    def trace(frame, event, _):
        nonlocal count
        if not frame.f_code.co_filename.startswith(homes):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run(*args)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("program_of", [unrolled, looping, cells])
def test_cost_is_linear_in_the_number_of_instructions(program_of):
    small, large = program_of(30), program_of(300)
    assert len(names(large)) >= 9 * len(names(small))
    assert lines_run(optimise, large) < 11 * lines_run(optimise, small)


@pytest.mark.parametrize("name, run", PIPELINE, ids=[name for name, _ in PIPELINE])
def test_a_pass_runs_few_lines_for_each_instruction(name, run):
    program = unrolled(300)
    assert lines_run(run, program) < 40 * len(names(program))
