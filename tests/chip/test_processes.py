"""Whole processes: the exit status, what is printed and reported, and how a script ends."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys

import pytest

from tests.processes.conftest import CHECKOUT, Python

PYTHON = Python(sys.executable, {"PYTHONPATH": f"{CHECKOUT / 'sitecustomize_pkg'}:{CHECKOUT}"})

SCRIPT = """
import atexit, sys, threading, time
import jax, numpy as np
from jax.experimental import pallas as pl

def add_one(x_ref, o_ref):
    o_ref[...] = x_ref[...] + 1

def run(rows):
    block = pl.BlockSpec((rows, 128), lambda i: (i, 0))
    x = np.zeros((4 * rows, 128), np.float32)
    call = pl.pallas_call(
        add_one, grid=(4,), in_specs=[block], out_specs=block, out_shape=x, interpret=True)
    return jax.jit(call)(x)

class Ends:
    def __del__(self, print=print):
        print("deleted")

held = Ends()
atexit.register(print, "at exit")
for rows in map(int, sys.argv[2].split(",")):
    print(float(run(rows).sum()))
"""


def hears_ctrl_c() -> None:
    """Runs in the child. A shell has what runs in its background ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ran(tmp_path, rows, end="", command=("compile", "--tpu", "v6e"), **variables):
    script = tmp_path / "bench.py"
    script.write_text(f"{SCRIPT}\n{end}\n")
    (tmp_path / "tmp").mkdir(exist_ok=True)
    variables = {"JAX_PLATFORMS": "cpu", "TMPDIR": str(tmp_path / "tmp"), **variables}
    got = PYTHON.run("-m", "pallas_shim", *command, script, "x", rows, **variables)
    assert not list((tmp_path / "tmp").iterdir())
    return got


def test_a_refused_kernel_is_status_98(tmp_path):
    got = ran(tmp_path, "8,4")
    assert got.returncode == 98
    assert got.stdout == "4096.0\n2048.0\nat exit\ndeleted\n"
    assert "v6e: add_one" in got.stderr and "divisible by 8 and 128" in got.stderr
    assert "bench.py:" in got.stderr and "1 refused" in got.stderr


def test_kernels_that_are_accepted_change_nothing(tmp_path):
    got = ran(tmp_path, "8", PALLAS_NUMPY_COMPILE_EXECUTOR="tests.chip.fakes:accepting")
    assert (got.returncode, got.stdout) == (0, "4096.0\nat exit\ndeleted\n")
    assert "accepted" in got.stderr and "libtpu 9.9" in got.stderr


@pytest.mark.parametrize(
    "end, status, said",
    [
        ("sys.exit(3)", 3, "refused by JAX's lowering"),
        ("raise ValueError('what')", 1, "ValueError: what"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "interrupted, so no kernel was compiled"),
    ],
)
def test_a_script_that_fails_keeps_its_status(tmp_path, end, status, said):
    got = ran(tmp_path, "4", end)
    assert (got.returncode, got.stdout) == (status, "2048.0\nat exit\ndeleted\n")
    assert said in got.stderr


@pytest.mark.parametrize("executor", ["dying", "chattering"])
def test_a_compiler_that_fails_changes_nothing(tmp_path, executor):
    got = ran(tmp_path, "8", PALLAS_NUMPY_COMPILE_EXECUTOR=f"tests.chip.fakes:{executor}")
    assert (got.returncode, got.stdout) == (0, "4096.0\nat exit\ndeleted\n")
    assert "no verdict" in got.stderr


def test_the_variable_is_enough(tmp_path):
    script = tmp_path / "bench.py"
    script.write_text(SCRIPT)
    got = PYTHON.run(
        script, "x", "4", PALLAS_NUMPY="1", PALLAS_NUMPY_COMPILE="v6e,v5e:4x4", JAX_PLATFORMS="cpu"
    )
    assert got.returncode == 98 and "v6e, v5e:4x4: add_one" in got.stderr


def test_the_report_has_the_verdicts(tmp_path):
    report = tmp_path / "report.json"
    got = ran(tmp_path, "4,8", command=(f"--report={report}", "compile", "--tpu=v6e,v5e"))
    assert got.returncode == 98
    (process,) = json.loads(report.read_text())["processes"]
    rows = process["compiled"]
    other = "lowered" if importlib.util.find_spec("libtpu") is None else "accepted"
    assert [(r["tpu"], r["outcome"]) for r in rows] == [
        ("v6e", "refused"), ("v5e", "refused"), ("v6e", other), ("v5e", other),
    ]  # fmt: skip


def test_a_profile_has_the_functions(tmp_path):
    path = tmp_path / "profile.json"
    got = ran(
        tmp_path, "8", command=("profile", "--tpu", "v6e", "-o", str(path)),
        PALLAS_NUMPY_COMPILE_EXECUTOR="tests.chip.fakes:functions",
    )  # fmt: skip
    assert (got.returncode, got.stdout) == (0, "4096.0\nat exit\ndeleted\n")
    assert "compiled as a whole" in got.stderr and "kernel k" in got.stderr
    (row,) = json.loads(path.read_text())["functions"]
    assert row["function"] == "wrapped" and row["seconds"] > 0


def test_ctrl_c_while_it_compiles(tmp_path):
    """It ends at once, with the script's status."""
    script = tmp_path / "bench.py"
    script.write_text(SCRIPT)
    variables = PYTHON.environment(
        JAX_PLATFORMS="cpu",
        PYTHONUNBUFFERED="1",
        TMPDIR=str(tmp_path),
        PALLAS_NUMPY_COMPILE_EXECUTOR="tests.chip.fakes:silent",
    )
    command = [sys.executable, "-m", "pallas_shim", "compile", "--tpu", "v6e", script, "x", "8"]
    process = subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=hears_ctrl_c,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "4096.0\n" and process.stdout.readline() == "at exit\n"
    while not any(name.startswith("pallas_shim-chip") for name in os.listdir(tmp_path)):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "interrupted" in errors
    assert sorted(os.listdir(tmp_path)) == ["bench.py"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--tpu or --topology has to name a TPU"),
        (["--tpu", "v6e"], "nothing to run"),
        (["--tpu", "v9", "x.py"], "PALLAS_NUMPY_COMPILE='v9' isn't allowed"),
        (["--topology", "v5e:4", "x.py"], "isn't allowed"),
        (["--tpu", "v6e", "--executor", "nonsense", "x.py"], "isn't allowed"),
    ],
)
def test_a_bad_command_line(arguments, message):
    got = PYTHON.run("-m", "pallas_shim", "compile", *arguments)
    assert got.returncode == 2 and message in got.stderr


def test_a_process_without_a_kernel(tmp_path):
    got = PYTHON.run(
        "-m", "pallas_shim", "compile", "--tpu", "v6e", "-c",
        "import jax.experimental.pallas", JAX_PLATFORMS="cpu",
    )  # fmt: skip
    assert got.returncode == 0 and "no Pallas kernel was reached" in got.stderr
