"""What is wrong is named once, and the exit status says it too."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "name, value, allowed",
    [
        ("PALLAS_NUMPY", "yes", "0, 1 or force"),
        ("PALLAS_NUMPY_STRICT", "2", "0 or 1"),
        ("PALLAS_NUMPY_PASSES", "fold", "-hoisting,-copy_elision"),
        ("PALLAS_NUMPY_PASSES", "-hosting", "hoisting"),
        ("PALLAS_NUMPY_STICT", "1", "PALLAS_NUMPY_STRICT"),
    ],
)
def test_a_bad_variable(python, name, value, allowed):
    got = python.run("-c", "print('ran')", **{"PALLAS_NUMPY": "1", name: value})
    assert (got.returncode, got.stdout) == (1, "")
    (line,) = got.stderr.splitlines()
    assert name in line and allowed in line

    got = python.run("-c", "import pallas_shim; pallas_shim.activate()", **{name: value})
    assert got.returncode == 1
    assert name in got.stderr and "Traceback" not in got.stderr or "SettingError" in got.stderr


@pytest.mark.parametrize("missing", ["wrapt", "importlib_metadata"])
def test_a_missing_requirement(python, tmp_path, missing):
    (tmp_path / f"{missing}.py").write_text(
        f"raise ModuleNotFoundError(\"No module named '{missing}'\", name='{missing}')"
    )
    variables = {"PALLAS_NUMPY": "1", "PYTHONPATH": str(tmp_path)}
    got = python.run("-c", "import jax; print('ran')", **variables)
    assert (got.returncode, got.stdout) == (0, "ran\n")
    (line,) = got.stderr.splitlines()
    assert "stock JAX" in line and f"No module named '{missing}'" in line and "install" in line

    code = "print('began'); import jax; print('ran')"
    got = python.run("-c", code, PALLAS_NUMPY_STRICT="1", **variables)
    assert (got.returncode, got.stdout) == (1, "began\n")
    assert f"No module named '{missing}'" in got.stderr


def test_site_packages_hidden_by_a_sitecustomize(from_wheel, tmp_path):
    """As pip does in the environments in which it builds."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]"
    )
    got = from_wheel.run("-c", "print('ran')", PALLAS_NUMPY="1", PYTHONPATH=str(tmp_path))
    assert (got.returncode, got.stdout) == (0, "ran\n")
    (line,) = got.stderr.splitlines()
    assert "stock JAX" in line and "No module named 'pallas_shim'" in line


def test_metadata_that_cannot_be_read(python, tmp_path):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_bytes(b"[pallas_shim.patches]\nx = \xff:y\n")
    code = "import jax; print('ran')"
    got = python.run("-c", code, PALLAS_NUMPY="1", PYTHONPATH=str(tmp_path))
    assert (got.returncode, got.stdout) == (0, "ran\n")
    (line,) = got.stderr.splitlines()
    assert "stock JAX" in line and "UnicodeDecodeError" in line
