"""docs/coverage.md says what the evaluator does."""

import subprocess
import sys

from pallas_shim.evaluator import refused, rules
from tests import coverage_table

rules.load()


def test_the_table_is_what_the_installed_jax_gives():
    # In a process of its own: whatever else was imported here defines primitives too.
    run = subprocess.run(
        [sys.executable, "-m", "tests.coverage_table", "--check"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_what_is_refused_has_no_rule_and_is_in_the_table():
    reasons = refused.BY_XLA.keys() | refused.NOWHERE.keys()
    assert not reasons & (rules.IMPL_RULES.keys() | rules.LOWERING_RULES.keys())
    assert not refused.BY_XLA.keys() & refused.NOWHERE.keys()
    listed = {name for _, name in coverage_table.parsed(coverage_table.TABLE.read_text())}
    assert reasons <= listed


def test_the_error_says_why():
    assert str(refused.refusal("ffi_call")) == "ffi_call: it calls compiled code"
    assert str(refused.refusal("mine")) == "mine: the evaluator has no rule for it"
