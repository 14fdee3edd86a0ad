"""The program of a measured process. It runs one kernel and prints the costs as JSON.

    python measure.py KERNEL WAY RESULTS SECONDS

RESULTS is the file for the kernel's results. Warm calls are repeated for SECONDS.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from kernels import KERNELS
from kernels.kernel import Kernel
from peak_memory import peak, peak_from_now_on
from stages import stages
from ways import WAYS


def main(name: str, way_name: str, results: str, seconds: str) -> None:
    kernel, way = KERNELS[name], WAYS[way_name]
    if way.interpret is not None and not (kernel.for_device and (way.shim or way.stages)):
        interpret_as({"True": True, "InterpretParams": pltpu.InterpretParams()}[way.interpret])
    built, args = kernel.build()
    f = jax.jit(built)
    jax.block_until_ready([x + x for x in args])  # JAX's own start-up isn't the kernel's
    if way.stages:
        print(json.dumps(stages(f, args)))
        if kernel.reference is not None:
            save(results, kernel.reference(*map(np.asarray, args)))
        return
    figures, leaves = measure(f, args, kernel, float(seconds), way.settles)
    save(results, leaves)
    print(json.dumps(figures))


def interpret_as(interpret: Any) -> None:
    """Makes pallas_call interpret every kernel like that, even if the caller can't choose."""
    stock = pl.pallas_call

    def pallas_call(*args: Any, **kwargs: Any) -> Any:
        return stock(*args, **{**kwargs, "interpret": interpret})

    pl.pallas_call = pallas_call


def measure(
    f: Callable[..., Any], args: tuple[Any, ...], kernel: Kernel, seconds: float, settles: float
) -> tuple[dict[str, float], list[np.ndarray]]:
    """The figures of the first call and of later calls, and the results.

    The figures are the seconds of the first call and the median of the later ones, by the clock and
    of the processor (all threads), and the largest growth of the process in bytes.
    """
    at_rest = peak_from_now_on()
    wall, processor = time.perf_counter(), time.process_time()
    out = jax.block_until_ready(f(*args))
    figures = {
        "first_wall": time.perf_counter() - wall,
        "first_processor": time.process_time() - processor,
    }
    warm: list[tuple[float, float]] = []
    until = time.process_time() + settles
    while time.process_time() < until:
        jax.block_until_ready(f(*args))
    begun = time.perf_counter()
    while len(warm) < 3 or (len(warm) < kernel.calls and time.perf_counter() - begun < seconds):
        wall, processor = time.perf_counter(), time.process_time()
        out = jax.block_until_ready(f(*args))
        warm.append((time.perf_counter() - wall, time.process_time() - processor))
    figures["warm_wall"], figures["warm_processor"] = map(
        statistics.median, zip(*warm, strict=True)
    )
    figures["peak"] = peak() - at_rest
    return figures, [np.asarray(leaf) for leaf in jax.tree.leaves(out)]


def save(path: str, leaves: list[np.ndarray]) -> None:
    """Saves arrays. Dtypes that aren't NumPy's are saved as float32, which holds their values."""
    arrays = map(np.asarray, leaves)
    np.savez(path, *(x.astype(np.float32) if x.dtype.kind == "V" else x for x in arrays))


if __name__ == "__main__":
    main(*sys.argv[1:])
