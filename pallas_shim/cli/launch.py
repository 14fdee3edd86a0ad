"""Starts a script in a Python process of its own, with the shim on."""

from __future__ import annotations

import os
import sys
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
    variables = environment.variables(os.environ)
    if "PYTHONPATH" in variables and (sys.flags.ignore_environment or sys.flags.no_site):
        raise CannotStart(
            "under -E, -I or -S Python starts the shim only from its start-up files; "
            "pip install pallas_shim in this environment, or leave these flags out"
        )
    # Another Python in place of this one: then sys.argv, sys.path, __main__, tracebacks, signals
    # and the exit status are Python's own.
    command = [sys.executable, *_interpreter_flags(), *target]
    os.execve(sys.executable, command, {**os.environ, **variables})


def _interpreter_flags() -> list[str]:
    """The flags before ``-m pallas_shim`` on this process's command line."""
    flags = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])]
    module = flags.pop()
    # -m may be the end of a cluster (-um pallas_shim), and may hold its argument (-mpallas_shim).
    cluster = flags.pop() if module == "pallas_shim" else module.removesuffix("pallas_shim")
    cluster = cluster.removesuffix("m")
    return flags if cluster == "-" else [*flags, cluster]
