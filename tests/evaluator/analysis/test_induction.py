"""Which of what a loop carries counts, and from where to where."""

from __future__ import annotations

import numpy as np
import pytest

from pallas_shim.evaluator.analysis import induction
from pallas_shim.evaluator.analysis.ranges import Range
from pallas_shim.evaluator.program import ArrayType

from ..passes.programs import FLOAT, INTS, SCALAR, make


def counters(body, starts=1, types=(SCALAR,), length=5):
    """The induction variables of a loop that carries ints, by their positions."""

    def build(b, *outside):
        given = [b.int(7) if k < starts else outside[0] for k in range(len(types))]
        b.scan(given, [], lambda *carried: body(b, *carried), length, False)
        return []

    (scan,) = make([types[-1]], build).program.top.body
    found = induction.of_scan(scan)
    return {scan.regions[0].params.index(param): each for param, each in found.items()}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("step, want", [(3, Range(7, 19)), (-2, Range(-1, 7)), (0, Range(7, 7))])
def test_a_counter(step, want, swapped):
    def body(b, n):
        return [b.binary("add", *([b.int(step), n] if swapped else [n, b.int(step)]))]

    (found,) = counters(body).values()
    assert found.step == step and found.known_range(5) == want


def test_what_stays_the_same():
    (found,) = counters(lambda b, n: [n]).values()
    assert found.step == 0 and found.known_range(5) == (7, 7)


def test_a_start_that_only_the_run_knows():
    (found,) = counters(lambda b, n: [b.binary("add", n, b.int(1))], starts=0).values()
    assert found.known_range(5) is None
    assert found.range(Range(0, 10), 5) == (0, 14)


def test_one_that_wraps_around_has_no_range():
    (found,) = counters(lambda b, n: [b.binary("add", n, b.int(1 << 30))]).values()
    assert found.known_range(2) == (7, 7 + (1 << 30))
    assert found.known_range(3) is None


@pytest.mark.parametrize(
    "body",
    [
        lambda b, n: [b.binary("add", n, n)],
        lambda b, n: [b.binary("mul", n, b.int(2))],
        lambda b, n: [b.binary("add", b.binary("add", n, b.int(1)), b.int(1))],
        lambda b, n: [b.int(3)],
    ],
)
def test_what_does_not_count(body):
    assert counters(body) == {}


def test_a_step_that_changes_does_not_count():
    def body(b, n, m):
        return [b.binary("add", n, m), b.binary("add", m, b.int(1))]

    assert list(counters(body, types=(SCALAR, SCALAR))) == [1]


def test_arrays_and_floats_do_not_count():
    assert counters(lambda b, x: [x], starts=0, types=(INTS,)) == {}
    assert counters(lambda b, x: [x], starts=0, types=(ArrayType((), FLOAT),)) == {}


def test_an_unsigned_counter_that_goes_down_wraps():
    """To add 2**32 - 1 is to take away 1; where it goes isn't told."""
    unsigned = ArrayType((), np.dtype(np.uint32))

    def body(b, n):
        return [b.binary("add", n, b.const(np.uint32(2**32 - 1)))]

    (found,) = counters(body, starts=0, types=(unsigned,)).values()
    assert found.range(Range(9, 9), 3) is None
