"""A script under the shim sees what it sees under Python alone."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.processes.conftest import CHECKOUT, Python

LOOK = """
import json, os, pickle, sys
class Local: pass
pickle.loads(pickle.dumps(Local()))
is_active = "pallas_shim" in sys.modules and sys.modules["pallas_shim"].is_active()
print(json.dumps([sys.argv, sys.path[0], __name__, globals().get("__file__"), os.getcwd()]))
print("jax" in sys.modules, sys.flags.dev_mode, "sitecustomize" in sys.modules)
print(is_active, file=sys.stderr)
"""

FAIL = """
def fail():
    raise RuntimeError("of the script")
fail()
"""

WAIT = """
import time
print("waiting", flush=True)
time.sleep(120)
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "look.py").write_text(LOOK)
    (tmp_path / "fail.py").write_text(FAIL)
    (tmp_path / "leave.py").write_text("import sys; sys.exit(7)")
    (tmp_path / "elsewhere").mkdir()
    return tmp_path


TARGETS = {
    "script": ["../look.py", "a", "--strict", "-m"],
    "module": ["-m", "look", "a"],
    "code": ["-c", LOOK, "a", "-c"],
}


def both_ways(python, target, cwd, **variables):
    """How the target ends under PALLAS_NUMPY=1, and under python -m pallas_shim."""
    yield python.run(*target, cwd=cwd, PALLAS_NUMPY="1", **variables)
    yield python.run("-m", "pallas_shim", *target, cwd=cwd, **variables)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_script_sees_python(python, place, target):
    cwd = place if "-m" in target[:1] else place / "elsewhere"
    want = python.stock().run(*target, cwd=cwd)
    assert (want.returncode, want.stderr) == (0, "False\n")
    for got in both_ways(python, target, cwd):
        assert (got.returncode, got.stdout, got.stderr) == (0, want.stdout, "True\n")


@pytest.mark.parametrize("target", ["fail.py", "leave.py", "missing.py", "-mmissing"])
def test_failures_are_pythons(python, place, target):
    want = python.stock().run(target, cwd=place)
    assert want.returncode != 0
    for got in both_ways(python, [target], place):
        assert (got.returncode, got.stdout, got.stderr) == (want.returncode, "", want.stderr)


def test_flags_of_the_interpreter_are_kept(python, place):
    want = python.stock().run("-X", "dev", "-u", "look.py", cwd=place)
    got = python.run("-X", "dev", "-um", "pallas_shim", "look.py", cwd=place)
    assert (got.returncode, got.stdout, got.stderr) == (0, want.stdout, "True\n")


@pytest.mark.parametrize("start", [[], ["-m", "pallas_shim"]], ids=["variable", "command"])
def test_interrupt(python, start):
    process = subprocess.Popen(
        [python.executable, *start, "-c", WAIT],
        env=python.environment(PALLAS_NUMPY="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore it, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert errors.endswith("KeyboardInterrupt\n") and "pallas_shim" not in errors


INHERIT = """
import multiprocessing, subprocess, sys

ASK = 'import sys; print("pallas_shim" in sys.modules and sys.modules["pallas_shim"].is_active())'

class Answer:
    def __init__(self, value): self.value = value

def ask(queue):
    queue.put(Answer("pallas_shim" in sys.modules and sys.modules["pallas_shim"].is_active()))

def main():
    for method in ("fork", "spawn", "forkserver"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=ask, args=(queue,))
        process.start()
        print(method, queue.get(timeout=60).value)
        process.join()
    print("subprocess", subprocess.check_output([sys.executable, "-c", ASK], text=True).strip())

if __name__ == "__main__":
    exec(sys.argv[1])
    main()
"""


@pytest.mark.parametrize("start", ["variable", "command", "python"])
def test_processes_inherit(python, tmp_path, start):
    script = tmp_path / "inherit.py"
    script.write_text(INHERIT)
    if start == "variable":
        got = python.run(script, "pass", PALLAS_NUMPY="1")
    elif start == "command":
        got = python.run("-m", "pallas_shim", script, "pass")
    else:
        got = python.run(script, "import pallas_shim; pallas_shim.activate()")
    want = "fork True\nspawn True\nforkserver True\nsubprocess True\n"
    assert (got.returncode, got.stdout, got.stderr) == (0, want, "")


def test_command_line_errors(python):
    for arguments in (
        [],
        ["--stricht", "x.py"],
        ["--passes=fold", "x.py"],
        ["--passes"],
        ["report"],
    ):
        got = python.run("-m", "pallas_shim", *arguments)
        assert got.returncode == 2
        assert "error: " in got.stderr and "Traceback" not in got.stderr


def test_isolated_python(bare, from_wheel, place):
    want = bare.run("-I", "-c", LOOK, cwd=place)
    got = from_wheel.run("-I", "-m", "pallas_shim", "-c", LOOK, cwd=place)
    assert (got.returncode, got.stdout, got.stderr) == (0, want.stdout, "True\n")


def test_flags_under_which_nothing_would_start_it(bare):
    got = bare.run("-E", "-m", "pallas_shim", "-c", "pass", cwd=CHECKOUT)
    assert got.returncode == 2
    assert "under -E, -I or -S" in got.stderr and "pip install" in got.stderr


def test_options_become_variables(python):
    code = "import os; print({k: v for k, v in os.environ.items() if k.startswith('PALLAS')})"
    passes = "-hoisting,-copy_elision"
    options = ["--strict", "--log", "--force", "--report=r.json", f"--passes={passes}", "--verify",
               "--cache=function"]  # fmt: skip
    got = python.run("-m", "pallas_shim", *options, "-c", code)
    assert eval(got.stdout) == {
        "PALLAS_NUMPY": "force",
        "PALLAS_NUMPY_STRICT": "1",
        "PALLAS_NUMPY_LOG": "1",
        "PALLAS_NUMPY_REPORT": "r.json",
        "PALLAS_NUMPY_PASSES": passes,
        "PALLAS_NUMPY_VERIFY": "1",
        "PALLAS_NUMPY_CACHE": "function",
    }


@pytest.mark.parametrize(
    "options, want",
    [
        (["--tpu", "v6e"], {"PALLAS_NUMPY_TPU": "v6e"}),
        (["--passes", "-hoisting"], {"PALLAS_NUMPY_PASSES": "-hoisting"}),
        (["--report", "out.json", "--strict"], {"REPORT": "out.json", "STRICT": "1"}),
        (["--report", "reports/"], {"REPORT": "reports/"}),
        (["--report"], {"REPORT": "1"}),
        (["run", "--report", "--tpu", "v5e"], {"REPORT": "1", "TPU": "v5e"}),
    ],
)
def test_where_options_end(options, want, place):
    want = {name if "_" in name else f"PALLAS_NUMPY_{name}": v for name, v in want.items()}
    (place / "show.py").write_text("import os, sys; print(dict(os.environ), sys.argv)")
    python = Python(sys.executable, {"PYTHONPATH": str(CHECKOUT / "sitecustomize_pkg")})
    got = python.run("-m", "pallas_shim", *options, "show.py", "--tpu", "x.json", cwd=place)
    assert got.returncode == 0, got.stderr
    environment, arguments = eval(got.stdout.replace("} [", "}, ["))
    assert arguments == ["show.py", "--tpu", "x.json"]
    assert want.items() <= environment.items()


def test_help_and_version(python):
    for verb in ("check", "run", "bisect", "report", "doctor"):
        got = python.run("-m", "pallas_shim", verb, "--help")
        assert (got.returncode, got.stderr) == (0, "") and "example: " in got.stdout, verb
    got = python.run("-m", "pallas_shim", "--help")
    assert got.returncode == 0 and "check" in got.stdout and "doctor" in got.stdout
    got = python.run("-m", "pallas_shim", "--version")
    assert got.stdout.startswith("pallas_shim 0.")
