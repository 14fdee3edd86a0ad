from __future__ import annotations

import numpy as np
import pytest

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.passes.constant_folding import fold_constants
from pallas_shim.evaluator.program import PURE, ArrayType

from .programs import FLOAT, FLOATS, INT, INTS, SCALAR, make, names, outcome


def folded(param_types, build):
    return fold_constants(make(param_types, build).program)


def test_arithmetic_on_constants_is_done():
    def build(b):
        return [b.binary("mul", b.reverse(b.iota()), b.const(np.int32([1, 2, 3, 4])))]

    program = folded([], build)
    assert names(program) == []
    (result,) = program.top.results
    np.testing.assert_array_equal(result.const, [3, 4, 3, 0])
    assert not result.const.flags.writeable
    assert result.type == INTS


def test_equal_results_are_one_value():
    program = folded(
        [], lambda b: [b.iota(), b.const(np.int32([0, 1, 2, 3])), b.reverse(b.iota()), b.iota()]
    )
    first, given, reversed_, again = program.top.results
    assert first is again
    assert first is not reversed_
    np.testing.assert_array_equal(given.const, first.const)


def test_large_results_are_left_to_the_run():
    count = (1 << 18) + 1
    large = ArrayType((count,), INT)

    def build(b):
        return [b.pure("iota", lambda: np.arange(count, dtype=INT), [], large)]

    assert names(folded([], build)) == ["iota"]


def test_what_raises_stays_and_raises_when_it_runs():
    def fail():
        raise ZeroDivisionError("as written")

    made = make([], lambda b: [b.pure("fails", fail, [], SCALAR)])
    program = fold_constants(made.program)
    assert names(program) == ["fails"]
    with pytest.raises(ZeroDivisionError, match="as written"):
        Executable(program)()


def test_effects_are_not_folded_away():
    def build(b):
        b.print(b.iota())
        return []

    assert names(folded([], build)) == ["debug_callback"]


def test_floats_are_folded_in_the_environment_of_a_run():
    def build(b):
        tiny = b.const(np.full(4, 1e-30, np.float32))
        return [b.binary("mul", tiny, tiny), b.binary("mul", b.const(np.float32([1e38] * 4)), tiny)]

    made = make([], build)
    program = fold_constants(made.program)
    assert names(program) == []
    assert outcome(program, []) == outcome(made.program, [])


def test_subnormal_constants_fold_to_what_a_run_gives():
    def build(b):
        return [b.binary("add", *[b.const(np.full(4, 1e-39, np.float32))] * 2)]

    made = make([], build)
    program = fold_constants(made.program)
    assert names(program) == []
    assert outcome(program, []) == outcome(made.program, [])


def test_a_select_with_one_answer_is_that_case():
    def build(b, x, y):
        everywhere = b.const(np.ones(4, bool))
        mixed = b.const(np.array([True, False, True, True]))
        return [b.select(everywhere, x, y), b.select(mixed, x, x), b.select(mixed, x, y)]

    program = folded([INTS, INTS], build)
    x, y = program.top.params
    assert program.top.results[:2] == (y, x)
    assert names(program) == ["select_n"]


@pytest.mark.parametrize(
    "name, number", [("add", 0), ("mul", 1), ("or", 0), ("xor", 0), ("and", -1)]
)
def test_neutral_elements_of_integers_go_on_either_side(name, number):
    def build(b, x):
        neutral = b.const(np.full(4, number, INT))
        return [b.binary(name, x, neutral), b.binary(name, neutral, x)]

    program = folded([INTS], build)
    assert names(program) == []
    assert program.top.results == program.top.params * 2


def test_zero_minus_x_is_not_x():
    def build(b, x):
        zero = b.const(np.zeros(4, INT))
        return [b.binary("sub", x, zero), b.binary("sub", zero, x)]

    program = folded([INTS], build)
    assert names(program) == ["sub"]
    assert program.top.results[0] is program.top.params[0]


@pytest.mark.parametrize("name, number", [("add", 0.0), ("sub", 0.0), ("mul", 1.0)])
def test_floats_are_left_alone(name, number):
    program = folded([FLOATS], lambda b, x: [b.binary(name, x, b.const(np.full(4, number, FLOAT)))])
    assert names(program) == [name]


def test_a_neutral_scalar_that_is_broadcast_changes_the_shape_and_stays():
    def build(b, x, one):
        fn = lambda x, y: x * y  # noqa: E731
        return [b.pure("mul", fn, [one, b.const(np.int32([1, 1, 1, 1]))], INTS)]

    assert names(folded([INTS, SCALAR], build)) == ["mul"]


@pytest.mark.parametrize(
    "name, params, removed",
    [
        ("convert_element_type", {}, True),
        ("broadcast_in_dim", {}, True),
        ("reshape", {"dimensions": None}, True),
        ("reshape", {"dimensions": (1, 0)}, False),
        ("transpose", {"permutation": (0, 1)}, True),
        ("transpose", {"permutation": (1, 0)}, False),
        ("rev", {}, False),
    ],
)
def test_what_only_restates_the_type_goes(name, params, removed):
    square = ArrayType((4, 4), INT)

    def build(b, x):
        return b.memory(name, [x], [square], lambda x: x, PURE, params=params, view=True)

    assert (names(folded([square], build)) == []) == removed


@pytest.mark.parametrize("index, taken", [(-5, "rev"), (0, "rev"), (1, "add"), (9, "add")])
def test_a_switch_on_a_constant_is_the_branch_taken(index, taken):
    def build(b, x):
        branches = [lambda: [b.reverse(x)], lambda: [b.binary("add", x, x)]]
        (y,) = b.switch(b.int(index), [INTS], branches)
        return [b.binary("sub", y, x)]

    made = make([INTS], build)
    program = fold_constants(made.program)
    assert names(program) == [taken, "sub"]
    assert outcome(program, []) == outcome(made.program, [])


def test_the_index_of_a_grid_axis_of_one_cell_is_zero():
    def build(b, n):
        b.over_grid([b.int(1), b.int(2), n], lambda i, j, k: [b.print(v) for v in (i, j, k)])
        return []

    program = folded([SCALAR], build)
    (grid,) = program.top.body
    printed = [i.ins[0] for i in grid.regions[0].body]
    assert printed[0].const == 0
    assert printed[1:] == list(grid.regions[0].params[1:])


def test_a_loop_of_one_round_is_that_round():
    def build(b, x):
        return b.scan([b.int(3), x], [], lambda n, c: [b.binary("add", n, n), b.reverse(c)], 1)

    made = make([INTS], build)
    program = fold_constants(made.program)
    assert names(program) == ["rev"]
    assert program.top.results[0].const == 6
    assert outcome(program, []) == outcome(made.program, [])


def test_a_loop_of_one_round_that_stacks_results_stays():
    def build(b, x):
        return b.scan([x], [b.const(np.zeros((1, 4), INT))], lambda c, row: [c, row], 1)

    assert names(folded([INTS], build)) == ["scan"]
