"""python -m tests.chip.storm [--runs 200] [--start 0] [--real]: whatever happens to the compiler,
the script's output and exit status stay what they are.

Each run starts a script under `python -m pallas_shim compile` and does one kind of harm: workers or
the process above them are killed at random moments, the compiler aborts, hangs or grows, the disk
is full, no file can be written, no process can be started. `--real` compiles with libtpu;
otherwise the compiler is a fake.
"""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time

from tests.chip.test_processes import PYTHON, SCRIPT, hears_ctrl_c

STDOUT = "4096.0\n2048.0\n8192.0\nat exit\ndeleted\n"
# The kernel with 4 rows is refused by JAX's lowering, whatever the compiler does.
ARGUMENTS = ("x", "8,4,16")
STATUS = 98

HARMS = (
    "nothing", "kill workers", "kill driver", "kill all", "abort", "hang", "exit", "grow",
    "full disk", "small files", "few processes", "interrupt",
)  # fmt: skip


def children(pid: int) -> list[int]:
    """The processes below a process, itself not among them."""
    below: dict[int, list[int]] = collections.defaultdict(list)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", encoding="ascii", errors="replace") as file:
                    below[int(file.read().rpartition(")")[2].split()[1])].append(int(entry))
            except (OSError, ValueError, IndexError):
                continue
    found, waiting = [], [pid]
    while waiting:
        found += below[waiting[0]]
        waiting += below[waiting.pop(0)]
    return found


def command_line(pid: int) -> bytes:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def kill(pid: int, harm: str, chance: random.Random) -> None:
    """Kills some of the processes below one, at random moments."""
    for _ in range(chance.randint(1, 6)):
        time.sleep(chance.uniform(0.05, 0.8))
        for depth, child in enumerate(children(pid)):
            wanted = {"kill workers": depth > 0, "kill driver": depth == 0, "kill all": True}[harm]
            # Not the child that tells the status of the script.
            if wanted and chance.random() < 0.7 and command_line(child) != command_line(pid):
                try:
                    os.kill(child, signal.SIGKILL)
                except OSError:
                    continue


def run(
    harm: str, chance: random.Random, real: bool, verb: str, directory: pathlib.Path
) -> str | None:
    """One run; what was wrong with it, or None."""
    script = directory / "bench.py"
    script.write_text(SCRIPT)
    temporary = directory / "tmp"
    temporary.mkdir()
    variables = {"JAX_PLATFORMS": "cpu", "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    if not real or harm in ("abort", "hang", "exit", "grow"):
        variables["PALLAS_NUMPY_COMPILE_EXECUTOR"] = "tests.chip.fakes:threads"
        variables["TEST_HARM"] = harm
    if harm == "full disk":
        variables["TMPDIR"] = "/proc"
    if harm in ("small files", "few processes"):
        kind, most = {
            "small files": (resource.RLIMIT_FSIZE, 100),
            "few processes": (resource.RLIMIT_NOFILE, chance.randint(12, 40)),
        }[harm]
        variables["TEST_LIMIT"] = f"{kind},{most}"
        script.write_text(SCRIPT + LIMIT)
    command = [sys.executable, "-m", "pallas_shim", verb, "--tpu", "v6e,v5e"]
    process = subprocess.Popen(
        [*command, str(script), *ARGUMENTS], env=PYTHON.environment(**variables),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=directory,
        preexec_fn=hears_ctrl_c,
    )  # fmt: skip
    if harm.startswith("kill"):
        threading.Thread(target=kill, args=(process.pid, harm, chance), daemon=True).start()
    if harm == "interrupt":
        lines: list[str] = []
        assert process.stdout is not None
        while not lines or lines[-1] != "at exit\n":
            lines.append(process.stdout.readline())
        time.sleep(chance.uniform(0, 3))
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=300)
        got = ("".join(lines) + rest, process.returncode)
        # It came before the verdicts, or after them.
        wanted = [(STDOUT, 0), (STDOUT, STATUS)]
    else:
        output, errors = process.communicate(timeout=300)
        got, wanted = (output, process.returncode), [(STDOUT, STATUS)]
    if got not in wanted:
        return f"{got}\n{errors}"
    left = list(temporary.iterdir())
    return f"left behind: {left}" if left else None


# At the script's end, so that only what follows is limited.
LIMIT = """
import os, resource
_kind, _most = map(int, os.environ["TEST_LIMIT"].split(","))
resource.setrlimit(_kind, (_most, resource.getrlimit(_kind)[1]))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--start", type=int, default=0, help="the number of the first run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--verb", choices=("compile", "profile"), default="compile")
    arguments = parser.parse_args()
    runs: collections.Counter[str] = collections.Counter()
    failures: collections.Counter[str] = collections.Counter()
    for number in range(arguments.start, arguments.start + arguments.runs):
        harm = HARMS[number % len(HARMS)]
        chance = random.Random(f"{arguments.seed} {number}")
        with tempfile.TemporaryDirectory() as directory:
            wrong = run(harm, chance, arguments.real, arguments.verb, pathlib.Path(directory))
        runs[harm] += 1
        if wrong is not None:
            failures[harm] += 1
            print(f"run {number}, {harm}: {wrong}", flush=True)
        print(f"{number}: {harm}", file=sys.stderr, flush=True)
    print("| harm | runs | another output or status |")
    print("| --- | --- | --- |")
    for harm in runs:
        print(f"| {harm} | {runs[harm]} | {failures[harm]} |")
    print(f"| all | {runs.total()} | {failures.total()} |")
    return int(failures.total() > 0)


if __name__ == "__main__":
    sys.exit(main())
