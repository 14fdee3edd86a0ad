"""Shared by `view` and `debug`: options before the script or after it, and a run in this
process."""

from __future__ import annotations

import argparse
import os
import traceback
from collections.abc import Sequence

from pallas_shim import patching, scripts, settings
from pallas_shim.cli import options


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str], own: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """The options, and what is to run.

    ``own`` are the verb's own options, each of which has a value. They may also stand at the end,
    if they aren't given before the script; there, all others are the script's.
    """
    options.add(parser)
    front: list[str] = []
    target = list(arguments)
    while target and target[0].startswith("-") and target[0] not in ("-m", "-c"):
        if target[0] in own and len(target) > 1:
            front += target[:2]
            target = target[2:]
            continue
        found, target = options.split(parser, target)
        if not found:
            parser.error(f"{target[0]} isn't one of its options")
        front += found
    asked = parser.parse_args(front)
    while len(target) > 2 and target[-2] in own:
        (action,) = (a for a in parser._actions if target[-2] in a.option_strings)
        if getattr(asked, action.dest) is not None:
            break
        parser.parse_args([f"{action.option_strings[-1]}={target[-1]}"], asked)
        target = target[:-2]
    if not target:
        parser.error("nothing to run")
    options.apply(parser, vars(asked))
    return asked, target


def activate() -> None:
    """Puts the shim on, in this process. No program is read from the cache, since such a program
    doesn't tell what it does."""
    os.environ["PALLAS_NUMPY_CACHE"] = "0"
    settings.current.cache_clear()
    patching.activate()


def run(target: list[str]) -> int:
    """Runs the script, prints its error, and returns the exit status that Python would have."""
    try:
        scripts.run(target)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code)
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return 130
    return 0
