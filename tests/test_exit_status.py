"""A tool's exit status in the place of success, and of nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.processes.conftest import CHECKOUT

SCRIPT = """
import atexit, os, sys, threading, time
sys.path.insert(0, {checkout!r})
from pallas_shim import exit_status
exit_status.register()
class Ends:
    def __del__(self, write=os.write):
        write(1, b"deleted\\n")
held = Ends()
atexit.register(os.write, 1, b"at exit\\n")
{wanted}
print("ran")
{end}
"""

# How scripts end, and with which status.
ENDS = {
    "": 0,
    "sys.exit()": 0,
    "sys.exit(0)": 0,
    "sys.exit(3)": 3,
    "raise SystemExit(4)": 4,
    "sys.exit('what')": 1,
    "raise ValueError('what')": 1,
    "raise KeyboardInterrupt": -signal.SIGINT,
    "sys.stdout.flush(); os.kill(os.getpid(), 15)": -signal.SIGTERM,
    "sys.stdout.flush(); os._exit(5)": 5,
    "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()": 0,
    "threading.Thread(target=time.sleep, args=(0.2,)).start()": 0,
    "sys.stdout.close()": 0,
    "if os.fork() == 0: sys.exit(7)": 0,
}


def ran(end, wanted="exit_status.replace_success(98)", form="-c"):
    script = SCRIPT.format(checkout=str(CHECKOUT), wanted=wanted, end=end)
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("end", ENDS)
def test_only_success_is_replaced(end):
    stock, got = ran(end, wanted=""), ran(end)
    assert stock.returncode == ENDS[end]
    assert got.returncode == (ENDS[end] or 98)
    if "fork" not in end:  # two processes write
        assert (got.stdout, got.stderr) == (stock.stdout, stock.stderr)


def test_the_first_wish_counts():
    got = ran("", "exit_status.replace_success(98); exit_status.replace_success(99)")
    assert got.returncode == 98


def test_a_child_that_does_not_end_leaves_the_status():
    """It is what stands for this process's end, which may wait for a thread that it lacks."""
    got = ran(
        "", "exit_status.replace_success(98); exit_status._SECONDS = 0.2\n"
        "exit_status._end_without_traces = lambda: time.sleep(60)",
    )  # fmt: skip
    assert (got.returncode, got.stdout) == (0, "ran\nat exit\ndeleted\n")


def test_no_process_can_be_forked():
    wanted = "exit_status.replace_success(98)\ndef fork(): raise OSError(12, 'no memory')\n"
    got = ran("", wanted + "os.fork = fork")
    assert (got.returncode, got.stdout, got.stderr) == (0, "ran\nat exit\ndeleted\n", "")
