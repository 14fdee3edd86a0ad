"""What holds for every pass: the same outcome with and without it, on random programs."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pallas_shim.evaluator.passes import PIPELINE, optimise

from .programs import make, names, outcome, random_programs, structure

PASSES = dict(PIPELINE)
bounded = settings(
    derandomize=True,
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("name", PASSES)
@bounded
@given(made=random_programs)
def test_a_pass_alone_changes_nothing_that_is_seen(name, made):
    changed = PASSES[name](made.program)
    assert outcome(changed, made.log) == outcome(made.program, made.log)


@bounded
@given(made=random_programs)
def test_the_pipeline_changes_nothing_that_is_seen(made):
    changed = optimise(made.program)
    assert outcome(changed, made.log) == outcome(made.program, made.log)
    left = [name for name in names(changed) if name != "rows"]  # these spare what they replace
    assert len(left) <= len(names(made.program))


@bounded
@given(made=random_programs, skip=st.sets(st.sampled_from(sorted(PASSES))))
def test_the_pipeline_without_some_passes_changes_nothing_that_is_seen(made, skip):
    changed = optimise(made.program, skip=skip)
    assert outcome(changed, made.log) == outcome(made.program, made.log)


@pytest.mark.parametrize("name", PASSES)
@settings(bounded, max_examples=30)
@given(made=random_programs)
def test_a_pass_leaves_its_input_as_it_was(name, made):
    before = structure(made.program)
    PASSES[name](made.program)
    assert structure(made.program) == before


def test_the_random_programs_give_every_pass_something_to_do():
    busy: set[str] = set()

    @settings(bounded, max_examples=40)
    @given(random_programs)
    def try_each(made):
        """Alone, and after the passes before it."""
        alone, program = _skeleton(made.program), made.program
        for name, run in PIPELINE:
            after, before = run(program), _skeleton(program)
            if _skeleton(run(made.program)) != alone or _skeleton(after) != before:
                busy.add(name)
            program = after

    try_each()
    # No random program multiplies numbers by their halves, has rows of 16 elements, gathers at
    # places that aren't known, or has a long recurrence or large matrices: these passes' own tests
    # have such.
    assert busy >= set(PASSES) - {
        "wide_products", "one_hot", "from_end", "loop_distribution", "sums_of_products"
    }  # fmt: skip


def _skeleton(program):
    """Each instruction's name, whether it is a view, what it writes over, its operands' types, and
    its regions."""

    def region(r):
        return tuple(map(instruction, r.body))

    def instruction(i):
        into = i.operation.params.get("into")
        types = tuple(value.type for value in i.ins)
        return i.name, i.operation.view, into, types, tuple(map(region, i.regions))

    return region(program.top)


def test_an_unknown_pass_is_refused_by_name():
    with pytest.raises(ValueError, match="no pass named sharing.*constant_folding"):
        optimise(make([], lambda b: []).program, skip={"sharing"})
