"""Kernels and functions on several devices, in processes that have some."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.machine.cases import CASES

ROOT = pathlib.Path(__file__).resolve().parents[2]

# A process that hangs is a failure of all that it has yet to run.
SECONDS = 300


@functools.cache
def results() -> dict[str, dict]:
    """What the cases did, all in one process of eight devices."""
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PALLAS_NUMPY_VERIFY": "1",
        "PALLAS_NUMPY_TPU": "v7x",  # SparseCore has to be asked about
        "PYTHONPATH": str(ROOT),
    }
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "tests.machine.cases"], cwd=ROOT, env=environment,
            capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip
        out, err = ran.stdout, ran.stderr
    except subprocess.TimeoutExpired as expired:
        out, err = (text.decode() if text else "" for text in (expired.stdout, expired.stderr))
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {"stderr": {"error": err}, **{line["case"]: line for line in lines}}


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    found = results()
    assert name in found, f"it hung, or its process ended: {found['stderr']['error'][-3000:]}"
    assert found[name]["error"] is None, found[name]["error"]
    assert found[name]["rungs"] == ["numpy"], found[name]
