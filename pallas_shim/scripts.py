"""Runs a script in this process, as Python would run it."""

from __future__ import annotations

import os
import runpy
import sys


def run(target: list[str]) -> None:
    """Runs a target, given as on Python's command line: a script, ``-m module`` or ``-c code``, and
    the arguments. It raises what the script raises."""
    match target:
        case ["-m", module, *arguments]:
            sys.argv, sys.path[0] = [module, *arguments], os.getcwd()
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *arguments]:
            sys.argv, sys.path[0] = ["-c", *arguments], ""
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        case [script, *arguments]:
            sys.argv, sys.path[0] = [script, *arguments], os.path.dirname(os.path.abspath(script))
            runpy.run_path(script, run_name="__main__")
