"""python -m pallas_shim tune --tpu v6e --vary rows=64,128 bench.py:matmul: ranks block sizes."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pallas_shim import columns, patching, settings

if TYPE_CHECKING:
    from pallas_shim.chip.tuning import Ranked

_DESCRIPTION = """\
Compiles a function's kernels for a TPU with each combination of the values given, drops those that
the compiler refuses, ranks the others by estimated time, and runs the best in NumPy to see whether
they are right. Without libtpu it drops what JAX refuses and what doesn't fit into VMEM."""

_EPILOG = """\
The function gets the varied values by name. Its arguments are what --args names; without it, the
function has to make its own. The module is imported, so what stands under
if __name__ == "__main__" doesn't run.

The exit status is 98 if every configuration was dropped, 1 if a result is wrong or nothing could be
tried, else 0.

example, with a function matmul(x, y, *, block_m, block_n), and inputs() that returns x and y:

  python -m pallas_shim tune --tpu v6e --vary block_m=128,256,512 --vary block_n=128,256 \\
      --args inputs bench.py:matmul"""

_REFUSED, _WRONG = 98, 1


class _Unusable(Exception):
    """What the user named can't be used; the text says why."""


def main(arguments: list[str]) -> int:
    """Prints the configurations in order. Returns the exit status."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    os.environ.update(PALLAS_NUMPY_COMPILE="0", PALLAS_NUMPY_STRICT="0")
    settings.current.cache_clear()
    patching.activate()
    from pallas_shim.chip import tuning

    try:
        varied = _varied(asked.vary)
        module = _module(asked.function)
        function = _named(module, asked.function.rpartition(":")[2])
        given = () if asked.args is None else _arguments(_named(module, asked.args))
        reference = None if asked.reference is None else _named(module, asked.reference)
    except _Unusable as error:
        parser.error(str(error))
    configs = [dict(zip(varied, each, strict=True)) for each in itertools.product(*varied.values())]
    ranked, dropped = tuning.rank(
        function, configs, given,
        tpu=asked.tpu, run=asked.run, reference=reference, executor=asked.executor,
    )  # fmt: skip
    print("\n".join(_lines(asked, ranked, dropped)))
    if asked.output is not None:
        _write(asked, ranked, dropped)
    if any(each.agrees is False for each in ranked):
        return _WRONG
    return 0 if ranked else _REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pallas_shim tune",
        usage="%(prog)s --tpu NAME --vary NAME=VALUE,VALUE [options] script.py:function",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("function", help="script.py:function or module:function")
    parser.add_argument(
        "--tpu", required=True, choices=settings.TPUS, help=f"one of {', '.join(settings.TPUS)}",
        metavar="NAME",
    )  # fmt: skip
    parser.add_argument(
        "--vary", action="append", required=True, metavar="NAME=VALUES",
        help="an argument and its values: Python's literals, else texts",
    )  # fmt: skip
    parser.add_argument(
        "--args", metavar="NAME",
        help="the positional arguments: a tuple in the script, or a function that returns one",
    )  # fmt: skip
    parser.add_argument(
        "--reference", metavar="NAME",
        help="a function in the script that returns the right results; without it, those of the "
        "first combination that can be traced count as right",
    )  # fmt: skip
    parser.add_argument(
        "--run", type=int, default=3, metavar="N", help="run the best N in NumPy [%(default)s]"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="also write all as JSON")
    parser.add_argument(
        "--executor", metavar="WHERE",
        help="module:factory of a concurrent.futures.Executor, dask:ADDRESS or ray:ADDRESS",
    )  # fmt: skip
    return parser


def _varied(options: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """The values by name.

    Raises:
      _Unusable
    """
    varied: dict[str, tuple[Any, ...]] = {}
    for option in options:
        name, equals, values = option.partition("=")
        if not name.isidentifier() or not equals or not values:
            raise _Unusable(f"--vary {option}: it takes NAME=VALUE,VALUE")
        if name in varied:
            raise _Unusable(f"--vary {name} is given twice")
        try:
            varied[name] = ast.literal_eval(f"({values},)")
        except (ValueError, SyntaxError):
            varied[name] = tuple(values.split(","))
    return varied


def _module(named: str) -> Any:
    """Imports the script or module of ``place:function``.

    Raises:
      _Unusable: there is none. Errors of its own are raised as they are.
    """
    place = named.rpartition(":")[0]
    if not place:
        raise _Unusable(f"{named}: it takes script.py:function or module:function")
    if not place.endswith(".py"):
        sys.path.insert(0, os.getcwd())
        if importlib.util.find_spec(place) is None:
            raise _Unusable(f"there is no module {place}")
        return importlib.import_module(place)
    if not os.path.exists(place):
        raise _Unusable(f"there is no file {place}")
    name = os.path.basename(place).removesuffix(".py")
    sys.path.insert(0, os.path.dirname(os.path.abspath(place)))
    sys.argv = [place]
    spec = importlib.util.spec_from_file_location(name, place)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _named(module: Any, name: str) -> Any:
    """What has that name, which may be dotted.

    Raises:
      _Unusable: nothing has.
    """
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise _Unusable(f"{module.__name__} has no {name}")
        found = getattr(found, part)
    return found


def _arguments(found: Any) -> tuple[Any, ...]:
    made = found() if callable(found) else found
    return tuple(made) if isinstance(made, tuple | list) else (made,)


# -- what is shown ------------------------------------------------------------------------------


def _lines(
    asked: argparse.Namespace, ranked: Sequence[Ranked], dropped: Sequence[Ranked]
) -> list[str]:
    lines = [f"pallas_shim tune: {asked.function} on a {asked.tpu}, {_order(ranked)}"]
    if ranked:
        rows = [("", "configuration", "estimate", "at least", "VMEM", "results")]
        rows += [
            (
                str(place), _text(each), _time(each.seconds), _time(each.bound),
                _bytes(each.vmem), _results(each),
            )
            for place, each in enumerate(ranked, 1)
        ]  # fmt: skip
        lines += columns.table(rows)
    for text in dict.fromkeys(each.error for each in ranked if each.error):
        lines += columns.paragraph(f"The estimate's error: {text}")
    for text in dict.fromkeys(each.unknown for each in ranked if each.unknown):
        first = str(text).splitlines()[0]
        lines += columns.paragraph(f"No estimate for some: {first}")
    if ranked:
        lines += columns.paragraph("The time is that of the kernels alone, each called once.")
    if dropped:
        lines.append(f"dropped: {len(dropped)} of {len(ranked) + len(dropped)}")
        alike: dict[str, list[str]] = {}
        for each in dropped:
            alike.setdefault(_short(each.why), []).append(_text(each))
        for why, configs in alike.items():
            lines += columns.paragraph("; ".join(configs), indent="  ")
            lines += columns.paragraph(why, indent="      ")
    return lines


def _order(ranked: Sequence[Ranked]) -> str:
    from pallas_shim.chip import tuning

    if not ranked:
        return "where no configuration can be used"
    by = tuning.ranked_by(ranked)
    return f"ranked by {by}" if by else "in the order given: nothing says which is faster"


def _text(each: Ranked) -> str:
    return " ".join(f"{name}={value}" for name, value in each.config.items())


def _time(seconds: float | None) -> str:
    return "none" if seconds is None else f"{seconds * 1e6:,.3g} us"


def _bytes(number: int | None) -> str:
    return "?" if number is None else f"{number / (1 << 20):.3g} MiB"


def _results(each: Ranked) -> str:
    if each.failure is not None:
        return f"fails: {_short(each.failure)}"
    return {None: "not run", True: "right", False: "WRONG"}[each.agrees]


def _short(text: str | None) -> str:
    line = " ".join((text or "").split())
    return line if len(line) <= 400 else f"{line[:400]} …"


def _write(asked: argparse.Namespace, ranked: Sequence[Ranked], dropped: Sequence[Ranked]) -> None:
    from pallas_shim.chip import tuning

    document = {
        "function": asked.function,
        "tpu": asked.tpu,
        "ranked_by": tuning.ranked_by(ranked),
        "ranked": [each.row() for each in ranked],
        "dropped": [each.row() for each in dropped],
    }
    with open(asked.output, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=2, default=str)
        file.write("\n")
