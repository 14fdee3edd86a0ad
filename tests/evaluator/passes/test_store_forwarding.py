from __future__ import annotations

from pallas_shim.evaluator.passes.store_forwarding import forward_stores

from .programs import INTS, MATRIX, ROW, SCALAR, make, names, outcome


def forwarded(param_types, build):
    made = make(param_types, build)
    program = forward_stores(made.program)
    assert outcome(program, made.log) == outcome(made.program, made.log)
    return names(program)


def test_a_load_of_what_was_stored_goes():
    def build(b, i, x, row, matrix):
        b.store(row, x)
        b.store(matrix, x, i)
        return [b.load(row), b.load(matrix, i)]

    assert forwarded([SCALAR, INTS, ROW, MATRIX], build) == ["store", "store"]


def test_a_load_after_another_write_to_the_buffer_stays():
    def build(b, i, x, matrix):
        b.store(matrix, x, 0)
        b.store(b.row(matrix, i), b.reverse(x))
        return [b.load(matrix, 0)]

    expected = ["store", "view", "rev", "store", "get"]
    assert forwarded([SCALAR, INTS, MATRIX], build) == expected


def test_a_load_at_another_place_stays():
    def build(b, i, x, matrix):
        b.store(matrix, x, i)
        return [b.load(matrix, 1)]

    assert forwarded([SCALAR, INTS, MATRIX], build) == ["store", "get"]


def test_a_store_is_not_known_in_the_next_round_if_the_loop_writes():
    def build(b, x, row):
        b.store(row, x)

        def body(carry):
            y = b.load(row)
            b.store(row, b.binary("add", y, carry))
            return [b.load(row)]

        return b.scan([x], [], body, length=3)

    assert forwarded([INTS, ROW], build) == ["store", "scan", "get", "add", "store"]


def test_a_store_is_known_in_a_loop_that_does_not_write():
    def build(b, x, row):
        b.store(row, x)
        add = lambda carry: [b.binary("add", b.load(row), carry)]  # noqa: E731
        return b.scan([x], [], add, length=3)

    assert forwarded([INTS, ROW], build) == ["store", "scan", "add"]


def test_a_store_in_a_branch_is_not_known_after_it():
    def build(b, index, x, row):
        def branch():
            b.store(row, x)
            return [b.load(row)]

        return [*b.switch(index, [INTS], [branch, lambda: [b.load(row)]]), b.load(row)]

    assert forwarded([SCALAR, INTS, ROW], build) == ["switch", "store", "get", "get"]


def test_a_matrix_stored_for_a_whole_stack_is_broadcast():
    def build(b, x, matrix):
        b.store(matrix, x)
        return [b.load(matrix)]

    assert forwarded([INTS, MATRIX], build) == ["store", "broadcast_to"]


def test_a_number_stored_everywhere_is_loaded():
    def build(b, i, row):
        b.store(row, i)
        return [b.load(row)]

    assert forwarded([SCALAR, ROW], build) == ["store", "get"]
