"""The options of a run, which stand for PALLAS_NUMPY variables, and where they end."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence

from pallas_shim import settings

# option: (variable, value when the option has none, metavar, help)
_OPTIONS = {
    "--strict": (
        "PALLAS_NUMPY_STRICT",
        "1",
        None,
        "a kernel that is left to JAX, or that a TPU's compiler refuses, is an error",
    ),
    "--force": ("PALLAS_NUMPY", "force", None, "also take kernels that a TPU or GPU would run"),
    "--log": ("PALLAS_NUMPY_LOG", "1", None, "say how each call runs"),
    "--report": (
        "PALLAS_NUMPY_REPORT",
        "1",
        "PATH",
        "at exit, a table on stderr; with a PATH (after =, or ending in .json or /), JSON there",
    ),
    "--tpu": (
        "PALLAS_NUMPY_TPU",
        None,
        "NAME",
        f"look like a TPU, or several as in v5e:2x4: {', '.join(settings.TPUS)}",
    ),
    "--schedules": (
        "PALLAS_NUMPY_SCHEDULES",
        None,
        "N",
        "repeat each call in N orders of programs and copies, and say if results differ",
    ),
    "--seed": ("PALLAS_NUMPY_SEED", None, "S", "the first order that is drawn, or the only one"),
    "--scope": ("PALLAS_NUMPY_SCOPE", None, "WHICH", "functions without a kernel that run, too"),
    "--cache": ("PALLAS_NUMPY_CACHE", None, "WHICH", "programs kept for later processes"),
    "--verify": ("PALLAS_NUMPY_VERIFY", "1", None, "check each program after each pass"),
    "--dump": ("PALLAS_NUMPY_DUMP", None, "DIRECTORY", "write programs and generated code there"),
    "--passes": ("PALLAS_NUMPY_PASSES", None, "-NAME,-NAME", "leave these passes out"),
}


def parser(
    verb: str, description: str, epilog: str, usage: str | None = None
) -> argparse.ArgumentParser:
    """The parser of a verb that runs a script, with no options yet."""
    script = f"python -m pallas_shim {verb} [options] script.py [args]   (or -m module, -c code)"
    return argparse.ArgumentParser(
        prog=f"pallas_shim {verb}",
        usage=usage or script,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a run. In what is parsed, they have the names of their variables."""
    group = parser.add_argument_group("options of the run")
    for option, (variable, default, metavar, text) in _OPTIONS.items():
        text = f"{text} ({variable})"
        if metavar is None:
            group.add_argument(
                option, dest=variable, action="store_const", const=default, help=text
            )
        else:
            group.add_argument(
                option,
                dest=variable,
                metavar=metavar,
                nargs="?" if default else None,
                const=default,
                help=text,
            )


def apply(parser: argparse.ArgumentParser, options: Mapping[str, str | None]) -> None:
    """Sets the variables of parsed options in the environment. Exits if one has a bad value."""
    given = {k: v for k, v in options.items() if k.startswith("PALLAS_NUMPY") and v is not None}
    os.environ.update(given)
    settings.current.cache_clear()
    try:
        settings.current()
    except settings.SettingError as error:
        parser.error(str(error))


def split(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Separates the options at the front from what is to run, which is Python's to read.

    A value may follow its option after ``=`` or as the next argument. Where a value may be left
    out, the next argument is one only if it is a path that no script has: it ends in .json or /.
    """
    actions = {name: action for action in parser._actions for name in action.option_strings}
    rest = list(arguments)
    ours = []
    while rest and (rest[0].startswith("--") or rest[0] == "-h"):
        option = rest.pop(0)
        action = actions.get(option)
        if action is not None and rest and _takes(action, rest[0]):
            option = f"{option}={rest.pop(0)}"
        ours.append(option)
    return ours, rest


def _takes(action: argparse.Action, value: str) -> bool:
    if action.nargs == "?":
        return value.endswith((".json", "/"))
    return action.nargs is None
