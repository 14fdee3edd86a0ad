"""python -m pallas_shim report: shows the reports of files and directories as one table."""

from __future__ import annotations

import argparse
import sys

from pallas_shim.reports import document, files


def main(arguments: list[str]) -> int:
    """Prints the table of some files, or writes them as one. Returns the exit status: 1 if a file
    can't be read, or the result can't be written."""
    parser = argparse.ArgumentParser(
        prog="pallas_shim report",
        usage="python -m pallas_shim report FILE [FILE ...] [-o FILE]",
        description="Shows what PALLAS_NUMPY_REPORT wrote, of all these files as one table.",
        epilog="example: python -m pallas_shim report monday.json workers/ -o all.json",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="a report, or a directory of some")
    parser.add_argument("-o", metavar="FILE", dest="out", help="write the merged JSON there")
    asked = parser.parse_args(arguments)
    try:
        merged = document.merged(map(files.read, asked.files))
        if asked.out is None:
            print(merged)
        else:
            with open(asked.out, "w", encoding="utf-8") as file:
                file.write(merged.to_json() + "\n")
    except (OSError, document.NotAReport) as error:
        print(f"pallas_shim: {error}", file=sys.stderr)
        return 1
    return 0
