"""python -m pallas_shim view script.py -o view.html: pictures of what the script's kernels did."""

from __future__ import annotations

import json
import pathlib
import sys

from pallas_shim.cli import around, options

_EPILOG = """\
The page needs no server and no network. https://ui.perfetto.dev opens the trace. The exit status is
the script's own if it failed, else 1 if no kernel ran or nothing could be written, else 0.

example: python -m pallas_shim view -o view.html --perfetto trace.json bench.py --size 512
"""


def main(arguments: list[str]) -> int:
    """Runs the script and writes the page. Returns the exit status."""
    about = "Runs a script, and shows what its Pallas kernels did, cell by cell."
    parser = options.parser("view", about, _EPILOG)
    parser.add_argument(
        "-o", "--output", metavar="FILE",
        help="the page (default: view.html, unless there is only a --perfetto)",
    )  # fmt: skip
    parser.add_argument("--perfetto", metavar="FILE", help="a trace for Perfetto")
    asked, target = around.parse(parser, arguments, ("-o", "--output", "--perfetto"))
    around.activate()
    from pallas_shim import recording
    from pallas_shim.view import page, perfetto

    with recording.record(" ".join(target)) as trace:
        status = around.run(target)
    files = {asked.perfetto: lambda: json.dumps(perfetto.events(trace))}
    files[asked.output or (None if asked.perfetto else "view.html")] = lambda: page.render(trace)
    files.pop(None, None)
    try:
        for path, make in files.items():
            pathlib.Path(path).write_text(make(), "utf-8")
    except (OSError, page.MissingPackages) as error:
        print(f"pallas_shim view: {error}", file=sys.stderr)
        return status or 1
    for note in trace.notes:
        print(f"pallas_shim view: {note}", file=sys.stderr)
    count = len(trace.kernels)
    kernels = "1 kernel" if count == 1 else f"{count} kernels"
    print(f"pallas_shim view: {kernels} in {', '.join(files)}", file=sys.stderr)
    return status or (0 if count else 1)
