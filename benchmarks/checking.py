"""Times checked kernels, against the same unchecked and against JAX's race detector.

    python benchmarks/checking.py --keep FILE [--docs DIR] [--seconds 10] [--only KERNEL ...]

Each way to run a kernel has a process of its own. Unchecked and checked are the shim without and
with `PALLAS_NUMPY_CHECK=1`; the detector is `pltpu.InterpretParams(detect_races=True)` on stock
JAX, whose calls are ended after some seconds of the processor; then these stand for its time. Times
are of the processor, of a warm call, or of the first one where the detector ends no second one.
Memory is the growth of the process over what it is before the first call.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import math
import os
import pathlib
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import devices
import jax
import numpy as np
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from kernels import KERNELS
from measure import interpret_as
from peak_memory import peak, peak_from_now_on
from tables import machine, table

ROOT = pathlib.Path(__file__).resolve().parents[1]
WAYS = ("unchecked", "checked", "detector")
# Seconds for which warm calls are repeated.
REPEATED = 1.0
Figures = dict[str, float]


def built(name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function of a kernel of the suite, or of one whose devices talk, and its arguments."""
    if name in KERNELS:
        return KERNELS[name].build()
    function, count, shard = devices.KERNELS[name]
    mesh, spec = Mesh(np.array(jax.devices()[:count]), ("x",)), PartitionSpec("x")
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    x = np.arange(count * np.prod(shard), dtype=np.float32).reshape(-1, *shard[1:])
    return mapped, (jax.device_put(x, NamedSharding(mesh, spec)),)


def one(name: str, way: str, limit: float) -> Iterator[Figures]:
    """The seconds of the first call and the growth of the process; then with those of a warm one,
    the median. The detector's process ends after so many seconds."""
    if way == "detector":
        interpret_as(pltpu.InterpretParams(detect_races=True))
    elif name in KERNELS and not KERNELS[name].for_device:
        interpret_as(True)
    f, args = built(name)
    call = functools.partial(_seconds, jax.jit(f), *args)
    jax.block_until_ready([x + x for x in args])  # JAX's own start-up isn't the kernel's
    at_rest = peak_from_now_on()
    if way == "detector":
        end = math.ceil(time.process_time() + limit)
        resource.setrlimit(resource.RLIMIT_CPU, (end, end + 5))
    figures = {"first": call(), "peak": float(peak() - at_rest)}
    yield figures
    warm: list[float] = []
    begun = time.perf_counter()
    while len(warm) < 50 and (not warm or time.perf_counter() - begun < REPEATED):
        warm.append(call())
    yield {**figures, "warm": statistics.median(warm), "peak": float(peak() - at_rest)}


def _seconds(function: Callable[..., Any], *args: Any) -> float:
    """The time of the processor for a call, as other programs may run on the machine."""
    start = time.process_time()
    jax.block_until_ready(function(*args))
    return time.process_time() - start


def measure(name: str, way: str, limit: float) -> Figures | str:
    """The figures of a fresh process, or why there are none."""
    environment = {
        **os.environ,
        "PALLAS_NUMPY": "0" if way == "detector" else "1",
        "PALLAS_NUMPY_STRICT": "1",
        "PALLAS_NUMPY_CACHE": "0",
        "PALLAS_NUMPY_CHECK": "1" if way == "checked" else "0",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "JAX_TRACEBACK_FILTERING": "remove_frames",
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT / "sitecustomize_pkg"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        ),
    }
    command = [sys.executable, __file__, "--one", name, way, "--seconds", str(limit)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]
    if lines:
        return json.loads(lines[-1])
    if ran.returncode == -signal.SIGXCPU:
        return {"limit": limit}
    return (ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"])[-1][:200]


def collect(keep: pathlib.Path, names: list[str], limit: float) -> dict[str, dict[str, Any]]:
    """By kernel and way: the figures. Those in the file aren't measured again."""
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    if keep.exists():
        for name, way, figures in map(json.loads, keep.read_text().splitlines()):
            found.setdefault(name, {})[way] = figures
    for name in names:
        for way in WAYS:
            if way not in found[name]:
                figures = found[name][way] = measure(name, way, limit)
                with keep.open("a") as file:
                    file.write(json.dumps([name, way, figures]) + "\n")
                print(name, way, figures, sep=" | ", file=sys.stderr, flush=True)
    return {name: found[name] for name in names}


def row(name: str, ways: dict[str, Any]) -> tuple[list[str], dict[str, float]]:
    """The cells of a kernel's row, and the ratios in it."""
    plain, checked, detector = (ways[way] for way in WAYS)
    if isinstance(plain, str) or isinstance(checked, str):
        why = plain if isinstance(plain, str) else checked
        return [name, *["-"] * 6, why], {}
    ratios = {
        "time": checked["warm"] / plain["warm"],
        "memory": max(checked["peak"], 2**20) / max(plain["peak"], 2**20),
    }
    if isinstance(detector, str):
        theirs, ratio = "fails", "-"
    else:
        which = "warm" if "warm" in detector else "first"
        seconds = detector.get(which, detector.get("limit"))
        ratios["detector"] = seconds / checked[which]
        mark = "> " * ("limit" in detector)
        theirs, ratio = f"{mark}{_text(seconds)}", f"{mark}{ratios['detector']:.3g}"
    return [
        name, _text(plain["warm"]), _text(checked["warm"]), f"{ratios['time']:.3g}",
        f"{plain['peak'] / 1e6:.1f}", f"{checked['peak'] / 1e6:.1f}", theirs, ratio,
    ], ratios  # fmt: skip


def _text(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


HEAD = (
    "kernel", "unchecked", "checked", "ratio", "unchecked, MB", "checked, MB",
    "detect_races", "detect_races / checked",
)  # fmt: skip


def summary(ratios: list[dict[str, float]]) -> str:
    lines = []
    for key, what in (
        ("time", "A checked call takes {mean:.3g} times as long as an unchecked one"),
        ("memory", "A checked process grows {mean:.3g} times as much, of at least 1 MB"),
        ("detector", "JAX's race detector takes {mean:.3g} times as long as a checked call"),
    ):
        values = [one[key] for one in ratios if key in one]
        if values:
            text = what.format(mean=statistics.geometric_mean(values))
            lines.append(
                f"- {text} (geometric mean of {len(values)}; "
                f"from {min(values):.3g} to {max(values):.3g})."
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    every = [*KERNELS, *devices.KERNELS]
    parser.add_argument("--keep", type=pathlib.Path, help="figures are kept there as they come in")
    parser.add_argument("--docs", type=pathlib.Path, help="write checking-costs.md there")
    parser.add_argument("--seconds", type=float, default=10, help="the limit of the detector")
    parser.add_argument("--only", nargs="*", choices=every, default=every, metavar="KERNEL")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        for figures in one(*options.one, options.seconds):
            print(json.dumps(figures), flush=True)
        return 0
    if options.keep is None:
        parser.error("--keep is missing")
    found = collect(options.keep, options.only, options.seconds)
    made = [row(name, ways) for name, ways in found.items()]
    text = f"{summary([r for _, r in made])}\n\n{table(HEAD, (cells for cells, _ in made))}"
    print(text)
    if options.docs is not None:
        how = " ".join((__doc__ or "").split("\n\n")[2].split())
        today = datetime.date.today().isoformat()
        parts = [
            "# What checking costs",
            "<!-- Generated by python benchmarks/checking.py --docs docs; don't edit. -->",
            f"{today}, JAX {jax.__version__}, {machine()}. {how}",
            text,
        ]
        (options.docs / "checking-costs.md").write_text("\n\n".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
