from __future__ import annotations

from pallas_shim.evaluator.passes.common_subexpressions import share_common_subexpressions

from .programs import INTS, MATRIX, ROW, SCALAR, make, names, outcome


def shared(param_types, build):
    made = make(param_types, build)
    program = share_common_subexpressions(made.program)
    assert outcome(program, made.log) == outcome(made.program, made.log)
    return names(program)


def test_equal_instructions_are_one_and_so_is_what_follows_from_them():
    def build(b, x, y):
        return [b.reverse(b.binary("sub", x, y)) for _ in range(3)] + [b.binary("sub", y, x)]

    assert shared([INTS, INTS], build) == ["sub", "rev", "sub"]


def test_a_region_uses_what_is_computed_outside_but_not_the_other_way_round():
    def build(b, index, x, y):
        outside = b.reverse(x)
        branches = [lambda: [b.binary("add", b.reverse(x), b.reverse(y))]] * 2
        (inside,) = b.switch(index, [INTS], branches)
        return [outside, inside, b.reverse(y)]

    expected = ["rev", "switch", "rev", "add", "rev", "add", "rev"]
    assert shared([SCALAR, INTS, INTS], build) == expected


def test_loads_are_shared_until_their_buffer_is_written():
    def build(b, x, row, other):
        first = [b.load(row), b.load(row)]
        b.store(other, x)
        third = b.load(row)
        b.store(row, x)
        return [*first, third, b.load(row)]

    assert shared([INTS, ROW, ROW], build) == ["get", "store", "store", "get"]


def test_a_store_through_a_view_counts():
    def build(b, x, matrix):
        first = b.load(matrix, 0)
        b.store(b.row(matrix, 0), x)
        return [first, b.load(matrix, 0)]

    assert shared([INTS, MATRIX], build) == ["get", "view", "store", "get"]


def test_loads_are_not_shared_into_a_loop_that_writes():
    def build(b, x, row):
        before = b.load(row)

        def body(carry):
            y = b.load(row)
            b.store(row, b.binary("add", y, carry))
            return [y]

        return [before, *b.scan([x], [], body, length=3), b.load(row)]

    assert shared([INTS, ROW], build) == ["get", "scan", "get", "add", "store", "get"]


def test_loads_are_shared_into_a_loop_that_only_reads():
    def build(b, x, row):
        before = b.load(row)
        add = lambda carry: [b.binary("add", carry, b.load(row))]  # noqa: E731
        return [before, *b.scan([x], [], add, length=3)]

    assert shared([INTS, ROW], build) == ["get", "scan", "add"]


def test_a_branch_does_not_share_with_its_sibling():
    def build(b, index, x, row):
        def writes():
            b.store(row, x)
            return [b.load(row)]

        return [*b.switch(index, [INTS], [writes, lambda: [b.load(row)]]), b.load(row)]

    assert shared([SCALAR, INTS, ROW], build) == ["switch", "store", "get", "get", "get"]


def test_allocations_and_output_are_never_shared():
    def build(b, x):
        first, second = b.allocate(ROW), b.allocate(ROW)
        b.store(first, x)
        b.print(x)
        b.print(x)
        return [b.load(first), b.load(second)]

    assert shared([INTS], build).count("allocate") == 2
    assert shared([INTS], build).count("debug_callback") == 2
