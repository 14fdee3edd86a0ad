"""python -m pallas_shim: starts Python with the shim on, and has it run the script."""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import sys

from pallas_shim import cli, settings
from pallas_shim.cli import launch

_USAGE = """\
python -m pallas_shim [options] script.py [args]
       python -m pallas_shim [options] -m module [args]
       python -m pallas_shim [options] -c code [args]
       python -m pallas_shim [options] bisect script.py [args]
       python -m pallas_shim doctor
       python -m pallas_shim report FILE

A script that is named like a verb is started as ./bisect."""

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
    verb, *rest = target
    if verb in cli.VERBS:
        sys.exit(importlib.import_module(cli.VERBS[verb]).main(rest))
    try:
        launch.start(target)
    except launch.CannotStart as error:
        parser.error(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
