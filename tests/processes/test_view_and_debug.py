"""The verbs view and debug, in whole processes."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

SCRIPT = """
import sys
import jax
import numpy as np
from jax.experimental import pallas as pl

def kernel(x_ref, o_ref):
    y = x_ref[...] * 2
    o_ref[...] = y + 1

@jax.jit
def run(x):
    spec = pl.BlockSpec((4,), lambda i: (i,))
    return pl.pallas_call(kernel, grid=(3,), in_specs=[spec], out_specs=spec, out_shape=x)(x)

print(np.asarray(run(np.arange(12, dtype=np.float32))).sum(), sys.argv[1:])
sys.exit(int(sys.argv[-1]))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def test_view(python, script, tmp_path):
    status = 3
    page, trace = tmp_path / "page.html", tmp_path / "trace.json"
    arguments = ["view", "--perfetto", trace, script, "a", status, "-o", page]
    ran = python.run("-m", "pallas_shim", *arguments)
    assert ran.returncode == status, ran.stderr
    assert ran.stdout == f"144.0 ['a', '{status}']\n"
    assert f"1 kernel in {trace}, {page}" in ran.stderr
    (held,) = re.findall(r'id="trace">(.*?)</script>', page.read_text(), re.S)
    (run,) = json.loads(held)["kernels"][0]["runs"]
    assert run["operands"][0]["blocks"] == [[0], [4], [8]]
    assert json.loads(trace.read_text())["traceEvents"]


def test_view_of_nothing(python, tmp_path):
    ran = python.run("-m", "pallas_shim", "view", "-o", tmp_path / "page.html", "-c", "print(1)")
    assert (ran.returncode, ran.stdout) == (1, "1\n")
    assert "0 kernels" in ran.stderr


def debug(python, *arguments, commands):
    return subprocess.run(
        [python.executable, "-m", "pallas_shim", "debug", *map(str, arguments)],
        input="\n".join(commands), env=python.environment(), capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip


def test_debug(python, script):
    commands = ["n", "p y", "who o_ref", "watch o_ref[1]", "c", "c"]
    ran = debug(python, script, "0", "--cell", "1", commands=commands)
    assert ran.returncode == 0, ran.stderr
    assert "array([ 8., 10., 12., 14.], dtype=float32)" in ran.stdout
    assert "nothing in the kernel has written it" in ran.stdout
    assert "o_ref[1] changed from nan to 11.0" in ran.stdout
    assert "144.0 ['0']" in ran.stdout


def test_debug_quits_at_the_end_of_input(python, script):
    ran = debug(python, script, "0", commands=[])
    assert ran.returncode == 0 and "144" not in ran.stdout
    ran = debug(python, "--kernel", "other", script, "0", commands=[])
    assert ran.returncode == 1 and "144.0" in ran.stdout
    assert "no kernel other ran; these did: kernel (3 cells)" in ran.stderr
