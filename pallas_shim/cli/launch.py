"""Starts a script in a Python process of its own, with the shim on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

from pallas_shim import environment


class CannotStart(Exception):
    """The flags of this Python keep the shim from starting. The text says what to do."""


def start(target: list[str]) -> NoReturn:
    """Replaces this process by Python with the shim on.

    The environment's PALLAS_NUMPY variables say how the script runs.

    Args:
      target: what Python is to run, as on its command line: a script, ``-m module`` or ``-c code``,
        and the arguments.

    Raises:
      CannotStart
    """
    # Another Python in place of this one: then sys.argv, sys.path, __main__, tracebacks, signals
    # and the exit status are Python's own.
    os.execve(sys.executable, *_command(target))


def run(target: list[str]) -> int:
    """Runs Python with the shim on as a child of this process, and returns its exit status.

    The child has this process's terminal and its streams. Signals to this process go on to the
    child; Ctrl-C reaches both, and the child decides. A negative status is that of
    `subprocess.Popen`: the signal that ended the child.

    Args:
      target: as in `start`.

    Raises:
      CannotStart
    """
    command, variables = _command(target)
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _: object) -> None:
        if child is None:
            end_as(-number)
        # A terminal sends its own signals to the child, too.
        if number not in (signal.SIGINT, signal.SIGQUIT) or not _has_terminal():
            child.send_signal(number)

    # Caught, not ignored, since a child inherits what is ignored.
    for number in ("SIGINT", "SIGQUIT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        _handle(getattr(signal, number), pass_on)
    child = subprocess.Popen(command, env=variables)
    return child.wait()


def _has_terminal() -> bool:
    """Whether what is typed at a terminal goes to this process and its children."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def end_as(status: int) -> NoReturn:
    """Ends this process as the child ended whose status `run` returned."""
    if status < 0:
        if -status != signal.SIGKILL:  # whose handling can't be set
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status if status >= 0 else 128 - status)


def _handle(number: int, handler: Callable[[int, object], None]) -> None:
    if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, a shell's background job
        signal.signal(number, handler)


def _command(target: list[str]) -> tuple[list[str], dict[str, str]]:
    """The command that runs the target with the shim on, and its environment."""
    variables = environment.variables(os.environ)
    if "PYTHONPATH" in variables and (sys.flags.ignore_environment or sys.flags.no_site):
        raise CannotStart(
            "under -E, -I or -S Python starts the shim only from its start-up files; "
            "pip install pallas_shim in this environment, or leave these flags out"
        )
    return [sys.executable, *_interpreter_flags(), *target], {**os.environ, **variables}


def _interpreter_flags() -> list[str]:
    """The flags before ``-m pallas_shim`` on this process's command line."""
    flags = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])]
    module = flags.pop()
    # -m may be the end of a cluster (-um pallas_shim), and may hold its argument (-mpallas_shim).
    cluster = flags.pop() if module == "pallas_shim" else module.removesuffix("pallas_shim")
    cluster = cluster.removesuffix("m")
    return flags if cluster == "-" else [*flags, cluster]
