"""python -m pallas_shim view script.py -o view.html: pictures of what the script's kernels did."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import traceback

from pallas_shim import patching, scripts, settings

_EXAMPLE = """\
example:
  python -m pallas_shim view -o view.html --perfetto trace.json bench.py --size 512

view.html needs no server and no network. https://ui.perfetto.dev opens trace.json."""


def main(arguments: list[str]) -> int:
    """Runs the script, and writes the page. Returns the exit status: 2 if the script failed, 1 if
    nothing was recorded or the page can't be written, else 0."""
    options, target = _parse(arguments)
    os.environ["PALLAS_NUMPY_CACHE"] = "0"  # a program from the cache doesn't tell what it does
    settings.current.cache_clear()
    patching.activate()
    from pallas_shim import recording
    from pallas_shim.view import page, perfetto

    failed = False
    with recording.record(" ".join(target)) as trace:
        try:
            scripts.run(target)
        except SystemExit as ended:
            failed = ended.code not in (None, 0)
        except BaseException:
            traceback.print_exc()
            failed = True
    try:
        if options.output is not None:
            _write(options.output, page.render(trace))
        if options.perfetto is not None:
            _write(options.perfetto, json.dumps(perfetto.events(trace)))
    except (OSError, page.MissingPackages) as error:
        print(f"pallas_shim view: nothing is written: {error}", file=sys.stderr)
        return 2 if failed else 1
    for note in trace.notes:
        print(f"pallas_shim view: {note}", file=sys.stderr)
    written = ", ".join(filter(None, (options.output, options.perfetto)))
    print(f"pallas_shim view: {len(trace.kernels)} kernels in {written}", file=sys.stderr)
    if failed:
        return 2
    return 0 if trace.kernels else 1


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options before the script or after it, and the script with its own arguments."""
    parser = argparse.ArgumentParser(
        prog="pallas_shim view", epilog=_EXAMPLE,
        usage="pallas_shim view [-o FILE] [--perfetto FILE] script.py [args]",
        description="Runs a script, and writes a page that shows what its Pallas kernels did.",
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="FILE",
        help="the page (view.html, unless there is only a --perfetto)",
    )  # fmt: skip
    parser.add_argument("--perfetto", metavar="FILE", help="a trace that Perfetto opens")
    parser.add_argument("target", nargs="...", help="script.py, -m module or -c code")
    options, rest = parser.parse_known_args(arguments)
    target = [*rest, *options.target]
    # So that `view script.py -o view.html` works, too. After `view -o`, an -o is the script's.
    mine = (
        {"-o", "--output", "--perfetto"}
        - ({"-o", "--output"} if options.output else set())
        - ({"--perfetto"} if options.perfetto else set())
    )
    while len(target) > 2 and target[-2] in mine:
        *target, option, value = target
        setattr(options, "perfetto" if option == "--perfetto" else "output", value)
    if not target or target[0].startswith("-") and target[0] not in ("-m", "-c"):
        parser.error(f"{target[0]} isn't an option of view" if target else "nothing to run")
    if options.output is None and options.perfetto is None:
        options.output = "view.html"
    return options, target


def _write(path: str, text: str) -> None:
    pathlib.Path(path).write_text(text, "utf-8")
