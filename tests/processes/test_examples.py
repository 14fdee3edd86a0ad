"""The examples, as a user runs them: on stock JAX and under the shim."""


import sys

import pytest

from tests.processes.conftest import CHECKOUT, Python

EXAMPLES = {
    "bitonic_sort_benchmark.py": ("--rows=16", "--lanes=32"),
    "matmul.py": ("--size=128",),
    "attention.py": ("--heads=1", "--length=128", "--depth=32"),
}


@pytest.fixture
def python():
    return Python(sys.executable, {"PYTHONPATH": str(CHECKOUT / "sitecustomize_pkg")})


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_under_the_shim(python, name, tmp_path):
    report = tmp_path / "report.json"
    done = python.run(
        CHECKOUT / "examples" / name,
        *EXAMPLES[name],
        PALLAS_NUMPY="1",
        PALLAS_NUMPY_STRICT="1",
        PALLAS_NUMPY_REPORT=str(report),
    )
    assert done.returncode == 0, done.stderr
    assert "first call:" in done.stdout and "warm:" in done.stdout
    assert '"numpy"' in report.read_text()


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_on_stock_jax(python, name):
    path = CHECKOUT / "examples" / name
    done = python.stock().run(path, *EXAMPLES[name], "--interpret")
    assert done.returncode == 0, done.stderr


def test_example_needs_the_shim_or_a_tpu(python):
    done = python.stock().run(CHECKOUT / "examples" / "matmul.py", "--size=128")
    assert done.returncode == 1
    assert "Only interpret mode is supported on CPU backend" in done.stderr
