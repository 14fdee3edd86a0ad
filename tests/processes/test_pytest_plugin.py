"""The pytest plugin, in whole sessions."""

from __future__ import annotations

import json
import sys

import pytest

from tests.processes.conftest import CHECKOUT, Python

TESTS = """
import os
import jax, jax.extend, numpy as np, pytest
from jax.experimental import pallas as pl
from jax.interpreters import mlir

X = np.ones((8, 128), np.float32)

def kernel(x_ref, o_ref):
    o_ref[...] = x_ref[...] + x_ref[...]

unknown_p = jax.extend.core.Primitive("unknown_to_the_shim")
unknown_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(unknown_p, mlir.lower_fun(lambda x: x * 3, multiple_results=False))

def unknown(x_ref, o_ref):
    o_ref[...] = unknown_p.bind(x_ref[...])

def run(kernel, **more):
    out = jax.ShapeDtypeStruct(X.shape, X.dtype)
    return jax.jit(lambda x: pl.pallas_call(kernel, out_shape=out, **more)(x))(X)

def find(kernel):
    from pallas_shim.check.collect import COLLECTOR
    from pallas_shim.evaluator.findings import Access, Finding
    here = Access("writes", "[0:8]", f"{__file__}:1")
    COLLECTOR.add(Finding("races", "write-write", kernel, "Both write.", "Don't.", (here,)))
"""

FIXTURE = """
def test_numpy(pallas_report):
    run(kernel)
    run(kernel)
    assert pallas_report.rungs == {"numpy"} and not pallas_report.fallbacks
    assert sum(row["calls"] for row in pallas_report.rows) == 2

def test_nothing_of_the_test_before(pallas_report):
    assert pallas_report.rows == []

def test_a_fallback(pallas_report):
    with pytest.warns(UserWarning, match="runs in JAX"):
        run(unknown, interpret=True)
    assert pallas_report.rungs == {"jax"} and "unknown_to_" in pallas_report.fallbacks[0]

def test_findings_need_checks(pallas_report):
    if "PALLAS_NUMPY_CHECK" in os.environ:
        assert pallas_report.findings == []
    else:
        with pytest.raises(Exception, match="--pallas-check"):
            pallas_report.findings

@pytest.mark.pallas_stock
def test_stock():
    with pytest.raises(ValueError, match="Only interpret mode"):
        run(kernel)
"""

CHECKED = """
import pytest

@pytest.mark.parametrize("i", range(2))
def test_wrong(i):
    find("wrong")

def test_right():
    pass

def test_fails():
    find("fails")
    assert 0, "of the test"
"""


@pytest.fixture
def session(tmp_path):
    python = Python(sys.executable, {"PYTHONPATH": str(CHECKOUT)})

    def session(tests, *options, **variables):
        (tmp_path / "test_it.py").write_text(TESTS + tests)
        plugin = ["-p", "pallas_shim.plugins.pytest_plugin", "-p", "no:cacheprovider"]
        return python.run(
            "-m", "pytest", "-q", *plugin, *options, "test_it.py",
            cwd=tmp_path, PALLAS_NUMPY_VERIFY="", PALLAS_NUMPY_CACHE="",
            CI="",  # under it pytest repeats whole messages in its summary
            **variables,
        )  # fmt: skip

    return session


def test_the_fixture_and_the_marker(session):
    got = session(FIXTURE)  # the fixture needs no option
    assert got.returncode == 0 and "5 passed" in got.stdout, got.stdout
    got = session(FIXTURE, "--pallas-numpy", "--strict-markers")
    assert got.returncode == 0 and "5 passed" in got.stdout, got.stdout
    assert "Pallas kernels: " in got.stdout and "on rung numpy" in got.stdout


def test_unused_it_imports_nothing(session):
    got = session("""
def test_it():
    import sys
    ours = {name for name in sys.modules if name.startswith("pallas_shim")}
    assert ours == {"pallas_shim", "pallas_shim.plugins", "pallas_shim.plugins.pytest_plugin"}
""")
    assert got.returncode == 0, got.stdout


def test_strict(session):
    test = """
def test_it():
    run(unknown, interpret=True)
"""
    got = session(test, "--pallas-strict")
    assert got.returncode == 1 and "PALLAS_NUMPY_STRICT=1 makes this an error" in got.stdout


def test_check(session):
    got = session(CHECKED, "--pallas-check")
    assert got.returncode == 1 and "3 failed, 1 passed" in got.stdout, got.stdout
    assert "of the test" in got.stdout
    assert got.stdout.count("races/write-write: kernel wrong") == 3  # two tests, and the summary
    assert "2 findings (2 races)" in got.stdout.rpartition("= pallas_shim =")[2]
    outside = "find('outside')\ndef test_right(): pass\n"
    got = session(outside, "--pallas-check")
    assert got.returncode == 1 and "1 passed" in got.stdout and "1 finding " in got.stdout
    got = session(outside, "--pallas-numpy")
    assert got.returncode == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_one_table(session, tmp_path, workers):
    tests = """
@pytest.mark.parametrize("i", range(4))
def test_it(i):
    run(kernel)
    find("wrong")
"""
    options = ["--pallas-report", "report.json", "--pallas-check"]
    got = session(tests, *options, *(["-n", str(workers)] if workers else []))
    assert got.returncode == 1 and "4 failed" in got.stdout, got.stdout
    summary = got.stdout.rpartition("= pallas_shim =")[2]
    (row,) = [line for line in summary.splitlines() if line.startswith("kernel  <lambda>")]
    assert row.split()[4:6] == ["4", "numpy"]
    assert "1 finding (1 races)" in summary
    written = json.loads((tmp_path / "report.json").read_text())
    rows = [row for process in written["processes"] for row in process["kernels"]]
    assert sum(row["calls"] for row in rows) == 4
    assert len([p for p in written["processes"] if p["kernels"]]) == (workers or 1)


def test_bad_variables(session):
    got = session(CHECKED, "--pallas-numpy", PALLAS_NUMPY_STRICT="maybe")
    assert got.returncode == 4 and "0 or 1" in got.stderr and "Traceback" not in got.stderr


@pytest.mark.parametrize("value", ["", "1"])
def test_an_installed_wheel_causes_no_warning(from_wheel, tmp_path, value):
    """What pytest finds imported before it can't be rewritten, of which it warns."""
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass")
    got = from_wheel.run("-m", "pytest", "-q", cwd=tmp_path, PALLAS_NUMPY=value)
    assert got.stdout.splitlines()[-1].startswith("1 passed in"), got.stdout
