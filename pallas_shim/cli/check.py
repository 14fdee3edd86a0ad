"""python -m pallas_shim check: runs a script, and says what its kernels do wrong on a device."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from typing import Any

from pallas_shim import settings
from pallas_shim.check import handover, sarif, suppress
from pallas_shim.cli import launch, options

_EPILOG = """\
The exit status is the script's own if it failed, else 0 if nothing was found, else 99.

example: python -m pallas_shim check --kinds races,sync --sarif findings.sarif bench.py --size 8
"""


def main(arguments: list[str]) -> int:
    """Runs the script and prints what was found. Returns the exit status."""
    parser = _parser()
    ours, target = options.split(parser, arguments)
    asked = parser.parse_args(ours)
    if not target:
        parser.error("nothing to run")
    try:
        suppressions = [] if asked.suppressions is None else suppress.read(asked.suppressions)
    except suppress.BadFile as error:
        parser.error(str(error))
    with tempfile.TemporaryDirectory(prefix="pallas_shim-") as directory:
        asked.PALLAS_NUMPY_CHECK = asked.kinds
        asked.PALLAS_NUMPY_FINDINGS = directory
        options.apply(parser, vars(asked))
        try:
            status = launch.run(target)
        except launch.CannotStart as error:
            parser.error(str(error))
        results = handover.collect(directory, suppressions)
    print(results, file=sys.stderr)
    written = [
        _write(asked.json, results.to_dict()),
        _write(asked.sarif, sarif.document(results)),
    ]
    if status:
        launch.end_as(status)
    if results.findings:
        return asked.exit_code
    return 0 if all(written) else 1


def _parser() -> argparse.ArgumentParser:
    about = (
        "Runs an unmodified script, and says what its Pallas kernels do wrong on a "
        "TPU or GPU: for these inputs, and this order of programs and copies."
    )
    parser = options.parser("check", about, _EPILOG)
    parser.add_argument(
        "--kinds",
        default="1",
        metavar="KIND,KIND",
        help=f"only these: {', '.join(settings.CHECKS)} (default: all)",
    )
    parser.add_argument(
        "--exit-code", type=_status, default=99, metavar="N", help="for findings (default: 99)"
    )
    parser.add_argument("--json", metavar="FILE", help="write what was found there, as JSON")
    parser.add_argument("--sarif", metavar="FILE", help="the same as SARIF 2.1.0")
    parser.add_argument("--suppressions", metavar="FILE", help="findings to leave out, as TOML")
    options.add(parser)
    return parser


def _status(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 255:
        raise argparse.ArgumentTypeError("an exit status lies between 0 and 255")
    return number


def _write(path: str | None, document: dict[str, Any]) -> bool:
    """Whether the file is written, if there is one to write."""
    if path is None:
        return True
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.write("\n")
    except OSError as error:
        print(f"pallas_shim: the findings can't be written: {error}", file=sys.stderr)
        return False
    return True
