"""python -m pallas_shim compile --tpu v6e script.py: what the TPU's compiler says of its kernels.

The script runs as always, with the shim on. When it has ended, each kernel that it reached is
compiled for each TPU named. The exit status is the script's, or 98 if it is 0 and a kernel was
refused.
"""

from __future__ import annotations

import argparse
import os
from typing import NoReturn

from pallas_shim import settings
from pallas_shim.cli import launch
from pallas_shim.cli import options as run_options


def main(arguments: list[str]) -> int:
    """Starts the script; returns only if that isn't possible."""
    options_of = parser("compile", __doc__)
    start(options_of, *parsed(options_of, arguments))


def parser(verb: str, description: str | None) -> argparse.ArgumentParser:
    """The options of the verbs that compile."""
    made = run_options.parser(
        verb,
        description or "",
        f"example: python -m pallas_shim {verb} --tpu v6e,v5e bench.py",
        "%(prog)s --tpu NAME[,NAME] [options] script.py [args]   (or -m module, -c code)",
    )
    made.add_argument("--tpu", metavar="NAMES", help=f"some of {', '.join(settings.TPUS)}")
    made.add_argument(
        "--topology",
        metavar="NAME:LAYOUT",
        action="append",
        default=[],
        help="the chips that kernels under shard_map run on, as in v5e:4x4",
    )
    made.add_argument(
        "--executor",
        metavar="WHERE",
        help="module:factory of a concurrent.futures.Executor, dask:ADDRESS or ray:ADDRESS",
    )
    return made


def parsed(
    parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[argparse.Namespace, list[str]]:
    """The options, and what is Python's to run."""
    at = 0
    while at < len(arguments) and _is_option(arguments[at]):
        has_value = "=" in arguments[at] or arguments[at] in ("-h", "--help")
        at += 1 if has_value else 2
    return parser.parse_args(arguments[:at]), arguments[at:]


def _is_option(argument: str) -> bool:
    return argument.startswith("--") or argument in ("-h", "-o")


def start(
    parser: argparse.ArgumentParser, options: argparse.Namespace, target: list[str]
) -> NoReturn:
    """Starts the script in place of this process, with the variables for these options."""
    targets = _targets((options.tpu or "").split(","), options.topology)
    if not targets:
        parser.error("--tpu or --topology has to name a TPU")
    if not target:
        parser.error("nothing to run")
    os.environ["PALLAS_NUMPY_COMPILE"] = ",".join(targets)
    if options.executor is not None:
        os.environ["PALLAS_NUMPY_COMPILE_EXECUTOR"] = options.executor
    try:
        settings.read(os.environ)
        launch.start(target)
    except (settings.SettingError, launch.CannotStart) as error:
        parser.error(str(error))


def _targets(names: list[str], topologies: list[str]) -> list[str]:
    """The TPUs, each with its topology if one was given."""
    given = {topology.partition(":")[0]: topology for topology in topologies}
    wanted = [given.pop(name, name) for name in names if name]
    return [*wanted, *given.values()]
