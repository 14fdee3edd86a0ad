"""python -m pallas_shim debug script.py: steps through the script's kernels, line by line."""

from __future__ import annotations

import argparse
import os
import sys
import traceback

from pallas_shim import patching, scripts, settings

_EXAMPLE = """\
example:
  python -m pallas_shim debug --kernel matmul_kernel --cell 1,0,3 bench.py

At the prompt: n, s, r, c and q go on, as pdb's do; p EXPRESSION and locals look; b LINE stops at a
line; watch o_ref[0, 3] stops where an element changes, and who o_ref[0, 3] says which line wrote
it. help lists all. In a kernel, breakpoint() stops here, too, with numbers in place of tracers."""


def main(arguments: list[str]) -> int:
    """Runs the script, and stops in its kernels. Returns the exit status: the script's, or 1 if
    the kernel or cell that was asked for never ran."""
    options, target = _parse(arguments)
    os.environ["PALLAS_NUMPY_CACHE"] = "0"  # a program from the cache has no names
    settings.current.cache_clear()
    patching.activate()
    from pallas_shim import dispatch
    from pallas_shim.debugger.commands import Quit, Session

    session = Session(options.kernel, options.cell)
    dispatch.observe(session)
    status = 0
    session.start()
    try:
        scripts.run(target)
    except Quit:
        return 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        if session.quitting:  # XLA made another error of it
            return 0
        traceback.print_exc()
        status = 1
    finally:
        session.end()
        dispatch.observe(None)
    if session.mode == "first":
        ran = ", ".join(f"{name} ({cells} cells)" for name, cells in session.kernels.items())
        wanted = "no kernel" if options.kernel is None else f"no kernel {options.kernel}"
        cell = "" if options.cell is None else f" with a cell {options.cell}"
        print(f"pallas_shim debug: {wanted}{cell} ran; these did: {ran or 'none'}", file=sys.stderr)
        return status or 1
    return status


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="pallas_shim debug", epilog=_EXAMPLE, allow_abbrev=False,
        usage="pallas_shim debug [--kernel NAME] [--cell I,J,...] script.py [args]",
        description="Runs a script, and steps through its Pallas kernels.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--kernel", metavar="NAME", help="stop first in this kernel")
    parser.add_argument("--cell", metavar="I,J,...", help="stop first in this cell", type=_cell)
    parser.add_argument("target", nargs="...", help="script.py, -m module or -c code")
    options, rest = parser.parse_known_args(arguments)
    target = [*rest, *options.target]
    # So that `debug script.py --kernel NAME --cell 3,0` works, too.
    while len(target) > 2 and target[-2] in ("--kernel", "--cell"):
        if getattr(options, target[-2][2:]) is not None:
            break
        *target, option, value = target
        try:
            setattr(options, option[2:], _cell(value) if option == "--cell" else value)
        except ValueError as error:
            parser.error(str(error))
    if not target or target[0].startswith("-") and target[0] not in ("-m", "-c"):
        parser.error(f"{target[0]} isn't an option of debug" if target else "nothing to run")
    return options, target


def _cell(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.strip("() ,").split(","))
