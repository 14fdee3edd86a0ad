"""Notebooks, executed as Jupyter does."""

from __future__ import annotations

import sys
from typing import Any

import nbclient
import nbformat
import pytest

from tests.processes.conftest import CHECKOUT, Python

SETUP = """
import jax, numpy as np
from jax.experimental import pallas as pl

def kernel(x_ref, o_ref):
    o_ref[...] = x_ref[...] + x_ref[...]

@jax.jit
def double(x):
    return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

x = np.arange(8, dtype=np.float32)
"""


@pytest.fixture
def execute(tmp_path):
    python = Python(sys.executable, {"PYTHONPATH": str(CHECKOUT / "sitecustomize_pkg")})

    def execute(*cells: str) -> list[list[Any]]:
        """The outputs of each cell. A cell that begins with ``fails:`` may fail."""
        made = [nbformat.v4.new_code_cell(cell.removeprefix("fails:")) for cell in cells]
        for cell, given in zip(made, cells, strict=True):
            cell.metadata["tags"] = ["raises-exception"] * given.startswith("fails:")
        notebook = nbformat.v4.new_notebook(cells=made)
        resources = {"metadata": {"path": str(tmp_path)}}
        client = nbclient.NotebookClient(
            notebook, timeout=120, kernel_name="python3", resources=resources
        )
        unset = {"PALLAS_NUMPY_CACHE": "", "IPYTHONDIR": str(tmp_path)}
        client.execute(env=python.environment(**unset))
        return [cell.outputs for cell in made]

    return execute


def text(outputs: list[Any]) -> str:
    """What a cell printed, and the text of what it showed."""
    return "".join(
        output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
        for output in outputs
    )


def html(outputs: list[Any]) -> str:
    return "".join(output.get("data", {}).get("text/html", "") for output in outputs)


def test_the_extension(execute):
    """Loaded after JAX has run, and after a kernel was refused."""
    outputs = execute(
        SETUP + "jax.block_until_ready(jax.jit(lambda x: x + 1)(x))",
        "fails:double(x)",
        "fails:double(x)",
        "%load_ext pallas_shim",
        "print(double(x)[7])",
        "%%pallas_report\ny = double(x)",
        "import pallas_shim\npallas_shim.report()",
        "%pallas_numpy off",
        "fails:double(x + 1j)",
        "%pallas_numpy on\n%pallas_numpy status",
        "print(double(x)[7])",
        "fails:%pallas_numpy maybe",
        "fails:%%pallas_report\n1 / 0",
        "%unload_ext pallas_shim\nimport pallas_shim; print(pallas_shim.is_active())",
    )
    refused, again, loaded, ran, cell, report, off, fails, on, ran_again, bad, error, end = map(
        text, outputs[1:]
    )
    assert "%load_ext pallas_shim runs this kernel in NumPy" in refused
    assert "%load_ext" not in again  # said once
    assert "is on: Pallas kernels run in NumPy (JAX 0." in loaded
    assert ran == ran_again == "14.0\n"
    (row,) = [line for line in cell.splitlines() if line.startswith("kernel  double")]
    assert row.split()[4:6] == ["1", "numpy"]  # of this cell
    assert "<td" in html(outputs[5]) and "double" in html(outputs[5])
    (row,) = [line for line in report.splitlines() if line.startswith("kernel  double")]
    assert row.split()[4:6] == ["2", "numpy"]
    assert "<td" in html(outputs[6])
    assert " is off " in off and on.count(" is on: ") == 2
    assert "Only interpret mode" in str(outputs[8])
    assert "takes on, off or status, not maybe" in str(outputs[11])
    assert "ZeroDivisionError" in str(outputs[12])
    assert end == "False\n"


def test_the_variable(execute):
    """It is early enough before JAX is imported."""
    outputs = execute("%env PALLAS_NUMPY=1", SETUP, "print(double(x)[7])")
    assert text(outputs[2]) == "14.0\n"
