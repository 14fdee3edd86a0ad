"""scripts/run_unmodified.sh, on a machine where nothing is installed and with PYTHON=."""

from __future__ import annotations

import concurrent.futures
import subprocess

import pytest

from tests.processes.conftest import CHECKOUT

SCRIPT = """
import sys
import pallas_shim
print(sys.argv, pallas_shim.is_active(), "sitecustomize_pkg" in sys.path[1])
sys.exit(3)
"""
OUTPUT = "['script.py', 'a b'] True False\n"

# Stands in for the network: what pip would install is what {python}'s environment has.
STAND_IN = """#!/bin/sh
case "$1 $2" in
"-m venv") sleep {slow}; mkdir -p "$3/bin" && ln -s "$0" "$3/bin/python" ;;
"-m pip") echo "$*" >>{log}; exit {status} ;;
*) exec {python} "$@" ;;
esac
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def run_unmodified(*arguments, cwd, env):
    script = CHECKOUT / "scripts" / "run_unmodified.sh"
    return subprocess.run(
        [script, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=60
    )


def machine(place, python, status=0, slow=0):
    """The variables of a machine that has one Python, a stand-in, and an empty cache."""
    stand_in = place / "bin" / "python3"
    stand_in.parent.mkdir()
    log = place / "pip.log"
    stand_in.write_text(
        STAND_IN.format(python=python.executable, log=log, status=status, slow=slow)
    )
    stand_in.chmod(0o755)
    return log, python.environment(
        PATH=f"{stand_in.parent}:/usr/bin:/bin", XDG_CACHE_HOME=str(place / "cache")
    )


def test_sets_up_once_and_says_so(from_wheel, place):
    log, env = machine(place, from_wheel)
    first = run_unmodified("script.py", "a b", cwd=place, env=env)
    assert (first.returncode, first.stdout) == (3, OUTPUT)
    assert "setting up" in first.stderr and str(place / "cache") in first.stderr
    assert log.read_text() == f"-m pip install --quiet --editable {CHECKOUT}\n"

    again = run_unmodified("script.py", "a b", cwd=place, env=env)
    assert (again.returncode, again.stdout, again.stderr) == (3, OUTPUT, "")
    assert len(log.read_text().splitlines()) == 1


def test_runs_that_start_together_set_up_once(from_wheel, place):
    log, env = machine(place, from_wheel, slow=1)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(run_unmodified, "script.py", "a b", cwd=place, env=env) for _ in range(3)
        ]
    assert [(r.result().returncode, r.result().stdout) for r in runs] == [(3, OUTPUT)] * 3
    assert len(log.read_text().splitlines()) == 1


def test_a_failed_setup_is_tried_again(from_wheel, place):
    log, env = machine(place, from_wheel, status=1)
    for attempts in (1, 2):
        got = run_unmodified("script.py", cwd=place, env=env)
        assert (got.returncode, got.stdout) == (1, "")
        assert len(log.read_text().splitlines()) == attempts


def test_no_python(place):
    (place / "bin").mkdir()
    for tool in ("sh", "dirname", "cksum", "cat"):
        (place / "bin" / tool).symlink_to(f"/usr/bin/{tool}")
    env = {"PATH": str(place / "bin"), "HOME": str(place)}
    got = run_unmodified("script.py", cwd=place, env=env)
    assert got.returncode == 1 and "no Python 3.11" in got.stderr


def test_another_pythons_environment(bare, place):
    env = bare.environment(PYTHON=bare.executable)
    got = run_unmodified("script.py", "a b", cwd=place, env=env)
    assert (got.returncode, got.stdout, got.stderr) == (3, OUTPUT, "")


def test_another_python_that_does_not_exist(bare, place):
    env = bare.environment(PYTHON=str(place / "no-python"))
    got = run_unmodified("script.py", cwd=place, env=env)
    assert got.returncode == 1 and "no-python" in got.stderr.splitlines()[-1]


def test_another_python_without_the_requirements(bare, place):
    hidden = place / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import sys; sys.path[:] = [p for p in sys.path if not p.endswith('site-packages')]"
    )
    log, env = machine(place, bare, status=1)
    env = {**env, "PYTHON": str(place / "bin" / "python3"), "PYTHONPATH": str(hidden)}
    got = run_unmodified("script.py", cwd=place, env=env)
    assert (got.returncode, got.stdout) == (1, "")
    assert "lacks wrapt importlib_metadata" in got.stderr
    assert "install in the environment" in got.stderr
    assert str(place / "cache") in log.read_text()
