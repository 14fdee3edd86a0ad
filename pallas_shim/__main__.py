"""python -m pallas_shim: starts Python with the shim on, and has it run the script."""

from __future__ import annotations

import argparse
import importlib
import sys

import pallas_shim
from pallas_shim import cli
from pallas_shim.cli import launch, options

_USAGE = """\
python -m pallas_shim [options] script.py [args]    (or -m module, -c code)
       python -m pallas_shim [options] VERB [arguments]"""


def _parser() -> argparse.ArgumentParser:
    verbs = "\n".join(f"  {verb:8} {told}" for verb, (_, told) in cli.VERBS.items())
    parser = argparse.ArgumentParser(
        prog="pallas_shim",
        usage=_USAGE,
        description="Runs an unmodified Pallas script with its kernels in NumPy.",
        epilog=f"verbs (VERB --help says more):\n{verbs}\n\n"
        "A script that is named like a verb is started as ./check. The flags of this Python are\n"
        "kept: python -X dev -m pallas_shim script.py\n\n"
        "example: python -m pallas_shim --report bench.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"pallas_shim {pallas_shim.__version__}"
    )
    options.add(parser)
    return parser


def main(arguments: list[str]) -> None:
    parser = _parser()
    ours, target = options.split(parser, arguments)
    asked = parser.parse_args(ours)
    if not target:
        parser.error("nothing to run")
    options.apply(parser, vars(asked))
    verb, *rest = target
    if verb in cli.VERBS:
        module, _ = cli.VERBS[verb]
        sys.exit(importlib.import_module(module).main(rest))
    try:
        launch.start(target)
    except launch.CannotStart as error:
        parser.error(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
