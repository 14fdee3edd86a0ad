"""python -m pallas_shim report FILE: prints the table of a report's JSON file."""

from __future__ import annotations

import argparse

from pallas_shim import report


def main(arguments: list[str]) -> int:
    """Prints the table of a file. Returns the exit status: 1 if the file can't be read."""
    parser = argparse.ArgumentParser(prog="pallas_shim report", description=__doc__)
    parser.add_argument("file", help="what PALLAS_NUMPY_REPORT=FILE wrote")
    return report.show(parser.parse_args(arguments).file)
