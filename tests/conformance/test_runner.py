"""The runner, on a checkout with one file of tests that pass, fail, are skipped, hang and crash."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.conformance import kept
from tests.conformance.reasons import explained

TESTS = """
import os, sys, time, unittest
import jax, jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

def double(x, interpret=True):
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] + x_ref[...]
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(kernel, out_shape=shape, interpret=interpret)(x)

class Test(unittest.TestCase):
    def test_passes(self):
        self.assertEqual(double(jnp.ones(3)).sum(), 6)

    def test_is_left_to_jax(self):
        mode = sys.modules[pltpu.InterpretParams.__module__].LoggingMode.SEMAPHORE
        logging = pltpu.InterpretParams(logging_mode=mode)
        self.assertEqual(double(jnp.ones(3, jnp.int32), logging).sum(), 6)

    def test_fails(self):
        fixed = os.environ.get("FIXED") or os.environ["PALLAS_NUMPY_SCOPE"]
        self.assertIn(fixed, ("yes", "all"), "not | fixed")

    @unittest.skip("for a reason")
    def test_skipped(self):
        pass

    def test_hangs(self):
        time.sleep(100)

    def test_crashes(self):
        os.abort()
"""


@pytest.fixture
def run(tmp_path):
    """Runs the shim's side, and returns the document."""
    folder = tmp_path / "checkout/tests/pallas"
    folder.mkdir(parents=True)
    (folder / "ops_test.py").write_text(TESTS)
    settings = '[tool.pytest.ini_options]\nfilterwarnings = ["error"]\n'
    (tmp_path / "checkout/pyproject.toml").write_text(settings)

    def run(*arguments, **environment):
        command = [
            sys.executable, "-m", "tests.conformance", str(tmp_path / "checkout"),
            "--keep", str(tmp_path / "kept"), "--out", str(tmp_path / "out.md"),
            "--seconds", "8", "--jobs", "1", "--only", "ops_test", "--no-stock", *arguments,
        ]  # fmt: skip
        environment = {**os.environ, **environment}
        subprocess.run(command, env=environment, check=True, stderr=subprocess.PIPE, text=True)
        return (tmp_path / "out.md").read_text()

    return run


def row(document, *starts):
    """The cells of the one row that starts with these."""
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in document.splitlines()
        if line.startswith("|")
    ]
    (found,) = [cells for cells in rows if tuple(cells[: len(starts)]) == starts]
    return found


def results(tmp_path, *, shim, way=kept.DEFAULT):
    found = kept.Results(tmp_path / "kept", mode=kept.AS_IS, way=way)
    return found.path("ops_test", shim=shim)


def line(name, outcome):
    return json.dumps(
        {
            "test": f"ops_test.py::Test::test_{name}",
            "outcome": outcome,
            "message": "",
            "kernels": [],
            "commit": "of before",
            "date": "2026-01-01",
        }
    )


def test_every_test_has_a_result(run, tmp_path):
    results(tmp_path, shim=False).write_text(line("crashes", "passed"))
    (tmp_path / "out.md").write_text("# Title\n\n## JAX 0.1, as they are\n\nkept\n")
    document = run()
    assert "## JAX 0.1, as they are\n\nkept\n" in document
    assert row(document, "ops_test", "1 / 0 / 0, 5 not run")[2:6] == ["2 / 3 / 1", "1", "0", "1"]
    failed = {
        name: row(document, "ops_test", f"Test::test_{name}")[2:]
        for name in ("fails", "hangs", "crashes")
    }
    ended = "its process crashed, or was ended after 8 s"
    assert failed["crashes"] == ["1", "passed", ended]
    assert failed["hangs"] == ["1", "not run", ended]
    assert "not \\| fixed" in failed["fails"][2]
    assert row(document, "for a reason") == ["for a reason", "1"]


def test_a_file_that_cannot_be_imported_is_no_result(run, tmp_path):
    file = tmp_path / "checkout/tests/pallas/ops_test.py"
    file.write_text("import of_no_such_name\n")
    with pytest.raises(subprocess.CalledProcessError) as error:
        run()
    assert "pytest couldn't run" in error.value.stderr
    assert "No module named 'of_no_such_name'" in error.value.stderr


def test_what_failed_runs_again_and_the_rest_does_not(run, tmp_path):
    others = ("passes", "is_left_to_jax", "skipped", "hangs", "crashes")
    lines = [*(line(name, "passed") for name in others), line("fails", "failed")]
    results(tmp_path, shim=True).write_text("\n".join(lines))
    document = run("--rerun", "failed", FIXED="yes")
    _, _, counts, *_, commits = row(document, "ops_test", "0 / 0 / 0, 6 not run")
    assert counts == "6 / 0 / 0"
    assert commits.endswith(", of before")


def test_each_scope_has_results_of_its_own(run, tmp_path):
    others = ("passes", "is_left_to_jax", "skipped", "hangs", "crashes")
    lines = "".join(line(name, "passed") + "\n" for name in others)
    results(tmp_path, shim=True, way=kept.ALL).write_text(lines)
    document = run("--scope", "all", "--rerun", "missing")
    assert ", as they are, PALLAS_NUMPY_SCOPE=all\n" in document
    assert row(document, "ops_test", "0 / 0 / 0, 6 not run")[2] == "6 / 0 / 0"
    assert not results(tmp_path, shim=True).exists()


def test_a_reason_needs_the_test_and_its_failure():
    test = "tpu_pallas_test::PallasCallTest::test_vmem_limit"
    why = explained(test, "AssertionError: JaxRuntimeError not raised")
    assert why is not None and why.startswith("expects")
    assert explained(test, "Unsupported: a primitive") is None
    assert explained("ops_test::A::test", "AssertionError: JaxRuntimeError not raised") is None


def test_tests_that_fail_alike_are_one_row(run, tmp_path):
    names = ("sum0", "sum20", "sum21", "float32")
    results(tmp_path, shim=False).write_text("\n".join(line(n, "passed") for n in names))
    alike = "\n".join(line(n, "failed") for n in (*names, "sum3"))
    results(tmp_path, shim=True).write_text(alike)
    document = run("--rerun", "nothing")
    assert row(document, "ops_test", "Test::test_float32")[2:] == ["1", "passed", "-"]
    assert row(document, "ops_test", "Test::test_sum", "3")[3:] == ["passed", "-"]
    assert row(document, "ops_test", "Test::test_sum", "1")[3:] == ["not run", "-"]


CHECKED = """
import unittest
import jax, jax.numpy as jnp
from jax.experimental import pallas as pl

class Test(unittest.TestCase):
    def add_up(self, cleared):
        def add_up(x_ref, o_ref):
            @pl.when((pl.program_id(0) == 0) & cleared)
            def clear():
                o_ref[...] = jnp.zeros_like(o_ref)
            o_ref[...] += x_ref[...]
        call = pl.pallas_call(
            add_up, out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32), grid=(2,),
            in_specs=[pl.BlockSpec((8, 128), lambda i: (i, 0))],
            out_specs=pl.BlockSpec((8, 128), lambda i: (0, 0)), interpret=True,
        )
        call(jnp.ones((16, 128)))

    def test_right(self):
        self.add_up(True)

    def test_not_cleared(self):
        self.add_up(False)
"""


def test_what_checks_find_is_named(run, tmp_path):
    (tmp_path / "checkout/tests/pallas/pallas_test.py").write_text(CHECKED)
    document = run("--check", "--only", "pallas_test")
    assert ", as they are, checked\n" in document
    assert row(document, "pallas_test", "2 / 0 / 0")[2:4] == ["2", "1"]
    cells = row(document, "pallas_test: Test::test_not_cleared")
    assert cells[1:4] == ["add_up", "uninitialized/read-before-write of o_ref", "1"]
    assert cells[4].startswith("not known to be a fault: ")
