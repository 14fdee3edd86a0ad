"""The reports of several processes: nothing is lost, whatever becomes of them."""

from __future__ import annotations

import sys

import pytest

from pallas_shim.reports import files
from tests.processes.conftest import CHECKOUT, Python

SCRIPT = """
import multiprocessing, os, signal, subprocess, sys, time

def work(i):
    import jax, numpy as np
    from jax.experimental import pallas as pl
    global double
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] + x_ref[...]
    if i < 2:
        out = jax.ShapeDtypeStruct((8,), np.float32)
        double = jax.jit(lambda x: pl.pallas_call(kernel, out_shape=out, interpret=True)(x))
    elif "double" not in globals():
        work(0)
    return float(double(np.ones(8, np.float32))[0])

def fork(after):
    child = os.fork()
    if not child:
        work(0)
        exec(after)
    os.waitpid(child, 0)

def again(*arguments):
    subprocess.run([sys.executable, __file__, *arguments], check=True)

if __name__ == "__main__":
    exec(sys.argv[1])
"""


@pytest.fixture
def run(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    python = Python(sys.executable, {"PYTHONPATH": str(CHECKOUT / "sitecustomize_pkg")})

    def run(does, report="report.json", **variables):
        variables = {"PALLAS_NUMPY": "1", "PALLAS_NUMPY_REPORT": report, **variables}
        got = python.run(script, does, cwd=tmp_path, **variables)
        assert (got.returncode, got.stderr) == (0, ""), got.stderr
        return tmp_path / report

    return run


def calls(path) -> int:
    return sum(row["calls"] for row in files.read(str(path)).rows)


def has_only(path) -> bool:
    return [p.name for p in path.parent.iterdir() if p.name != "script.py"] == [path.name]


@pytest.mark.parametrize(
    "method, parent_calls", [("fork", False), ("spawn", True), ("forkserver", False)]
)
def test_a_pool(run, method, parent_calls):
    """It kills its workers when it is left. The parent needn't have imported JAX."""
    path = run(
        f"""if True:
        if {parent_calls}:
            work(0)
        with multiprocessing.get_context({method!r}).Pool(2) as pool:
            pool.map(work, [1, 1, 1, 1], chunksize=1)
        """
    )
    assert calls(path) == (5 if parent_calls else 4)
    assert has_only(path)


def test_forked_processes(run):
    path = run(
        """if True:
        import warnings
        warnings.simplefilter("ignore")  # JAX warns of a fork
        work(0)
        for after in "sys.exit()", "os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)":
            fork(after)
        """
    )
    assert calls(path) == 4 and has_only(path)


@pytest.mark.parametrize("call", ["os.replace", "os.unlink"])
@pytest.mark.parametrize("is_made", [True, False])
def test_processes_killed_while_they_write(run, call, is_made):
    """A pool kills its workers, also those that are just ending."""
    path = run(
        f"""if True:
        import warnings
        warnings.simplefilter("ignore")  # JAX warns of a fork
        work(0)
        made = {call}
        def dies(*paths):
            if {is_made}:
                made(*paths)
            os._exit(0)
        dying = "{call} = dies; sys.exit()"
        for after in dying, "os._exit(0)", dying:
            fork(after)
        """
    )
    assert calls(path) == 4 and has_only(path)


def test_subprocesses_and_runs_after_one_another(run):
    path = run("again('work(0)'); again('work(0); work(0)')")
    assert calls(path) == 3  # this one has not imported JAX
    path = run("work(0); again('work(0)')")
    assert calls(path) == 2  # and nothing of the run before
    assert has_only(path)


def test_a_directory_and_a_pid(run, tmp_path):
    directory = run("work(0); again('work(0)')", "reports/")
    assert len(list(directory.iterdir())) == 2 and calls(directory) == 2
    assert calls(run("work(0)", "a/new/directory/report.json")) == 1
    run("work(0); again('work(0)')", "of-{pid}.json")
    paths = list(tmp_path.glob("of-*.json"))
    assert len(paths) == 2 and sum(map(calls, paths)) == 2
    # Nobody gathers there what a killed process leaves, so whoever reads it does.
    directory = run("fork('os._exit(0)'); work(0)", "killed/")
    assert calls(directory) == 2


def test_runs_at_the_same_time(run):
    path = run(
        """if True:
        del os.environ["_PALLAS_SHIM_RUN"]  # as if a shell had started them
        others = [subprocess.Popen([sys.executable, __file__, "work(0); time.sleep(1)"])
                  for _ in range(2)]
        print([other.wait() for other in others])
        """
    )
    assert calls(path) == 2


def test_they_are_merged(run, tmp_path):
    python = Python(sys.executable, {"PYTHONPATH": str(CHECKOUT / "sitecustomize_pkg")})
    run("work(0)", "a.json")
    run("work(0); again('work(0)')", "b/")
    report = ["-m", "pallas_shim", "report"]
    got = python.run(*report, "a.json", "b", cwd=tmp_path)
    assert got.returncode == 0 and "the Pallas kernels of 3 processes" in got.stdout
    got = python.run(*report, "a.json", "b", "-o", "all.json", cwd=tmp_path)
    assert (got.returncode, got.stdout) == (0, "")
    assert calls(tmp_path / "all.json") == 3
    got = python.run(*report, "missing.json", cwd=tmp_path)
    assert got.returncode == 1 and "missing.json" in got.stderr
