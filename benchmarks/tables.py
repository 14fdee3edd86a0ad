"""The measured figures as Markdown."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
from collections.abc import Iterable, Sequence

from measured import Measured, Ratio, figure, seconds
from ways import WAYS


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def machine() -> str:
    """How many cores of which processor."""
    model = platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        model = next((x.partition(":")[2].strip() for x in lines if "model name" in x), model)
    return f"{os.cpu_count()} cores of {model}"


def cell(ratio: Ratio | None) -> str:
    return "-" if ratio is None else str(ratio)


def first_calls(kernels: Sequence[Measured]) -> str:
    header = [
        "kernel",
        "shim",
        "shim / JAX's tracing",
        "interpret=True / shim",
        "the same, JAX's cache warm / shim",
        "InterpretParams / shim",
    ]
    cached = "shim_cached" in WAYS
    if cached:
        header += ["shim / the same in a second process", "shim, its function cache warm"]
    return table(
        header,
        (
            [
                kernel.name,
                seconds(kernel.middle("shim", "first")),
                cell(kernel.over_tracing()),
                *(
                    cell(kernel.time_ratio(way, "shim", "first"))
                    for way in ("stock", "stock_cached", "tpu_interpreter")
                ),
                *(
                    [
                        cell(kernel.time_ratio("shim", "shim_second", "first")),
                        seconds(kernel.middle("shim_cached", "first")),
                    ]
                    if cached
                    else []
                ),
            ]
            for kernel in kernels
        ),
    )


def warm_calls(kernels: Sequence[Measured]) -> str:
    header = ["kernel", "shim", "interpret=True / shim", "InterpretParams / shim"]
    header += ["shim, after 6 seconds", "interpret=True / that"]
    return table(
        [*header, "shim's peak memory, MB", "shim / interpret=True"],
        (
            [
                kernel.name,
                seconds(kernel.middle("shim", "warm")),
                cell(kernel.time_ratio("stock", "shim", "warm")),
                cell(kernel.time_ratio("tpu_interpreter", "shim", "warm")),
                seconds(kernel.middle("shim_settled", "warm")),
                cell(kernel.time_ratio("stock", "shim_settled", "warm")),
                megabytes(kernel.values("shim", "peak")),
                cell(kernel.peak_ratio("shim", "stock")),
            ]
            for kernel in kernels
        ),
    )


def megabytes(peaks: Sequence[float]) -> str:
    return figure(statistics.median(peaks) / 1e6) if peaks else "-"


COUNTS = {"instructions_lowered": "instructions lowered", "instructions_left": "left"}


def steps(kernels: Sequence[Measured]) -> str:
    """Milliseconds of each step of the shim's first call. Steps that take every kernel less than
    1 ms are summed."""
    named = {
        step
        for kernel in kernels
        for figures in kernel.processes.get("stages", ())
        for step, value in figures.items()
        if step not in COUNTS and isinstance(value, float) and value >= 1e-3
    }
    order = [
        step
        for step in next((k.processes["stages"][0] for k in kernels if "stages" in k.processes), {})
        if step in named
    ]
    rows = []
    for kernel in kernels:
        every = kernel.processes.get("stages", [{}])[0]
        times = {step: kernel.values("stages", step) for step in every if step not in COUNTS}
        middles = {step: statistics.median(values) for step, values in times.items() if values}
        rest = sum(value for step, value in middles.items() if step not in order)
        rows.append(
            [
                kernel.name,
                *(figure(middles.get(step, 0) * 1e3) for step in order),
                figure(rest * 1e3),
                *(int(next(iter(kernel.values("stages", count)), 0)) for count in COUNTS),
            ]
        )
    titles = [step.replace("_", " ") for step in order]
    return table(["kernel, milliseconds", *titles, "the rest", *COUNTS.values()], rows)
