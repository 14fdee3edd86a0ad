"""Whole Python processes, started from the checkout and from a wheel in a fresh environment."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from typing import Any

import pytest

CHECKOUT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Python:
    """An interpreter, and the variables with which its processes know the shim."""

    executable: str
    variables: dict[str, str]

    def environment(self, **variables: str) -> dict[str, str]:
        ours = ("PALLAS_NUMPY", "PYTHON", "COVERAGE")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        variables.setdefault("PALLAS_NUMPY_CACHE", "0")
        path = [v["PYTHONPATH"] for v in (self.variables, variables) if "PYTHONPATH" in v]
        if path:
            variables["PYTHONPATH"] = os.pathsep.join(path)
        return {**inherited, "PALLAS_NUMPY_VERIFY": "1", **self.variables, **variables}

    def run(
        self, *arguments, cwd=None, timeout=120, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        # In the checkout, or beside a folder that is named like a package, -m and -c find that.
        with tempfile.TemporaryDirectory() as empty:
            return subprocess.run(
                [self.executable, *map(str, arguments)],
                env=self.environment(**variables),
                cwd=cwd or empty,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
            )

    def stock(self) -> Python:
        return Python(self.executable, {})


def rows_of(report: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of all processes in a report that was written as JSON."""
    processes = json.loads(report.read_text())["processes"]
    return [row for process in processes for row in process["kernels"]]


def pip(*arguments) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *map(str, arguments)],
        check=True,
        env={k: v for k, v in os.environ.items() if not k.startswith(("PALLAS_NUMPY", "PYTHON"))},
    )


def site_packages(environment: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))


def fresh_environment(directory: pathlib.Path) -> Python:
    """A virtual environment of its own that sees the packages of this one."""
    venv.create(directory, symlinks=True)
    # Its name sorts after pallas_shim.pth: what the shim needs may come later on sys.path.
    here = sysconfig.get_path("purelib")
    (site_packages(directory) / "the_packages_of_the_tests.pth").write_text(here + "\n")
    return Python(str(directory / "bin" / "python"), {})


@pytest.fixture(scope="session")
def source(tmp_path_factory) -> pathlib.Path:
    """A copy of what packaging reads; builds leave their traces in it and not in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for item in CHECKOUT.iterdir():
        if item.name in ("pallas_shim", "patches", "sitecustomize_pkg"):
            shutil.copytree(item, copy / item.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif item.is_file():
            shutil.copy(item, copy)
    return copy


@pytest.fixture(scope="session")
def wheel(source, tmp_path_factory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", directory, source)
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def from_wheel(wheel, tmp_path_factory) -> Python:
    python = fresh_environment(tmp_path_factory.mktemp("environment") / "venv")
    pip("--python", python.executable, "install", "--no-deps", "--no-index", wheel)
    return python


@pytest.fixture(scope="session")
def bare(tmp_path_factory) -> Python:
    """An environment like `from_wheel`, without the wheel."""
    return fresh_environment(tmp_path_factory.mktemp("bare") / "venv")


@pytest.fixture(scope="session", params=["checkout", "wheel"])
def python(request) -> Python:
    """A Python that knows the shim: by PYTHONPATH from the checkout, or having it installed."""
    if request.param == "wheel":
        return request.getfixturevalue("from_wheel")
    return Python(sys.executable, {"PYTHONPATH": str(CHECKOUT / "sitecustomize_pkg")})
