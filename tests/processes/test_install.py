"""What pip puts into an environment, and takes out of it again."""

from __future__ import annotations

import pytest

from tests.processes.conftest import fresh_environment, pip

ASK = "import sys; print('pallas_shim' in sys.modules and sys.modules['pallas_shim'].is_active())"


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_install_and_uninstall(source, wheel, tmp_path, editable):
    directory = tmp_path / "venv"
    python = fresh_environment(directory)
    before = set(directory.rglob("*"))
    target = ["--no-build-isolation", "-e", source] if editable else [wheel]
    pip("--python", python.executable, "install", "--no-deps", "--no-index", *target)
    top = {path.name: path.parent for path in set(directory.rglob("*")) - before}
    assert top["pallas_shim.pth"] == top["pallas_shim.start"] == top["pallas_shim-0.1.0.dist-info"]

    got = python.run("-c", ASK, cwd=tmp_path, PALLAS_NUMPY="1")
    assert (got.stdout, got.stderr) == ("True\n", "")
    got = python.run("-m", "pallas_shim", "-c", ASK, cwd=tmp_path)
    assert (got.stdout, got.stderr) == ("True\n", "")

    pip("--python", python.executable, "uninstall", "-y", "pallas_shim")
    assert set(directory.rglob("*")) == before
    assert python.run("-c", ASK, cwd=tmp_path, PALLAS_NUMPY="1").stdout == "False\n"


def test_a_wheel_from_the_sdist_is_the_same(source, wheel, tmp_path):
    import subprocess
    import sys
    import zipfile

    build = "import sys, setuptools.build_meta as b; b.build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, tmp_path], cwd=source, check=True, capture_output=True
    )
    (sdist,) = tmp_path.glob("*.tar.gz")
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", tmp_path, sdist)
    (again,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(names)
    assert {"pallas_shim.pth", "pallas_shim.start", "_pallas_shim_start.py"} <= set(names)
