"""python -m pallas_shim: starts Python with the shim on, and has it run the script."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from typing import NoReturn

from pallas_shim import environment, settings

_USAGE = """\
python -m pallas_shim [options] script.py [args]
       python -m pallas_shim [options] -m module [args]
       python -m pallas_shim [options] -c code [args]
       python -m pallas_shim [options] bisect script.py [args]
       python -m pallas_shim doctor
       python -m pallas_shim report FILE"""

# option: (variable, value when the option has none, metavar, help)
_OPTIONS = {
    "--strict": ("PALLAS_NUMPY_STRICT", "1", None, "a kernel left to JAX is an error"),
    "--force": ("PALLAS_NUMPY", "force", None, "also take kernels that a TPU or GPU would run"),
    "--log": ("PALLAS_NUMPY_LOG", "1", None, "say how each call runs"),
    "--report": (
        "PALLAS_NUMPY_REPORT",
        "1",
        "PATH",
        "at exit, a table on stderr; with =PATH, JSON in that file",
    ),
    "--tpu": ("PALLAS_NUMPY_TPU", None, "NAME", f"look like a TPU: {', '.join(settings.TPUS)}"),
    "--scope": ("PALLAS_NUMPY_SCOPE", None, "all", "also run functions without a kernel"),
    "--cache": ("PALLAS_NUMPY_CACHE", None, "WHICH", "programs kept for later processes"),
    "--verify": ("PALLAS_NUMPY_VERIFY", "1", None, "check each program after each pass"),
    "--dump": ("PALLAS_NUMPY_DUMP", None, "DIRECTORY", "write programs and generated code there"),
    "--passes": ("PALLAS_NUMPY_PASSES", None, "-NAME,-NAME", "leave these passes out"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pallas_shim",
        usage=_USAGE,
        description="Runs an unmodified Pallas script with its kernels in NumPy.",
        epilog="The flags of this Python are kept: python -X dev -m pallas_shim script.py",
        allow_abbrev=False,
    )
    for option, (variable, default, metavar, text) in _OPTIONS.items():
        text = f"{text} ({variable})"
        if metavar is None:
            parser.add_argument(
                option, dest=variable, action="store_const", const=default, help=text
            )
        else:
            parser.add_argument(
                option,
                dest=variable,
                metavar=metavar,
                nargs="?" if default else None,
                const=default,
                help=text,
            )
    return parser


def main(arguments: list[str]) -> None:
    # Ours start with two dashes; from the first argument that doesn't, all is Python's to read.
    ours = itertools.takewhile(lambda a: a.startswith("--") or a == "-h", arguments)
    count = len(list(ours))
    parser = _parser()
    options = vars(parser.parse_args(arguments[:count]))
    target = arguments[count:]
    if not target:
        parser.error("nothing to run")
    os.environ.update({name: value for name, value in options.items() if value is not None})
    try:
        settings.current()
    except settings.SettingError as error:
        parser.error(str(error))
    match target:
        case ["doctor"]:
            from pallas_shim import doctor

            sys.exit(doctor.main())
        case ["report", path]:
            from pallas_shim import report

            sys.exit(report.show(path))
        case ["bisect", _, *_]:
            from pallas_shim import bisect

            sys.exit(bisect.main(target[1:]))
        case ["doctor" | "report" | "bisect" as name, *_]:
            parser.error(f"{name} takes other arguments; a script of this name is ./{name}")
    _run(parser, target)


def _run(parser: argparse.ArgumentParser, target: list[str]) -> NoReturn:
    variables = environment.variables(os.environ)
    if "PYTHONPATH" in variables and (sys.flags.ignore_environment or sys.flags.no_site):
        parser.error(
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


if __name__ == "__main__":
    main(sys.argv[1:])
