"""Runs random kernels in the evaluator and in JAX for as long as one likes.

    python -m tests.fuzz --minutes 60 --seed 0
    python -m tests.fuzz --only cells

Prints how many ran, by seed. The first mismatch is shown, as found and then shrunk (which XLA's
compiler may not live through): the kernel's jaxpr, its arguments, what the evaluator gave and
what JAX gave. The exit status is then 1.
"""

from __future__ import annotations

import argparse
import sys
import time

from hypothesis import Phase, given, seed, settings

from tests.fuzz.check import GENERATORS, Mismatch, check, quiet, sources

# Kernels of each seed.
EXAMPLES = 25


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", choices=GENERATORS, help="one kind of kernel")
    options = parser.parse_args()
    start, compared, refused, number = time.monotonic(), 0, 0, options.seed

    def run(*phases: Phase) -> None:
        @seed(number)
        @settings(quiet, max_examples=EXAMPLES, phases=phases)
        @given(sources)
        def each(source):
            nonlocal compared, refused
            if check(source, options.only):
                compared += 1
            else:
                refused += 1

        each()

    while time.monotonic() - start < 60 * options.minutes:
        try:
            run(Phase.generate)
        except Mismatch as error:
            print(f"seed {number}: {error}", flush=True)
            try:
                run(Phase.generate, Phase.shrink)
            except Mismatch as smaller:
                print(f"shrunk: {smaller}")
            return 1
        minutes = (time.monotonic() - start) / 60
        print(f"seeds {options.seed}..{number}: {compared} kernels in {minutes:.1f} minutes; "
              f"{refused} that JAX can't run", flush=True)
        number += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
