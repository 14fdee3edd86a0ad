from __future__ import annotations

from pallas_shim.evaluator.passes.copy_elision import elide_copies

from .programs import INTS, MATRIX, ROW, SCALAR, instructions, make, outcome


def viewed(param_types, build):
    """For each load, in order, whether it became a view."""
    made = make(param_types, build)
    program = elide_copies(made.program)
    assert outcome(program, made.log) == outcome(made.program, made.log)
    return [i.operation.view for i in instructions(program) if i.name == "get"]


def test_a_load_whose_uses_come_before_the_next_write_is_a_view():
    def build(b, row):
        y = b.binary("add", *[b.reverse(b.load(row))] * 2)
        b.store(row, y)
        return []

    assert viewed([ROW], build) == [True]


def test_a_load_used_after_a_write_is_a_copy():
    def build(b, x, matrix):
        y = b.load(matrix, 0)
        b.store(matrix, x, 0)
        return [b.binary("add", y, y)]

    assert viewed([INTS, MATRIX], build) == [False]


def test_a_view_of_a_loaded_value_counts_as_it():
    def build(b, x, row):
        y = b.reverse(b.load(row))
        b.store(row, x)
        return [b.binary("add", y, y)]

    assert viewed([INTS, ROW], build) == [False]


def test_storing_the_loaded_value_itself_to_its_own_buffer_is_a_copy():
    def build(b, row):
        b.store(row, b.reverse(b.load(row)))
        return []

    assert viewed([ROW], build) == [False]


def test_a_write_to_another_buffer_does_not_matter():
    def build(b, x, row, other):
        y = b.load(row)
        b.store(other, x)
        b.store(row, b.binary("add", y, y))
        return []

    assert viewed([INTS, ROW, ROW], build) == [True]


def test_what_leaves_its_round_is_a_copy():
    def build(b, index, x, row):
        carried = b.scan([x], [], lambda carry: [b.load(row)], length=2)
        into = b.scan([b.load(row)], [], lambda carry: [carry], length=2)
        taken = b.switch(index, [INTS], [lambda: [b.reverse(b.load(row))]])
        b.store(row, x)
        return [*carried, *into, *taken]

    assert viewed([SCALAR, INTS, ROW], build) == [False, False, False]


def test_uses_inside_a_loop_count_at_the_loop():
    def build(b, x, row, other):
        first, second = b.load(row), b.load(other)

        def body(carry):
            b.store(other, carry)
            return [b.binary("add", b.binary("add", carry, first), second)]

        return b.scan([x], [], body, length=2)

    assert viewed([INTS, ROW, ROW], build) == [True, False]


def test_what_is_printed_is_a_copy():
    def build(b, row):
        b.print(b.load(row))
        return []

    assert viewed([ROW], build) == [False]


def test_a_result_may_view_the_programs_own_buffers_only():
    def build(b, x, row):
        own = b.allocate(ROW)
        b.store(own, x)
        return [b.load(row), b.load(own)]

    assert viewed([INTS, ROW], build) == [False, True]


def test_a_result_does_not_view_a_buffer_that_is_written_later():
    def build(b, x):
        own = b.allocate(ROW)
        y = b.load(own)
        b.store(own, x)
        return [y, b.load(own)]

    assert viewed([INTS], build) == [False, True]


def test_equal_loads_still_share_an_operation():
    def build(b, row):
        return [b.binary("add", b.load(row), b.load(row))]

    program = elide_copies(make([ROW], build).program)
    first, second = (i.operation for i in instructions(program) if i.name == "get")
    assert first is second
