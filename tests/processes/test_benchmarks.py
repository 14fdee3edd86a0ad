"""The benchmarks, as a developer runs them; what they make of figures."""

import json
import sys

import numpy as np
import pytest

from tests.processes.conftest import CHECKOUT, Python

RUN = CHECKOUT / "benchmarks" / "run.py"


@pytest.fixture
def python():
    return Python(sys.executable, {"PYTHONPATH": str(CHECKOUT / "sitecustomize_pkg")})


@pytest.fixture
def benchmarks(monkeypatch):
    """The benchmarks' modules can be imported, by a test that is over before others see them."""
    monkeypatch.syspath_prepend(str(CHECKOUT / "benchmarks"))


def test_a_kernel_and_what_is_kept(python, tmp_path):
    ways = ["stock", "stages", "shim"]
    arguments = ["--quick", "--only", "add of 8 numbers", "--keep", tmp_path, "--ways", *ways]
    done = python.run(RUN, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "add of 8 numbers, 10,000 calls: first" in done.stdout
    for title in ("Targets", "First calls", "Warm calls and memory", "The steps of"):
        assert f"## {title}" in done.stdout
    kept = {path: json.loads(path.read_text()) for path in tmp_path.rglob("*.json")}
    assert {path.parent.name.rpartition("-")[0] for path in kept} == set(ways)
    assert all(not figures.keys() & {"failed", "limit"} for figures in kept.values())

    # Nothing is measured again; a kept result that isn't stock's is an error.
    (shim,) = tmp_path.rglob("shim-*/0.npz")
    np.savez(shim, np.zeros(8, np.float32))
    done = python.run(RUN, *arguments)
    assert done.returncode == 1
    assert "WRONG: add of 8 numbers, 10,000 calls, shim: result 0 differs" in done.stderr
    assert kept == {path: json.loads(path.read_text()) for path in tmp_path.rglob("*.json")}


def test_a_process_that_takes_too_long(python):
    done = python.run(RUN, "--quick", "--only", "add of 8", "--ways", "stages", "--limit", "0.1")
    assert done.returncode == 1
    assert "the steps of the first call: took longer than the limit" in done.stderr


def test_an_unknown_kernel(python):
    done = python.run(RUN, "--only", "no such kernel")
    assert done.returncode == 2
    assert "no kernel's name holds no such kernel" in done.stderr


def test_there_are_kernels_of_every_kind(python):
    done = python.run(RUN, "--list")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 40


def test_scaling(python):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import scaling;"
        "print(scaling.first_calls([60, 120])); print(scaling.warm_calls([(4, 8), (8, 8)], True))"
    )
    done = python.run("-c", code, CHECKOUT / "benchmarks")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 4 * 2 + 2 + 2


@pytest.mark.parametrize(
    ("got", "says"),
    [
        ([np.float32([1, 2])], None),
        ([np.float32([1, 2.0001])], "differs in 1 of 2 values, first at (1,)"),
        ([np.float32([1, np.nan])], "differs in 1 of 2 values"),
        ([np.float64([1, 2])], "is float64(2,) instead of float32(2,)"),
        ([], "0 results instead of 1"),
    ],
)
def test_different_results(benchmarks, got, says):
    from compare import difference

    found = difference(got, [np.float32([1, 2])], 1e-5)
    assert found is None if says is None else says in found


def test_ratios(benchmarks):
    from measured import Measured, mean

    stock = [{"first_wall": 6.0, "peak": 30}, {"first_wall": 2.0, "peak": 30}]
    shim = [{"first_wall": 2.0, "peak": 10}, {"first_wall": 1.0, "peak": 20}]
    limit = [{"limit": 300.0}]
    kernel = Measured("k", {"stock": stock, "shim": shim, "tpu_interpreter": limit}, None, "wall")
    ratio = kernel.time_ratio("stock", "shim", "first")
    assert str(ratio) == "2.5 (2 to 3)"
    assert str(kernel.time_ratio("tpu_interpreter", "shim", "first")) == "> 200"
    assert kernel.time_ratio("tpu_interpreter", "shim", "warm") is None
    assert str(kernel.peak_ratio("shim", "stock")) == "0.5 (0.333 to 0.667)"
    assert mean([ratio, None, kernel.peak_ratio("stock", "shim")]) == pytest.approx(2.37, 1e-2)
    assert kernel.why_not("tpu_interpreter") == "InterpretParams: ended after 300 s"


def test_errors_of_functions_of_float32(benchmarks):
    from float32_functions import ONE, errors, in_float64

    of_numpy, here, _ = errors("rsqrt", 10007)
    assert 0.7 < here < 0.87 and 1.2 < of_numpy < 1.5
    x = np.linspace(1, 9, 20001, dtype=np.float32)
    got = in_float64(lambda x: np.divide(1.0, x, x))(x)
    np.testing.assert_array_equal(got, ONE / x)


def test_a_line_of_a_script(benchmarks, tmp_path):
    import scripts

    notebook = tmp_path / "small.ipynb"
    cells = [
        {"cell_type": "markdown", "source": ["text"]},
        {"cell_type": "code", "source": ["%pip install x\n", "print(1)\n"]},
        {"cell_type": "code", "source": "print(2)"},
    ]
    notebook.write_text(json.dumps({"cells": cells}))
    of_notebook = scripts.script(f"a name:: PALLAS_NUMPY_TPU=v5e {notebook} --size=8", tmp_path)
    assert of_notebook.name == "a name"
    assert of_notebook.variables == {"PALLAS_NUMPY_TPU": "v5e"}
    assert of_notebook.command[1:] == ["--size=8"]
    with open(of_notebook.command[0]) as file:
        assert file.read() == "print(1)\n\nprint(2)"
    plain = scripts.script("examples/timing.py", tmp_path)
    assert plain.name == "examples/timing.py" and plain.command == [
        str(CHECKOUT.cwd() / "examples/timing.py")
    ]


def test_whole_scripts_fail_and_take_too_long(benchmarks, tmp_path):
    import scripts

    code = tmp_path / "short.py"
    code.write_text("import sys, time\ntime.sleep(float(sys.argv[1]))\nraise KeyError('why')")
    failed = scripts.script(f"{code} 0", tmp_path)
    slow = scripts.script(f"slow:: {code} 60", tmp_path)
    runs = {}
    for each, limit in ((failed, 20), (slow, 0.2)):
        run = scripts.run(each, "kernels", tmp_path / "cache", limit, "wall")
        runs[each.name] = dict.fromkeys(scripts.WAYS, run)
    lines = scripts.table(runs, "wall")
    everywhere = ", ".join(scripts.WAYS)
    assert f"- {failed.name}; {everywhere}: status 1: KeyError: 'why'" in lines
    assert f"- slow; {everywhere}: not within 0.2 s" in lines
    times = {way: scripts.Run(2.0, 3.0) for way in scripts.WAYS}
    times["interpret=True"] = scripts.Run(6.0, 3.0)
    row = "| x | 2.0 s | 2.0 s | 2.0 s | 2.0 s | 6.0 s | 3 | 1 |"
    assert row in scripts.table({"x": times}, "wall")
