"""Runs random kernels in the evaluator and in JAX for as long as one likes.

    python -m tests.fuzz --minutes 60 --seed 0
    python -m tests.fuzz --only cells
    python -m tests.fuzz --native --only natively
    python -m tests.fuzz --cache /tmp/programs

Prints how many ran, by seed. The first mismatch is shown, as found and then shrunk: the kernel's
jaxpr, its arguments, what the evaluator gave and what JAX gave. The exit status is then 1. Each
seed has a process of its own, since some kernels crash XLA's compiler.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

from hypothesis import Phase, given, seed, settings

from tests.fuzz.check import (
    GENERATORS,
    Mismatch,
    check,
    check_cached,
    check_natively,
    quiet,
    sources,
)

# Kernels of each seed.
EXAMPLES = 25

# Draws and compares a kernel; false if there is nothing to compare.
Compared: TypeAlias = Callable[[Any, str | None], bool]


def _natively(source: Any, only: str | None) -> bool:
    return "" in check_natively(source, only)


def _from_disk(source: Any, only: str | None) -> bool:
    return check_cached(source, only) == "read after tracing"


def run_seed(number: int, only: str | None, compared: Compared, counts: Connection) -> None:
    """Sends how many kernels were compared, and how many couldn't be; if one differs, sends None
    and exits with 1."""
    ran = {True: 0, False: 0}

    def run(*phases: Phase) -> None:
        @seed(number)
        @settings(quiet, max_examples=EXAMPLES, phases=phases)
        @given(sources)
        def each(source):
            ran[compared(source, only)] += 1

        each()

    try:
        run(Phase.generate)
    except Mismatch as error:
        print(f"seed {number}: {error}", flush=True)
        counts.send(None)  # known even if XLA crashes while the kernel is shrunk
        try:
            run(Phase.generate, Phase.shrink)
        except Mismatch as smaller:
            print(f"shrunk: {smaller}", flush=True)
        sys.exit(1)
    counts.send((ran[True], ran[False]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", choices=GENERATORS, help="one kind of kernel")
    parser.add_argument("--native", action="store_true", help="compare native code with NumPy")
    parser.add_argument("--cache", metavar="DIR", help="compare what is made with what is read")
    options = parser.parse_args()
    compare: Compared = check
    others = "that JAX can't run"
    if options.native:
        compare, others = _natively, "without native code"
    elif options.cache:
        os.environ["PALLAS_NUMPY_CACHE"] = options.cache
        compare, others = _from_disk, "that aren't kept"
    start, compared, refused, crashed, number = time.monotonic(), 0, 0, 0, options.seed
    # JAX is imported, but has no threads yet.
    context = multiprocessing.get_context("fork")

    while time.monotonic() - start < 60 * options.minutes:
        receiving, sending = context.Pipe(duplex=False)
        given = (number, options.only, compare, sending)
        process = context.Process(target=run_seed, args=given)
        process.start()
        process.join()
        found = receiving.recv() if receiving.poll() else ()
        if process.exitcode == 1 or found is None:
            return 1
        if found:
            compared, refused = compared + found[0], refused + found[1]
        else:
            crashed += 1
        minutes = (time.monotonic() - start) / 60
        print(f"seeds {options.seed}..{number}: {compared} kernels in {minutes:.1f} minutes; "
              f"{refused} {others}, {crashed} seeds in which it crashed", flush=True)
        number += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
