"""Shows that costs grow as they should: with the instructions, the cells, the bytes.

    python benchmarks/scaling.py [--quick] [--docs DIR]

It prints three tables. The first has the steps of first calls, for unrolled kernels with more and
more instructions. Each step should grow in proportion to the instructions. The second has warm
calls over more and more cells and bytes. They should grow in proportion to these. The third has the
memory that a call needs beside its operands, for one array cut into more and more cells. It should
stay the same.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from measured import figure, seconds
from stages import stages
from tables import table

Kernel = Callable[..., None]

POWER = """\
A *power* is p where the time grew as n to the p from one row to the next: 1 is in proportion;
below it, what costs the same whatever n is still counts."""


def chain(n: int) -> Kernel:
    """A chain: each instruction needs the previous one."""

    def kernel(x_ref, out_ref):
        x = x_ref[...]
        for i in range(n // 2):
            x = x * float(i % 7) + x
        out_ref[...] = x

    return kernel


def tiles(n: int) -> Kernel:
    """Sixteen tiles with the same operations on each, so batching should apply."""

    def kernel(x_ref, out_ref):
        parts = [x_ref[...] + float(i) for i in range(16)]
        for i in range(n // 48):
            parts = [jnp.maximum(p, q) * float(i % 5 + 1) - q
                     for p, q in zip(parts, parts[1:] + parts[:1], strict=True)]
        out_ref[...] = sum(parts[1:], parts[0])

    return kernel


def stores(n: int) -> Kernel:
    """Loads and stores at places of one ref."""

    def kernel(x_ref, out_ref):
        out_ref[...] = x_ref[...]
        for i in range(n // 3):
            out_ref[i % 8] = out_ref[(i + 3) % 8] + x_ref[i % 8]

    return kernel


def branches(n: int) -> Kernel:
    """Regions: many branches, each on a computed value."""

    def kernel(x_ref, out_ref):
        x = x_ref[...]
        for i in range(n // 4):
            x = lax.cond(x[0, 0] > i, lambda x: x + 1, lambda x: x - 1, x)
        out_ref[...] = x

    return kernel


UNROLLED: dict[str, Callable[[int], Kernel]] = {
    "a chain": chain,
    "sixteen tiles": tiles,
    "loads and stores": stores,
    "branches": branches,
}


def first_calls(sizes: Sequence[int]) -> str:
    header = ["kernel", "instructions", "JAX's tracing", "lowering", "passes", "codegen",
              "a µs an instruction", "power", "slowest passes"]
    rows = []
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 128)), jnp.float32)
    for name, unroll in UNROLLED.items():
        before: tuple[int, float] | None = None
        for n in sizes:
            call = pl.pallas_call(
                unroll(n), jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True
            )
            found = stages(jax.jit(call), (x,))
            count = int(found.pop("instructions_lowered"))
            del found["instructions_left"], found["run"], found["loading rules"]
            tracing, lowering, codegen = map(found.pop, ("tracing", "lowering", "codegen"))
            passes = sum(found.values())
            ours = lowering + passes + codegen
            slowest = sorted(found, key=lambda step: -found[step])[:3]
            rows.append([
                name, f"{count:,}", *map(seconds, (tracing, lowering, passes, codegen)),
                figure(ours / count * 1e6), power(before, (count, ours)),
                ", ".join(f"{step} {seconds(found[step])}" for step in slowest),
            ])
            before = count, ours
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    return table(header, rows)


def power(before: tuple[float, float] | None, now: tuple[float, float]) -> str:
    if before is None:
        return ""
    return f"{math.log(now[1] / before[1]) / math.log(now[0] / before[0]):.2f}"


def executable(call: Callable[..., Any], *args: jax.Array) -> Callable[[], Any]:
    """A warm call, as the shim runs it."""
    from pallas_shim.evaluator import compiler

    program = compiler.compile(jax.make_jaxpr(call)(*args), name="scaling")
    values = [np.asarray(x) for x in args]
    return lambda: program(*values)


def doubled(cells: int, block: int, carried: bool) -> Callable[[], Any]:
    """Doubles an array block by block. If ``carried``, no two of its cells can run at once."""

    def kernel(x_ref, out_ref, last_ref):
        out_ref[...] = x_ref[...] + x_ref[...]
        if carried:
            last_ref[...] = out_ref[...] + last_ref[...]

    spec = pl.BlockSpec((block,), lambda i: (i,))
    call = pl.pallas_call(
        kernel,
        (jax.ShapeDtypeStruct((cells * block,), jnp.float32),
         jax.ShapeDtypeStruct((block,), jnp.float32)),
        grid=(cells,),
        in_specs=[spec],
        out_specs=(spec, pl.BlockSpec((block,), lambda i: (0,))),
        interpret=True,
    )
    return executable(call, jnp.ones(cells * block, jnp.float32))


def warm_calls(shapes: Sequence[tuple[int, int]], carried: bool) -> str:
    rows = []
    before: tuple[float, float] | None = None
    for cells, block in shapes:
        run = doubled(cells, block, carried)
        nbytes = 4 * cells * block
        tracemalloc.start()
        run()
        _, needed = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        took = statistics.median(timed(run) for _ in range(5))
        rows.append([
            f"{cells:,}", f"{block:,}", figure(nbytes / 1e6), seconds(took),
            figure(took / cells * 1e9), figure(took / nbytes * 1e9),
            power(before, (nbytes, took)) if before and before[0] != nbytes else "",
            figure(needed / nbytes),
        ])
        before = nbytes, took
    return table(
        ["cells", "numbers in each", "MB in all", "warm call", "ns a cell", "ns a byte", "power",
         "memory, times the array"],
        rows,
    )


def timed(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes")
    parser.add_argument("--docs", type=pathlib.Path, metavar="DIR", help="writes scaling.md there")
    options = parser.parse_args(arguments)
    sys.path.append(str(pathlib.Path(__file__).parents[1]))  # has pallas_shim if not installed
    sizes = (300, 1000, 3000) if options.quick else (1000, 10_000, 100_000)
    most = 12 if options.quick else 16
    powers = range(4, most + 1, 4)
    parts = [
        "# How costs grow",
        "<!-- Generated by python benchmarks/scaling.py --docs docs; don't edit. -->",
        f"JAX {jax.__version__}; times are of the processor. Memory is what a call allocates at"
        " most, its results included.",
        POWER,
        "## First calls: more instructions", first_calls(sizes).rstrip(),
        "## Warm calls: more cells that can run at once",
        warm_calls([(2**p, 256) for p in powers], carried=False).rstrip(),
        "## Warm calls: more cells that have to run in order",
        warm_calls([(2**p, 256) for p in powers], carried=True).rstrip(),
        "## Warm calls: more bytes in one cell",
        warm_calls([(1, 2**p) for p in range(12, most + 9, 4)], carried=False).rstrip(),
        "## Memory: the same array in more cells",
        warm_calls([(2**p, 2 ** (most + 4 - p)) for p in powers], carried=False).rstrip(),
    ]
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.docs:
        (options.docs / "scaling.md").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
