"""python -m pallas_shim profile --tpu v6e script.py: where the time of its kernels goes on a TPU.

As compile, and for each kernel that is accepted: how often its code runs, which units and source
lines the cycles belong to, what is copied, and an estimate of its time if that has a known error.
"""

from __future__ import annotations

import json
import os
import sys

from pallas_shim.cli import compile as compile_verb


def main(arguments: list[str]) -> int:
    """Starts the script; returns only if that isn't possible, or to compare profiles."""
    if arguments[:1] == ["--compare"]:
        return _compare(arguments[1:])
    parser = compile_verb.parser("profile", __doc__)
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        default="1",
        help="a .html or .json file, beside the table",
    )
    parser.add_argument("--perfetto", metavar="FILE", help="a trace for Perfetto")
    parser.add_argument(
        "--compare", nargs=2, metavar="FILE", help="two .json files, with nothing else"
    )
    options, target = compile_verb.parsed(parser, arguments)
    files = [options.output]
    if options.perfetto is not None:
        files.append(f"perfetto:{options.perfetto}")
    if any("," in file for file in files):
        parser.error("the name of a file can't have a comma")
    os.environ["PALLAS_NUMPY_PROFILE"] = ",".join(files)
    compile_verb.start(parser, options, target)


def _compare(paths: list[str]) -> int:
    """Prints two profiles beside one another. Returns the exit status."""
    from pallas_shim.chip import profile_view

    if len(paths) != 2:
        print("pallas_shim profile: --compare takes two .json files", file=sys.stderr)
        return 2
    read = []
    for path in paths:
        try:
            with open(path, encoding="utf-8") as file:
                read.append(json.load(file))
            read[-1]["profiles"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"pallas_shim profile: {path} is no profile: {error}", file=sys.stderr)
            return 2
    print(profile_view.compared(*read))
    return 0
