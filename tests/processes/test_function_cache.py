"""The second process reads the programs of the kernels that JAX ships, without tracing them."""

from __future__ import annotations

import json
import sys

import pytest

from tests.processes.conftest import CHECKOUT, Python

SCRIPT = CHECKOUT / "tests" / "processes" / "kernels_of_jax.py"
# The calls whose programs can't be kept, and the reason that the report gives.
REFUSED: dict[str, str] = {}


@pytest.fixture(scope="module")
def python(source):
    """A Python with the shim from a copy, which nobody edits: an edit makes other keys. What
    checks programs passes the cache by, so it is off."""
    path = f"{source / 'sitecustomize_pkg'}:{CHECKOUT / 'examples'}"
    return Python(sys.executable, {"PYTHONPATH": path, "PALLAS_NUMPY_VERIFY": "0"})


def test_all_are_read_before_tracing(python, tmp_path):
    results = []
    for _ in range(2):
        done = python.run(SCRIPT, PALLAS_NUMPY="1", PALLAS_NUMPY_CACHE=str(tmp_path))
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = results
    assert {name: set(became) for name, became in first.items()} == {
        name: {REFUSED.get(name, "written")} for name in first
    }
    assert {name: set(became) for name, became in second.items()} == {
        name: {REFUSED.get(name, "read")} for name in second
    }
