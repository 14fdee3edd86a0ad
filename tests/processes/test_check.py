"""`python -m pallas_shim check` and PALLAS_NUMPY_CHECK: what is shown, and the exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.processes.conftest import CHECKOUT, Python

# The findings come from the script, so that these tests are of what becomes of them.
SCRIPT = """
import os, signal, sys, time
import jax
from jax.experimental import pallas
from pallas_shim.check.collect import COLLECTOR
from pallas_shim.evaluator.findings import Access, Finding

def find(kernel="accumulate", kind="races"):
    here = Access("writes", "[0:8]", f"{__file__}:1", None, (0,))
    COLLECTOR.add(Finding(kind, "write-write", kernel, "Both write.", "Don't.", (here,), "o_ref"))

def work(_):
    find()
    find("of " + ("parent" if __name__ == "__main__" else "child"))

if __name__ == "__main__":
    exec(sys.argv[1])
"""


@pytest.fixture
def python():
    """How the shim got there makes no difference to these tests."""
    return Python(sys.executable, {"PYTHONPATH": str(CHECKOUT / "sitecustomize_pkg")})


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def check(python, *arguments, **variables):
    return python.run("-m", "pallas_shim", "check", *arguments, **variables)


@pytest.mark.parametrize(
    "does, status, count",
    [
        ("pass", 0, 0),
        ("find(); find(); find('other')", 99, 2),
        ("find(); sys.exit(3)", 3, 1),
        ("find(); os._exit(0)", 99, 1),
        ("find(); raise ValueError", 1, 1),
        ("find(); os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, 1),
        ("find(); os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, 1),
    ],
)
def test_exit_status(python, script, does, status, count):
    got = check(python, script, does)
    assert got.returncode == status, got.stderr
    assert got.stdout == ""
    what = f"{count} findings" if count > 1 else "1 finding " if count else "no findings"
    assert what in got.stderr


def test_files(python, script, tmp_path):
    files = ["--json", tmp_path / "found.json", "--sarif=" + str(tmp_path / "found.sarif")]
    got = check(python, "--exit-code", "7", *files, script, "find()", "--json")
    assert got.returncode == 7
    found = json.loads((tmp_path / "found.json").read_text())
    assert [f["kernel"] for f in found["findings"]] == ["accumulate"]
    (process,) = found["processes"]
    assert process["argv"] == [str(script), "find()", "--json"]
    assert process["versions"]["jax"] and process["versions"]["numpy"]
    sarif = json.loads((tmp_path / "found.sarif").read_text())
    assert sarif["version"] == "2.1.0" and len(sarif["runs"][0]["results"]) == 1


def test_suppressions(python, script, tmp_path):
    file = tmp_path / "known.toml"
    file.write_text('[[suppress]]\nkernel = "accumulate"\n')
    got = check(python, "--suppressions", file, script, "find()")
    assert (got.returncode, "1 by the file of suppressions" in got.stderr) == (0, True)
    got = check(python, "--suppressions", file, script, "find(); find('other')")
    assert (got.returncode, "1 finding " in got.stderr) == (99, True)
    got = check(python, "--suppressions", tmp_path / "missing.toml", script, "print('ran')")
    assert (got.returncode, got.stdout) == (2, "") and "missing.toml" in got.stderr


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_a_pool(python, script, method):
    """The pool kills its workers when it is left."""
    does = f"""if True:
        import multiprocessing
        with multiprocessing.get_context({method!r}).Pool(2) as pool:
            pool.map(work, range(4))
        work(0)"""
    got = check(python, script, does)
    assert got.returncode == 99, got.stderr
    # A forked worker's __name__ is the parent's.
    assert f"{2 if method == 'fork' else 3} findings" in got.stderr


def test_kinds_and_options_become_variables(python, script):
    does = "print({k: v for k, v in os.environ.items() if k.startswith('PALLAS')})"
    got = check(python, "--kinds=races,sync", "--tpu", "v6e", "--strict", script, does)
    assert got.returncode == 0
    variables = eval(got.stdout)
    assert variables["PALLAS_NUMPY_CHECK"] == "races,sync"
    assert variables["PALLAS_NUMPY_TPU"] == "v6e" and variables["PALLAS_NUMPY_STRICT"] == "1"
    for wrong in (["--kinds", "race"], ["--exit-code", "999"], ["--what"]):
        got = check(python, *wrong, script, does)
        assert (got.returncode, got.stdout) == (2, "") and "error: " in got.stderr
    assert check(python).returncode == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_script(python, script, number):
    does = "find(); print('waiting', flush=True); time.sleep(120)"
    process = subprocess.Popen(
        [python.executable, "-m", "pallas_shim", "check", script, does],
        env=python.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # it has no terminal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -number
    assert "1 finding " in errors and ("KeyboardInterrupt" in errors) is (number == signal.SIGINT)


def test_the_variable_alone_shows_a_table_at_exit(python, script):
    variables = {"PALLAS_NUMPY": "1", "PALLAS_NUMPY_CHECK": "1"}
    got = python.run(script, "find()", **variables)
    assert (got.returncode, "1 finding " in got.stderr) == (0, True)
    got = python.run(script, "pass", **variables)
    assert (got.returncode, got.stderr) == (0, "")
    got = python.run(script, "find()", PALLAS_NUMPY="1")
    assert (got.returncode, got.stderr) == (0, "")


EARLY = """
import jax, jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

def reads_early(x_ref, o_ref, buffer, semaphore):
    copy = pltpu.make_async_copy(x_ref, buffer, semaphore)
    copy.start()
    o_ref[...] = buffer[...] + 1
    copy.wait()

x = jnp.ones((8, 128))
call = pl.pallas_call(
    reads_early, out_shape=x, in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
    scratch_shapes=[pltpu.VMEM(x.shape, x.dtype), pltpu.SemaphoreType.DMA],
)
jax.jit(call)(x)
"""


def test_other_orders_alone_show_a_table_at_exit(python, tmp_path):
    path = tmp_path / "early.py"
    path.write_text(EARLY)
    got = python.run(path, PALLAS_NUMPY="1", PALLAS_NUMPY_SCHEDULES="4")
    assert got.returncode == 0, got.stderr
    assert "order-dependent" in got.stderr and "reads_early" in got.stderr
