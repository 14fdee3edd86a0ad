from __future__ import annotations

import pytest

from pallas_shim.evaluator.analysis.alias import AliasAnalysis
from pallas_shim.evaluator.registry import Unsupported

from ..passes.programs import INTS, MATRIX, ROW, SCALAR, make


def test_views_of_views_have_the_root_of_what_they_view():
    refs = {}

    def build(b, matrix):
        refs["row"] = b.row(matrix, 1)
        refs["own"] = b.allocate(MATRIX)
        refs["own_row"] = b.row(refs["own"], b.int(0))
        return []

    program = make([MATRIX], build).program
    aliases = AliasAnalysis(program)
    assert aliases.root(refs["row"]) is program.top.params[0]
    assert aliases.root(refs["own_row"]) is refs["own"]
    assert aliases.allocated == {refs["own"]}


def test_what_a_loop_touches_leaves_out_its_own_buffers():
    def build(b, row, other):
        def cell(i, j):
            own = b.allocate(ROW)
            b.store(own, b.load(row))
            b.store(other, b.load(own))

        b.over_grid([b.int(2), b.int(2)], cell)
        return []

    program = make([ROW, ROW], build).program
    row, other = program.top.params
    (grid,) = program.top.body
    touched = AliasAnalysis(program).within(grid)
    assert (touched.reads, touched.writes, touched.io) == ({row}, {other}, False)


def test_output_inside_a_branch_is_seen_outside():
    def build(b, index, x):
        def branch():
            b.print(x)
            return []

        b.switch(index, [], [branch, lambda: []])
        return []

    program = make([SCALAR, INTS], build).program
    assert AliasAnalysis(program).within(program.top.body[0]).io


def test_a_ref_that_a_loop_carries_is_refused():
    def build(b, row):
        given = {"length": 1, "reverse": False, "num_carry": 1}
        b.structured("scan", [row], [ROW], [b.region([ROW], list)], given)
        return []

    with pytest.raises(Unsupported, match="a ref is passed through its operands"):
        AliasAnalysis(make([ROW], build).program)
