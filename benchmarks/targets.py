"""The project's targets, and the measured figures for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from measured import Measured, Ratio, figure, mean
from tables import table


class Target(NamedTuple):
    """A figure that must be ``at_most`` or ``at_least`` a bound. None: it isn't known yet."""

    title: str
    figure: Callable[[Sequence[Measured]], float | None]
    at_most: float | None = None
    at_least: float | None = None

    def row(self, kernels: Sequence[Measured]) -> list[str]:
        value = self.figure(kernels)
        bound = f"≤ {self.at_most:g}" if self.at_least is None else f"≥ {self.at_least:g}"
        if value is None:
            return [self.title, bound, "not measured", ""]
        met = value <= self.at_most if self.at_most is not None else value >= (self.at_least or 0)
        return [self.title, bound, figure(value), "yes" if met else "**no**"]


def targets(kernels: Sequence[Measured]) -> str:
    """All targets, as a Markdown table."""
    return table(["figure", "target", "measured", "met"], (t.row(kernels) for t in TARGETS))


SMALL, LARGE = "tallax sort 8x128 f32", "tallax sort 8x8192 f32"
MANY_CELLS = "vector add, 4096 blocks of 256"

Of = Callable[[Measured], "Ratio | None"]


def one(name: str, of: Of) -> Callable[[Sequence[Measured]], float | None]:
    def value(kernels: Sequence[Measured]) -> float | None:
        found = next((of(kernel) for kernel in kernels if kernel.name == name), None)
        return None if found is None else found.middle

    return value


def milliseconds(
    name: str, way: str, call: str
) -> Callable[[Sequence[Measured]], float | None]:
    def value(kernels: Sequence[Measured]) -> float | None:
        taken = next((k.middle(way, call) for k in kernels if k.name == name), None)
        return None if taken is None else taken * 1e3

    return value


def over_all(
    of: Of, summary: Callable[[list[float]], float] | None = None
) -> Callable[[Sequence[Measured]], float | None]:
    """The geometric mean over the kernels, or another summary of their ratios."""

    def value(kernels: Sequence[Measured]) -> float | None:
        ratios = [of(kernel) for kernel in kernels]
        if summary is None:
            return mean(ratios)
        middles = [ratio.middle for ratio in ratios if ratio is not None]
        return summary(middles) if middles else None

    return value


def stock(call: str) -> Of:
    return lambda kernel: kernel.time_ratio("stock", "shim", call)


def settled(kernel: Measured) -> Ratio | None:
    return kernel.time_ratio("stock", "shim_settled", "warm")


def second(kernel: Measured) -> Ratio | None:
    return kernel.time_ratio("shim", "shim_second", "first")


def tpu_interpreter(call: str) -> Of:
    return lambda kernel: kernel.time_ratio("tpu_interpreter", "shim", call)


def memory(kernel: Measured) -> Ratio | None:
    return kernel.peak_ratio("shim", "stock")


TARGETS = (
    Target("sort 8x128: first call / JAX's tracing", one(SMALL, Measured.over_tracing), 1.15),
    Target(
        "sort 8x128: first call with the shim's function cache warm, ms",
        milliseconds(SMALL, "shim_cached", "first"),
        60,
    ),
    Target("sort 8x128: warm, stock / shim", one(SMALL, stock("warm")), at_least=15),
    Target("sort 8x8192: warm, stock / shim", one(LARGE, stock("warm")), at_least=6),
    Target("sort 8x8192: first call, ms", milliseconds(LARGE, "shim", "first"), 2000),
    Target("vector add, 4096 blocks: warm, ms", milliseconds(MANY_CELLS, "shim", "warm"), 5),
    Target("all: first call, stock / shim, geometric mean", over_all(stock("first")), at_least=20),
    Target(
        "all: first call, first process / second, geometric mean", over_all(second), at_least=1.3
    ),
    Target("all: warm, stock / shim, geometric mean", over_all(stock("warm")), at_least=3.2),
    Target("all: warm, stock / shim, worst kernel", over_all(stock("warm"), min), at_least=0.15),
    Target("all: after 6 seconds, stock / shim, geometric mean", over_all(settled), at_least=5),
    Target("all: after 6 seconds, stock / shim, worst kernel", over_all(settled, min), at_least=1),
    Target(
        "all: warm, InterpretParams / shim, geometric mean",
        over_all(tpu_interpreter("warm")),
        at_least=50,
    ),
    Target("all: peak memory, shim / stock, worst kernel", over_all(memory, max), 1.5),
    Target("all: peak memory, shim / stock, geometric mean", over_all(memory), 1),
)
