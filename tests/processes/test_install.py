"""What pip puts into an environment, and takes out of it again."""

from __future__ import annotations

import email
import email.message
import os
import re
import subprocess
import sys
import tarfile
import zipfile

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


def metadata(wheel) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_what_an_index_shows(source, wheel, tmp_path):
    shown = metadata(wheel)
    assert "Typing :: Typed" in shown.get_all("Classifier", [])
    # An index has no files beside the README.
    of_files = re.compile(r"\]\((?!https?://|#)")
    text = str(shown.get_payload())
    assert "docs/usage.md" in text and not of_files.search(text)
    assert "pallas_shim/py.typed" in zipfile.ZipFile(wheel).namelist()

    url = "https://example.org/pallas_shim"
    build = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, tmp_path], cwd=source, check=True, capture_output=True,
        env={**os.environ, "PALLAS_SHIM_URL": url},
    )  # fmt: skip
    (released,) = tmp_path.glob("*.whl")
    shown = metadata(released)
    assert f"Source, {url}" in shown.get_all("Project-URL", [])
    text = str(shown.get_payload())
    assert f"[docs/usage.md]({url}/blob/main/docs/usage.md)" in text and not of_files.search(text)


def test_a_wheel_from_the_sdist_is_the_same(source, wheel, tmp_path):
    build = "import sys, setuptools.build_meta as b; b.build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", build, tmp_path], cwd=source, check=True, capture_output=True
    )
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CHANGELOG.md", ".importlinter", "MANIFEST.in"} <= held
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", tmp_path, sdist)
    (again,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(names)
    assert {"pallas_shim.pth", "pallas_shim.start", "_pallas_shim_start.py"} <= set(names)
