from __future__ import annotations

import numpy as np

from pallas_shim.evaluator.passes.hoisting import hoist_invariants
from pallas_shim.evaluator.program import ArrayType

from .programs import INT, INTS, MATRIX, ROW, SCALAR, make, outcome


def hoisted(param_types, build):
    """The names of the instructions, nested as the regions are."""

    def region(r):
        return [(i.name, *map(region, i.regions)) if i.regions else i.name for i in r.body]

    made = make(param_types, build)
    program = hoist_invariants(made.program)
    assert outcome(program, made.log) == outcome(made.program, made.log)
    return region(program.top)


def test_what_does_not_change_moves_out_of_all_loops_that_it_can():
    def build(b, x):
        def cell(i, j):
            def body(carry):
                invariant = b.reverse(x)
                of_cell = b.binary("add", invariant, b.broadcast(j))
                return [b.binary("sub", b.binary("mul", carry, of_cell), invariant)]

            b.print(b.scan([x], [], body, length=2)[0])

        b.over_grid([b.int(2), b.int(2)], cell)
        return []

    inner = ["broadcast_in_dim", "add", ("scan", ["mul", "sub"]), "debug_callback"]
    assert hoisted([INTS], build) == ["rev", ("grid", inner)]


def test_a_while_loop_that_never_runs_may_lose_arithmetic():
    def build(b, n, x):
        body = lambda i, carry: [b.binary("add", carry, b.reverse(x))]  # noqa: E731
        return b.repeat(n, [x], body)

    assert hoisted([SCALAR, INTS], build) == ["rev", ("while", ["lt"], ["add", "add"])]


def test_loads_move_out_of_loops_that_do_not_write_their_buffer():
    def build(b, x, read, written):
        def body(carry):
            b.store(written, b.binary("add", b.load(read), b.load(written)))
            return [carry]

        return b.scan([x], [], body, length=2)

    expected = ["get", ("scan", ["get", "add", "store"])]
    assert hoisted([INTS, ROW, ROW], build) == expected


def test_a_load_stays_if_the_loop_writes_through_a_view():
    def build(b, x, matrix):
        row = b.row(matrix, 1)

        def body(carry):
            y = b.load(matrix, 1)
            b.store(row, b.reverse(y))
            return [y]

        return b.scan([x], [], body, length=2)

    assert hoisted([INTS, MATRIX], build) == ["view", ("scan", ["get", "rev", "store"])]


def test_a_load_leaves_the_inner_loop_only_if_the_outer_one_writes():
    def build(b, x, row):
        def cell(i):
            total = b.scan([x], [], lambda c: [b.binary("add", c, b.load(row))], length=2)
            b.store(row, total[0])

        b.over_grid([b.int(2)], cell)
        return []

    assert hoisted([INTS, ROW], build) == [("grid", ["get", ("scan", ["add"]), "store"])]


def test_branches_allocations_and_output_stay():
    def build(b, index, x):
        def cell(i):
            own = b.allocate(ROW)
            b.switch(index, [INTS], [lambda: [b.reverse(x)], lambda: [x]])
            b.store(own, x)
            b.print(b.load(own))

        b.over_grid([b.int(2)], cell)
        return []

    body = ["allocate", ("switch", ["rev"], []), "store", "get", "debug_callback"]
    assert hoisted([SCALAR, INTS], build) == [("grid", body)]


def test_large_results_stay():
    large = ArrayType((1 << 22, 2), INT)

    def build(b, x):
        def body(carry):
            wide = b.pure(
                "iota", lambda: np.broadcast_to(INT.type(1), large.shape), [], large,
                dtype=INT, shape=large.shape, dimension=0, sharding=None,
            )  # fmt: skip
            first = b.pure("reduce_max", lambda w: w[0, 0], [wide], SCALAR, axes=(0, 1))
            return [b.binary("add", carry, first)]

        return b.scan([x], [], body, length=2)

    assert hoisted([SCALAR], build) == [("scan", ["iota", "reduce_max", "add"])]
