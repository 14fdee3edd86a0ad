"""Measures how long a Python thread stands still while kernels are compiled in the background.

    python benchmarks/pauses.py                       # all kernels of the suite
    python benchmarks/pauses.py --only sort threefry

A pause is a time in which the main thread, which runs short Python loops, did nothing while the
compiling threads computed: it waited for the interpreter's lock. Where other processes take the
cores, both may stand still, or one may run while the other could; so each kernel is compiled
several times, and the least of the longest pauses counts.
"""

from __future__ import annotations

import argparse
import functools
import threading
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from kernels import KERNELS

from pallas_shim import dispatch
from pallas_shim.dispatch import background
from pallas_shim.evaluator.codegen import native
from pallas_shim.evaluator.codegen.native import machine
from pallas_shim.evaluator.program import Program


class _Programs:
    """An observer that collects the programs which are made."""

    def __init__(self) -> None:
        self.found: list[Program] = []

    def planned(self, executable, function):  # type: ignore[no-untyped-def]
        self.found.append(executable.program)
        return executable

    def ran(self, *args: object, **kwargs: object) -> None:
        pass


def longest_pause(work: Callable[[], object]) -> tuple[float, float]:
    """The longest pause while work is done in the background, and how long that took: seconds."""
    done = threading.Event()

    def finish() -> None:
        try:
            work()
        finally:
            done.set()

    start = time.perf_counter()
    background.later(finish)
    longest = 0.0
    clock, own, others = time.perf_counter(), time.thread_time(), _compilers()
    while not done.is_set():
        for _ in range(2000):
            pass
        now, mine, theirs = time.perf_counter(), time.thread_time(), _compilers()
        longest = max(longest, min(now - clock - (mine - own), theirs - others))
        clock, own, others = now, mine, theirs
    return longest, time.perf_counter() - start


def _compilers() -> float:
    """The seconds that the background's threads have computed."""
    seconds = 0.0
    for thread in threading.enumerate():
        if thread.name.startswith("pallas_shim_") and thread.ident is not None:
            seconds += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return seconds


def programs(name: str) -> Iterator[Program]:
    """The programs of a kernel of the suite that have native code."""
    f, args = KERNELS[name].build()
    observer = _Programs()
    dispatch.observe(observer)
    try:
        jax.block_until_ready(jax.jit(f)(*args))
    finally:
        dispatch.observe(None)
    for program in observer.found:
        try:
            native.source(program)
        except native.NotNative:
            continue
        yield program


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--only", nargs="+", default=[""], help="parts of kernels' names")
    parser.add_argument("--times", type=int, default=3, help="how often each is compiled")
    options = parser.parse_args()
    import pallas_shim

    pallas_shim.activate()
    pause, took = longest_pause(machine.llvm)
    print(f"loading LLVM: {pause * 1e3:.0f} ms of {took * 1e3:.0f}", flush=True)
    pauses = [pause]
    compiler = functools.partial(background.quietly, native.object_code)
    for name in KERNELS:
        if not any(part in name for part in options.only):
            continue
        for program in programs(name):
            work = functools.partial(native.compiled, program, None, compiler)
            measured = np.array([longest_pause(work) for _ in range(options.times)])
            pause, took = measured.min(axis=0)
            print(f"{name}: {pause * 1e3:.0f} ms of {took * 1e3:.0f}", flush=True)
            pauses.append(pause)
    print(f"the longest: {max(pauses) * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
