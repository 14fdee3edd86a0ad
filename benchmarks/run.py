"""Measures kernels on stock JAX (interpret=True) and under the shim, in fresh processes.

    python benchmarks/run.py [WORD ...] [--processes N] [--output FILE]

Runs the kernels whose name holds one of the words; without words, those that need nothing
beside JAX. Prints a Markdown table, and writes it to FILE. The Python that runs this needs JAX
and the requirements of pallas_shim. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
STARTUP = HERE.parent / "sitecustomize_pkg"
HEADER = """\
| kernel | first call: stock | shim | stock / shim | shim / JAX's tracing \
| warm: stock | shim | stock / shim |
| --- | --- | --- | --- | --- | --- | --- | --- |"""


def measure(name: str, what: str) -> dict[str, float]:
    """In the measured process: seconds of tracing alone, or of a first and of later calls."""
    import jax
    import kernels
    import numpy as np

    f, args = kernels.KERNELS[name]()
    jax.block_until_ready([x + x for x in args])  # JAX's own start-up isn't the kernel's
    start = time.perf_counter()
    if what == "trace":
        f.trace(*args)
        return {"trace": time.perf_counter() - start}
    jax.block_until_ready(f(*args))
    first = time.perf_counter() - start
    warm: list[float] = []
    while len(warm) < 5 or (len(warm) < 100 and sum(warm) < 2):
        start = time.perf_counter()
        result = jax.block_until_ready(f(*args))
        warm.append(time.perf_counter() - start)
    checksum = sum(float(np.sum(np.asarray(x, np.float64))) for x in jax.tree.leaves(result))
    return {"first": first, "warm": statistics.median(warm), "checksum": checksum}


def process(name: str, what: str) -> dict[str, float]:
    """Runs ``measure`` in a fresh process; under the shim if that is what is measured."""
    path = [str(STARTUP), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(path),
        "PALLAS_NUMPY": "1" if what == "shim" else "0",
        "PALLAS_NUMPY_STRICT": "1" if what == "shim" else "0",
    }
    command = [sys.executable, __file__, "--measure", what, name]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{name} ({what}) failed with exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def seconds(values: list[float]) -> str:
    value = statistics.median(values)
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def ratio(above: list[float], below: list[float]) -> str:
    """The median of the ratios of runs that followed one another, and their spread."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    low, mid, high = (f"{r:.3g}" for r in (min(ratios), statistics.median(ratios), max(ratios)))
    return f"{mid} ({low} to {high})"


def row(name: str, processes: int) -> str:
    runs: dict[str, list[dict[str, float]]] = {"trace": [], "stock": [], "shim": []}
    for _ in range(processes):
        for what, results in runs.items():
            results.append(process(name, what))
    column = {
        (what, key): [result[key] for result in results]
        for what, results in runs.items()
        for key in results[0]
    }
    ours, stock = column["shim", "checksum"], column["stock", "checksum"]
    if any(abs(a - b) > 1e-3 * max(1, abs(b)) for a, b in zip(ours, stock, strict=True)):
        raise SystemExit(f"{name}: results differ, {ours} against stock's {stock}")
    cells = [name]
    for key in ("first", "warm"):
        cells += [seconds(column["stock", key]), seconds(column["shim", key])]
        cells.append(ratio(column["stock", key], column["shim", key]))
        if key == "first":
            cells.append(ratio(column["shim", "first"], column["trace", "trace"]))
    return f"| {' | '.join(cells)} |"


def machine() -> str:
    import jax

    model = next(
        (line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if "model name" in line),
        platform.machine(),
    )
    return (
        f"JAX {jax.__version__}, Python {platform.python_version()},"
        f" {os.cpu_count()} cores of {model}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--processes", type=int, default=3, help="of each kind, for each kernel")
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE")
    parser.add_argument("--measure", choices=("trace", "stock", "shim"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.words, options.measure)))
        return

    import kernels

    names = [
        name
        for name in kernels.KERNELS
        if any(word in name for word in options.words)
        or not options.words and not name.startswith("tallax")
    ]
    if not names:
        parser.error(f"no kernel's name holds {' or '.join(options.words)}")
    lines = HEADER.splitlines()
    print(HEADER)
    for name in names:
        lines.append(row(name, options.processes))
        print(lines[-1], flush=True)
    note = (
        f"{machine()}; medians of {options.processes} fresh processes each,"
        " of ratios with the lowest and highest."
    )
    print(f"\n{note}")
    if options.output:
        options.output.write_text("\n".join([*lines, "", note, ""]))


if __name__ == "__main__":
    main()
