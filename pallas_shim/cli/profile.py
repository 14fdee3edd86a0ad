"""python -m pallas_shim profile --tpu v6e script.py: where the time of its kernels goes on a TPU.

As compile, and for each kernel that is accepted: how often its code runs, which units and source
lines the cycles belong to, what is copied, and an estimate of its time if that has a known error.
"""

from __future__ import annotations

import os

from pallas_shim.cli import compile as compile_verb


def main(arguments: list[str]) -> int:
    """Starts the script; returns only if that isn't possible."""
    parser = compile_verb.parser("profile", __doc__)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        default="1",
        help="a .html or .json file, beside the table",
    )
    options, target = compile_verb.parsed(parser, arguments)
    os.environ["PALLAS_NUMPY_PROFILE"] = options.output
    compile_verb.start(parser, options, target)
