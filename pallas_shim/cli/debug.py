"""python -m pallas_shim debug script.py: steps through the script's kernels, line by line."""

from __future__ import annotations

import argparse
import sys

from pallas_shim.cli import around

_EPILOG = """\
At the prompt: n, s, r, c and q go on, as pdb's do; p EXPRESSION and locals look; b LINE stops at a
line; watch o_ref[0, 3] stops where an element changes, and who o_ref[0, 3] says which line wrote
it; help lists all. A breakpoint() in a kernel stops here, too, with numbers in place of tracers.
The exit status is the script's own, or 1 if the kernel or cell that was asked for never ran.

example: python -m pallas_shim debug --kernel matmul_kernel --cell 1,0,3 bench.py
"""


def main(arguments: list[str]) -> int:
    """Runs the script, and stops in its kernels. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="pallas_shim debug",
        usage="python -m pallas_shim debug [options] script.py [args]   (or -m module, -c code)",
        description="Runs a script, and steps through its Pallas kernels.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--kernel", metavar="NAME", help="stop first in this kernel")
    parser.add_argument("--cell", metavar="I,J,...", type=_cell, help="stop first in this cell")
    asked, target = around.parse(parser, arguments, ("--kernel", "--cell"))
    around.activate()
    from pallas_shim import dispatch
    from pallas_shim.debugger.commands import DebugSession, Quit

    session = DebugSession(asked.kernel, asked.cell)
    dispatch.observe(session)
    session.start()
    try:
        status = around.run(target)
    except Quit:
        return 0
    finally:
        session.end()
        dispatch.observe(None)
    if session.quitting:
        return 0
    if session.mode == "first":
        ran = ", ".join(f"{name} ({cells} cells)" for name, cells in session.kernels.items())
        wanted = "no kernel" if asked.kernel is None else f"no kernel {asked.kernel}"
        cell = "" if asked.cell is None else f" with a cell {asked.cell}"
        print(f"pallas_shim debug: {wanted}{cell} ran; these did: {ran or 'none'}", file=sys.stderr)
        return status or 1
    return status


def _cell(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.strip("() ,").split(","))
