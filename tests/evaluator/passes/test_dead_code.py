from __future__ import annotations

import numpy as np

from pallas_shim.evaluator.passes.dead_code import remove_dead_code

from .programs import INTS, MATRIX, ROW, SCALAR, instructions, make, names


def swept(param_types, build):
    return names(remove_dead_code(make(param_types, build).program))


def test_chains_of_unused_arithmetic_and_loads_go():
    def build(b, x, row):
        b.binary("add", b.binary("mul", x, x), b.load(row))
        return [b.reverse(x)]

    assert swept([INTS, ROW], build) == ["rev"]


def test_a_buffer_that_is_never_read_goes_with_its_stores():
    def build(b, x):
        own = b.allocate(MATRIX)
        b.store(b.row(own, 1), b.reverse(x))
        return [x]

    assert swept([INTS], build) == []


def test_a_store_after_the_last_read_goes_and_the_one_before_stays():
    def build(b, x):
        own = b.allocate(ROW)
        b.store(own, x)
        y = b.load(own)
        b.store(own, b.reverse(x))
        return [y]

    assert swept([INTS], build) == ["allocate", "store", "get"]


def test_an_overwritten_store_goes():
    def build(b, x, row):
        b.store(row, b.reverse(x))
        b.store(row, x)
        return []

    assert swept([INTS, ROW], build) == ["store"]


def test_a_store_that_is_read_before_it_is_overwritten_stays():
    def build(b, x, matrix):
        b.store(matrix, x, 0)
        y = b.load(matrix, b.int(1))
        b.store(matrix, x, 0)
        return [y]

    assert swept([INTS, MATRIX], build) == ["store", "get", "store"]


def test_a_store_overwritten_at_another_place_stays():
    def build(b, x, matrix):
        b.store(matrix, x, 0)
        b.store(matrix, x, 1)
        return []

    assert swept([INTS, MATRIX], build) == ["store", "store"]


def test_a_store_overwritten_only_in_a_branch_stays():
    def build(b, index, x, row):
        def branch():
            b.store(row, x)
            return []

        b.store(row, b.reverse(x))
        b.switch(index, [], [branch, lambda: []])
        return []

    assert swept([SCALAR, INTS, ROW], build) == ["rev", "store", "switch", "store"]


def test_a_store_that_the_next_round_reads_stays():
    def build(b, x):
        own = b.allocate(ROW)

        def body(carry, _):
            y = b.load(own)
            b.store(own, carry)
            return [y]

        return b.scan([x], [b.const(np.zeros((2, 1), np.int32))], body, length=2)

    assert swept([INTS], build) == ["allocate", "scan", "get", "store"]


def test_a_loop_without_a_visible_effect_goes():
    def build(b, x):
        own = b.allocate(ROW)
        b.over_grid([b.int(2), b.int(2)], lambda i, j: b.store(own, x))
        b.scan([x], [], lambda c: [b.reverse(c)], length=3)
        return [x]

    assert swept([INTS], build) == []


def test_a_loop_that_prints_or_writes_to_the_callers_memory_stays():
    def build(b, x, row):
        b.over_grid([b.int(2)], lambda i: b.store(row, x))
        b.over_grid([b.int(2)], lambda i: b.print(x))
        return []

    assert swept([INTS, ROW], build) == ["grid", "store", "grid", "debug_callback"]


def test_a_kept_instruction_is_the_same_object():
    made = make([INTS], lambda b, x: [b.reverse(x)])
    swept = remove_dead_code(made.program)
    assert instructions(swept)[0] is instructions(made.program)[0]
