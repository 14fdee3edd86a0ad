"""python -m pallas_shim run script.py: the same as without the verb."""

from __future__ import annotations

import argparse
from typing import NoReturn

from pallas_shim.cli import launch, options


def main(arguments: list[str]) -> NoReturn:
    """Replaces this process by Python with the shim on."""
    parser = argparse.ArgumentParser(
        prog="pallas_shim run",
        usage="python -m pallas_shim run [options] script.py [args]   (or -m module, -c code)",
        description="Runs an unmodified Pallas script with its kernels in NumPy.",
        epilog="example: python -m pallas_shim run --tpu v6e --report out.json bench.py",
        allow_abbrev=False,
    )
    options.add(parser)
    ours, target = options.split(parser, arguments)
    asked = parser.parse_args(ours)
    if not target:
        parser.error("nothing to run")
    options.apply(parser, vars(asked))
    try:
        launch.start(target)
    except launch.CannotStart as error:
        parser.error(str(error))
