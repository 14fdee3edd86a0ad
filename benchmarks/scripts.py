"""Measures whole scripts, from the start of Python to its end: under the shim with an empty cache
and in a second process, with its default scope and PALLAS_NUMPY_SCOPE=kernels, and on stock JAX
with all kernels interpreted.

    python benchmarks/scripts.py examples/*.py notebook.ipynb
    python benchmarks/scripts.py "small:: PALLAS_NUMPY_TPU=v5e bench.py --size 8" --docs docs

A script is a line as for a shell: a name and ::, if it is to have one, variables, the file, its
arguments. Of a notebook, the cells with code run as one script. Each runs in a folder of its own,
where it may write files. `--docs` writes scripts.md; `--notes` is a text for its end.
"""

from __future__ import annotations

import argparse
import compileall
import dataclasses
import json
import math
import os
import pathlib
import platform
import re
import resource
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence

import jax

ROOT = pathlib.Path(__file__).parents[1]
SHIM, KERNELS = {"PALLAS_NUMPY": "1"}, {"PALLAS_NUMPY": "1", "PALLAS_NUMPY_SCOPE": "kernels"}
# Name: the variables, and whether the cache is the one of the way before.
WAYS: dict[str, tuple[Mapping[str, str], bool]] = {
    "shim": (SHIM, False),
    "shim, second process": (SHIM, True),
    "kernels": (KERNELS, False),
    "kernels, second process": (KERNELS, True),
    "interpret=True": ({}, False),
}
_INTERPRETED = """
import functools, runpy, sys
from jax.experimental import pallas as pl
stock = pl.pallas_call
@functools.wraps(stock)
def pallas_call(*args, **kwargs):
    kwargs["interpret"] = kwargs.get("interpret") or True
    return stock(*args, **kwargs)
pl.pallas_call = pallas_call
sys.argv = sys.argv[1:]
sys.path[0] = __import__("os").path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclasses.dataclass(frozen=True)
class Script:
    name: str
    variables: Mapping[str, str]
    command: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Run:
    """One process. ``failure``: why there are no times."""

    wall: float
    processor: float
    failure: str | None = None


def script(line: str, folder: pathlib.Path) -> Script:
    """The script of a line. ``folder`` gets the code of a notebook."""
    name, _, command = line.rpartition("::")
    words = shlex.split(command)
    variables = {}
    while re.match(r"[A-Z_]+=", words[0]):
        variable, _, variables[variable] = words.pop(0).partition("=")
    path = pathlib.Path(words[0]).resolve()
    if path.suffix == ".ipynb":
        cells = json.loads(path.read_text())["cells"]
        code = "\n\n".join(cell_code(c["source"]) for c in cells if c["cell_type"] == "code")
        path = folder / (re.sub(r"\W", "_", str(path)) + ".py")
        path.write_text(code)
    name = name or f"{pathlib.Path(words[0]).parent.name}/{pathlib.Path(words[0]).name}"
    return Script(name, variables, [str(path), *words[1:]])


def cell_code(source: str | Sequence[str]) -> str:
    """The code of a cell, without commands of the notebook."""
    lines = "".join(source).splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def run(script: Script, way: str, cache: pathlib.Path, limit: float, clock: str) -> Run:
    """Runs a script in a way, with its programs in a cache. ``limit``: seconds by the clock."""
    variables, keeps = WAYS[way]
    if not keeps:
        shutil.rmtree(cache, ignore_errors=True)
    mine = script.variables if variables else {}
    # Without bytecode, each process would compile the shim's source.
    ours = ("PALLAS_NUMPY", "PYTHONDONTWRITEBYTECODE")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    paths = [str(ROOT), str(ROOT / "sitecustomize_pkg"), environ.get("PYTHONPATH", "")]
    environ |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "XDG_CACHE_HOME": str(cache),
                "JAX_PLATFORMS": "cpu", "MPLBACKEND": "agg", **variables, **mine}  # fmt: skip
    first = [sys.executable] if variables else [sys.executable, "-c", _INTERPRETED]
    here = cache.with_name("here")
    here.mkdir(exist_ok=True)
    start, before = time.perf_counter(), os.times()
    process = subprocess.Popen(
        [*first, *script.command], env=environ, text=True, cwd=here,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    if clock == "processor":
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit)))
    try:
        _, errors = process.communicate(timeout=limit if clock == "wall" else None)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    wall, after = time.perf_counter() - start, os.times()
    processor = after.children_user + after.children_system
    processor -= before.children_user + before.children_system
    if process.returncode == 0:
        return Run(wall, processor)
    if process.returncode == -signal.SIGKILL:
        return Run(wall, processor, f"not within {limit:g} s")
    last = re.findall(r"^\w[\w.]*(?:Error|Exception|Unsupported)\b.*", errors, re.MULTILINE)
    return Run(wall, processor, f"status {process.returncode}: {(last or ['?'])[-1][:120]}")


def table(runs: Mapping[str, Mapping[str, Run]], clock: str) -> list[str]:
    """The table's lines, and those that say what failed."""
    ratios = [("interpret=True", "shim"), ("kernels", "shim")]
    heads = ["script", *WAYS, *map(" / ".join, ratios)]
    lines = [_row(heads), _row(["---"] * len(heads))]
    failures: dict[tuple[str, str], list[str]] = {}
    collected: list[list[float]] = [[] for _ in ratios]
    for name, by_way in runs.items():
        cells = [name]
        for way in WAYS:
            cells.append("-" if by_way[way].failure else f"{getattr(by_way[way], clock):.1f} s")
            reason = by_way[way].failure
            if reason:
                failures.setdefault((name, reason), []).append(way)
        for ratio, found in zip(ratios, collected, strict=True):
            one, other = (by_way[way] for way in ratio)
            if one.failure or other.failure:
                cells.append("-")
                continue
            found.append(getattr(one, clock) / getattr(other, clock))
            cells.append(f"{found[-1]:.3g}")
        lines.append(_row(cells))
    means = [f"{statistics.geometric_mean(x):.3g}" if x else "-" for x in collected]
    lines.append(_row(["geometric mean", *[""] * len(WAYS), *means]))
    said = [f"- {name}; {', '.join(ways)}: {why}" for (name, why), ways in failures.items()]
    return [*lines, "", *said]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def page(runs: Mapping[str, Mapping[str, Run]], clock: str, notes: str) -> str:
    times = {"wall": "by the clock", "processor": "of the processor, all threads together"}[clock]
    return "\n".join([
        "# Whole scripts",
        "",
        "<!-- Generated by python benchmarks/scripts.py --docs docs; don't edit. -->",
        "",
        f"JAX {jax.__version__}, Python {platform.python_version()}. One process each, from the"
        f" start of Python to its end: times {times}. A second process finds the first one's"
        " programs on disk. On stock JAX, all kernels are interpreted.",
        "",
        *table(runs, clock),
        "",
        notes,
    ])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("scripts", nargs="+", metavar="SCRIPT")
    parser.add_argument("--limit", type=float, default=120, help="seconds, by the clock")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--keep", type=pathlib.Path, help="keeps figures, and continues from them")
    parser.add_argument("--docs", type=pathlib.Path, help="writes scripts.md there")
    parser.add_argument("--notes", type=pathlib.Path, help="a text for its end")
    options = parser.parse_args()
    kept: dict[str, dict[str, list[float]]] = {}
    if options.keep is not None and options.keep.exists():
        kept = json.loads(options.keep.read_text())
    runs: dict[str, dict[str, Run]] = {}
    for package in ("pallas_shim", "patches", "sitecustomize_pkg"):  # as pip does
        compileall.compile_dir(ROOT / package, quiet=1)
    with tempfile.TemporaryDirectory() as folder:
        for line in options.scripts:
            each = script(line, pathlib.Path(folder))
            if each.name not in kept:
                made = {}
                for way in WAYS:
                    cache = pathlib.Path(folder) / "cache"
                    made[way] = run(each, way, cache, options.limit, options.clock)
                    print(f"{each.name}, {way}: {made[way]}", flush=True)
                kept[each.name] = {way: dataclasses.astuple(it) for way, it in made.items()}
                if options.keep is not None:
                    options.keep.write_text(json.dumps(kept))
            runs[each.name] = {way: Run(*figures) for way, figures in kept[each.name].items()}
    print("\n".join(table(runs, options.clock)))
    if options.docs is not None:
        notes = "" if options.notes is None else options.notes.read_text()
        (options.docs / "scripts.md").write_text(page(runs, options.clock, notes))


if __name__ == "__main__":
    main()
