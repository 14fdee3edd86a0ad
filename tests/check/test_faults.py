"""Kernels that a device would run wrongly are found, and the right ones beside them aren't."""

from __future__ import annotations

import pytest

from tests.check.faults import FAULTS
from tests.check.harness import check

pytestmark = pytest.mark.filterwarnings("ignore:the Pallas kernel")


@pytest.mark.parametrize("name", FAULTS)
def test_the_right_kernel(name):
    _, make = FAULTS[name]
    f, args = make(True)
    checked = check(f, *args)
    assert not checked.findings and not checked.not_checked


@pytest.mark.parametrize("name", FAULTS)
def test_the_wrong_kernel(name):
    rule, make = FAULTS[name]
    f, args = make(False)
    checked = check(f, *args)
    assert rule in checked.rules, checked.findings
    finding = checked.findings[checked.rules.index(rule)]
    assert finding.accesses and "tests/check/" in (finding.accesses[0].where or "")
    assert finding.source is not None and "tests/check/faults.py:" in finding.source
    assert finding.ref is not None and finding.advice
    assert set(checked.rules) <= {rule, *ALSO.get(name, ())}


# What else is wrong with these.
ALSO = {
    "an_index_map_of_elements": ["uninitialized/never-written"],
    "a_slice_in_a_loop": [],
}


@pytest.mark.parametrize("name", FAULTS)
def test_only_the_asked_kinds(name):
    rule, make = FAULTS[name]
    kind = rule.partition("/")[0]
    f, args = make(False)
    assert rule in check(f, *args, kinds=[kind]).rules
    others = {"bounds", "uninitialized", "races", "sync", "blocks"} - {kind}
    assert rule not in check(f, *args, kinds=others).rules
