"""Which writes a read sees."""

from __future__ import annotations

from pallas_shim.evaluator.analysis.alias import AliasAnalysis
from pallas_shim.evaluator.analysis.memory_versions import MemoryVersions

from ..passes.programs import ROW, SCALAR, make


def test_a_branch_does_not_see_the_versions_of_its_sibling():
    def build(b, index, row):
        def writes():
            b.store(row, b.load(row))
            return []

        b.switch(index, [], [writes, lambda: [b.load(row)][:0]])
        return [b.load(row)]

    program = make([SCALAR, ROW], build).program
    switch, last = program.top.body
    versions = MemoryVersions(AliasAnalysis(program))
    before = versions.of(last, (0,))
    seen = []
    for region in versions.inside(switch):
        seen.append(versions.of(last, (0,)))
        if len(region.body) == 2:
            versions.write([program.top.params[1]])
    assert seen == [before, before]
    assert versions.of(last, (0,)) != before
