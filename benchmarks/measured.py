"""The figures of one kernel in all ways, and the ratios between them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from processes import Figures
from ways import WAYS


@dataclasses.dataclass(frozen=True)
class Ratio:
    """The median, lowest and highest of the ratios between processes that took turns.

    at_least: the dividend's process was ended at its limit, so the true ratio is higher.
    """

    middle: float
    low: float
    high: float
    at_least: bool = False

    def __str__(self) -> str:
        if self.at_least:
            return f"> {figure(self.middle)}"
        spread = f" ({figure(self.low)} to {figure(self.high)})" if self.low < self.high else ""
        return figure(self.middle) + spread


@dataclasses.dataclass(frozen=True)
class Measured:
    """One kernel's figures: a list of processes for each measured way.

    checked: the shim's results were compared with the results of this way. None if there was none.
    clock: the figure of time that counts, "wall" or "processor".
    """

    name: str
    processes: dict[str, list[Figures]]
    checked: str | None
    clock: str

    def values(self, way: str, key: str) -> list[float]:
        """A figure of each process. Empty if one of them was ended or failed."""
        found = [figures.get(key) for figures in self.processes.get(way, ())]
        numbers = [value for value in found if isinstance(value, (int, float))]
        return numbers if len(numbers) == len(found) else []

    def times(self, way: str, call: str) -> list[float]:
        """The seconds of the first or the warm call."""
        return self.values(way, f"{call}_{self.clock}")

    def middle(self, way: str, call: str) -> float | None:
        times = self.times(way, call)
        return statistics.median(times) if times else None

    def time_ratio(self, above: str, below: str, call: str) -> Ratio | None:
        """The ratio of the times of two ways."""
        dividends, divisors = self.times(above, call), self.times(below, call)
        limits = self.values(above, "limit")
        if not dividends and limits and divisors and call == "first":
            least = min(limits) / statistics.median(divisors)
            return Ratio(least, least, least, at_least=True)
        return ratio(dividends, divisors)

    def peak_ratio(self, above: str, below: str) -> Ratio | None:
        return ratio(self.values(above, "peak"), self.values(below, "peak"))

    def over_tracing(self) -> Ratio | None:
        """The time of the shim's first call, divided by the time of JAX's tracing alone."""
        return ratio(self.values("shim", "first_processor"), self.values("stages", "tracing"))

    def why_not(self, way: str) -> str | None:
        """The reason why a way has no figures. None if it has figures, or wasn't measured."""
        for figures in self.processes.get(way, ()):
            if "limit" in figures:
                return f"{WAYS[way].title}: ended after {figures['limit']:g} s"
            if "failed" in figures:
                return f"{WAYS[way].title}: {figures['failed']}"
        return None


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio | None:
    if not above or not below:
        return None
    # A process may not grow at all: a page is the least that can be told.
    ratios = [a / max(b, 1e-9) for a, b in zip(above, below, strict=False)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def mean(ratios: Sequence[Ratio | None]) -> float | None:
    """The geometric mean of the existing ratios."""
    middles = [each.middle for each in ratios if each is not None]
    return statistics.geometric_mean(middles) if middles else None


def figure(value: float) -> str:
    """A number with three digits, in the usual notation."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def seconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 1:
        return f"{figure(value)} s"
    return f"{figure(value * 1e3)} ms" if value >= 1e-3 else f"{figure(value * 1e6)} µs"
