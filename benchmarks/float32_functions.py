"""Measures functions of float32: their largest errors, and what smaller ones would cost.

    python benchmarks/float32_functions.py [--step N]

It prints the table of docs/limits.md. Errors are in units of the last place, against float64, over
every Nth of all float32 numbers of which the function is a normal number (--step 1: all of them;
an hour). The time is that of the way to at most one unit, over NumPy's own: the evaluator's rsqrt;
for the others float64, which is computed in a buffer that stays in the processor's cache.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from tables import table

from pallas_shim.evaluator.floating import as_xla
from pallas_shim.evaluator.rules import elementwise, elementwise_math

Function = Callable[..., Any]

FLOAT32 = np.dtype(np.float32)
SIZES = (8, 1024, 100_000, 1_000_000)
ONE = np.float32(1)
# This many numbers are measured at once.
AT_ONCE = 1 << 20
# A buffer of this many float64 stays in the cache.
BUFFER = 8192
# The steps are odd, so that all last bits occur.
STEP = 489


class Measured(NamedTuple):
    """A function of float32 as NumPy has it, and the same of float64, where it may write over its
    first operand. ``within``: the operands that are measured, by absolute value."""

    of_numpy: Function
    of_float64: Function
    within: tuple[float, float] = (1.2e-38, 3.4e38)
    signs: tuple[int, ...] = (1, -1)


def _logistic(x: np.ndarray) -> np.ndarray:
    np.negative(x, x)
    np.exp(x, x)
    np.add(x, 1.0, x)
    return np.divide(1.0, x, x)


FUNCTIONS = {
    "exp": Measured(np.exp, lambda x: np.exp(x, x), (1e-20, 87)),
    "log": Measured(np.log, lambda x: np.log(x, x), signs=(1,)),
    "sin": Measured(np.sin, lambda x: np.sin(x, x), (1e-37, 1e4)),
    "cos": Measured(np.cos, lambda x: np.cos(x, x), (1e-37, 1e4)),
    "tanh": Measured(np.tanh, lambda x: np.tanh(x, x)),
    "logistic": Measured(lambda x: ONE / (ONE + np.exp(-x)), _logistic, (1e-20, 87)),
    "pow": Measured(np.power, lambda x, y: np.power(x, y, x), (1e-12, 1e12), (1,)),
    "rsqrt": Measured(
        lambda x: ONE / np.sqrt(x), lambda x: np.divide(1.0, np.sqrt(x, x), x), signs=(1,)
    ),
}


def ours(name: str) -> Function:
    fn = elementwise_math.power if name == "pow" else elementwise.cell(name, FLOAT32)
    return elementwise.specialised(fn, FLOAT32, FLOAT32)


def operands(name: str, step: int) -> Iterator[tuple[np.ndarray, ...]]:
    low, high = (int(np.float32(bound).view(np.uint32)) for bound in FUNCTIONS[name].within)
    rng = np.random.default_rng(0)
    for start in range(low, high, step * AT_ONCE):
        x = np.arange(start, min(start + step * AT_ONCE, high), step, np.uint32).view(np.float32)
        for sign in FUNCTIONS[name].signs:
            second = (rng.uniform(-3, 3, x.size).astype(np.float32),) if name == "pow" else ()
            yield (x * np.float32(sign), *second)


def errors(name: str, step: int) -> list[float]:
    """The largest errors of NumPy's function, the evaluator's and XLA's, in ulp."""
    in_xla = jax.jit(getattr(lax, name))
    ways = (FUNCTIONS[name].of_numpy, ours(name), lambda *xs: np.asarray(in_xla(*xs)))
    largest = [0.0] * len(ways)
    for xs in operands(name, step):
        want = FUNCTIONS[name].of_float64(*(x.astype(np.float64) for x in xs))
        unit = np.spacing(np.abs(want).astype(np.float32)).astype(np.float64)
        normal = (np.abs(want) >= np.finfo(np.float32).tiny) & np.isfinite(unit)
        for position, way in enumerate(ways):
            off = np.abs(as_xla(way, *xs).astype(np.float64) - want)[normal] / unit[normal]
            largest[position] = max(largest[position], float(off.max(initial=0)))
    return largest


def in_float64(fn: Function) -> Function:
    """A function of float32 that computes parts of its operands in float64."""

    def run(*xs: np.ndarray) -> np.ndarray:
        if xs[0].size <= BUFFER:
            return fn(*[x.astype(np.float64) for x in xs]).astype(np.float32)
        buffers = [np.empty(BUFFER) for _ in xs]
        result = np.empty_like(xs[0])
        for start in range(0, result.size, BUFFER):
            part = slice(start, start + BUFFER)
            wide = [buffer[: x[part].size] for buffer, x in zip(buffers, xs, strict=True)]
            for buffer, x in zip(wide, xs, strict=True):
                np.copyto(buffer, x[part])
            np.copyto(result[part], fn(*wide), casting="same_kind")
        return result

    return run


def seconds(call: Callable[[], Any]) -> float:
    call()
    rounds = 1
    while True:
        start = time.thread_time()
        for _ in range(rounds):
            call()
        took = time.thread_time() - start
        if took > 1e-3:
            return took / rounds
        rounds *= 2


def ratio(name: str, size: int) -> float:
    """How many times as long as NumPy's own function the exact way takes."""
    rng = np.random.default_rng(0)
    x = np.abs(rng.standard_normal(size) * 3).astype(np.float32) + np.float32(0.1)
    xs = (x, rng.uniform(-3, 3, size).astype(np.float32)) if name == "pow" else (x,)
    exact = ours(name) if name == "rsqrt" else in_float64(FUNCTIONS[name].of_float64)
    usual = FUNCTIONS[name].of_numpy
    times = [(seconds(lambda: exact(*xs)), seconds(lambda: usual(*xs))) for _ in range(25)]
    return min(a for a, _ in times) / min(b for _, b in times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=int, default=STEP, help="measure every Nth number")
    step = parser.parse_args().step
    rows = []
    for name in FUNCTIONS:
        with np.errstate(all="ignore"):
            found = [f"{error:.2f}" for error in errors(name, step)]
            times = [f"{as_xla(ratio, name, size):.1f}" for size in SIZES]
        rows.append([f"`{name}`", *found, *times])
        print(*rows[-1], file=sys.stderr)
    head = ["function", "NumPy", "here", "XLA", *(f"{size:,}" for size in SIZES)]
    print(table(head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
