"""Where a kernel's time goes on a TPU: its schedule, joined with how often each part of it runs."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from pallas_shim.chip import bundles, scalar_unit
from pallas_shim.chip.dumps import UnreadableDump
from pallas_shim.chip.verdicts import Verdict

NO_LINE = "no line"


class Model(NamedTuple):
    """Turns steps into seconds. A step takes as long as its bundles or its copies, whichever is
    longer: bundles / ``clock``, or bytes / ``bandwidth`` + ``latency``. ``launch``: once a call.

    ``error``: how far estimates were from a real chip's times, for kernels bound by copies.
    """

    clock: float
    bandwidth: float
    latency: float
    launch: float
    error: str


# Bandwidth, latency and launch were fitted to five kernels of the public record (docs/chip.md).
# Other TPUs have no measured times to fit, so they get no estimate.
MODELS = {
    "v6e": Model(
        clock=1.755e9,
        bandwidth=1.28e12,
        latency=320e-9,
        launch=0.12e-3,
        error="of 19 measured kernels, 18 were estimated within 15%; one was estimated at 2.3 "
        "times its time, because XLA kept operands of the whole program in VMEM",
    )
}

# The clocks follow from the FLOP/s that are published for one matrix unit.
CLOCKS = {"v5e": 1.50e9, "v5p": 1.75e9, "v6e": 1.755e9, "v7x": 2.20e9}
# Bytes a second of a core, as published.
BANDWIDTHS = {"v5e": 0.82e12, "v5p": 1.23e12, "v6e": 1.64e12, "v7x": 3.70e12}


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the user's source: the cycles in which its instructions were started (a cycle that
    starts several lines' is shared among them), and the spills among them."""

    line: str
    cycles: float


@dataclasses.dataclass(frozen=True)
class Profile:
    """One kernel on one TPU.

    ``cycles``: bundles that run in one call. ``units``: by unit, the share of its capacity that is
    used in these. ``copies``: kind, number and bytes of each instruction that copies. ``steps``:
    see `scalar_unit.Step`. ``seconds``: an estimate, with its ``error``. ``unknown``: why what is
    missing is missing.
    """

    kernel: str
    source: str | None
    operands: str
    tpu: str
    bundles: int | None = None
    cycles: int | None = None
    units: dict[str, float] = dataclasses.field(default_factory=dict)
    lines: tuple[Line, ...] = ()
    copies: tuple[scalar_unit.Copy, ...] = ()
    steps: tuple[scalar_unit.Step, ...] = ()
    bound: str | None = None
    seconds: float | None = None
    error: str | None = None
    unknown: str | None = None

    def row(self) -> dict[str, Any]:
        """The JSON form."""
        made = dataclasses.asdict(self)
        made["copies"] = [copy._asdict() for copy in self.copies]
        made["steps"] = [step._asdict() for step in self.steps]
        return made


def profile(verdict: Verdict) -> Profile:
    """Joins the schedule in a verdict with the scalar unit's program. Never raises because of the
    schedule's form."""
    made = Profile(verdict.kernel, verdict.source, verdict.operands, verdict.target)
    files = verdict.answer.schedule
    if files is None:
        reason = verdict.answer.unread or f"{verdict.answer.outcome}: {verdict.answer.message}"
        return dataclasses.replace(made, unknown=reason)
    try:
        code = bundles.read(files)
        made = dataclasses.replace(made, bundles=len(code.bundles))
        ran = scalar_unit.run(code)
    except UnreadableDump as error:
        reason = f"no schedule with libtpu {verdict.answer.libtpu}: {error}"
        return dataclasses.replace(made, unknown=reason)
    except scalar_unit.Unknown as error:
        return dataclasses.replace(made, unknown=f"no times: {error}")
    cycles = sum(ran.counts)
    made = dataclasses.replace(
        made, cycles=cycles, units=_units(code, ran.counts), lines=_lines(code, ran.counts),
        copies=tuple(ran.copies.values()), steps=tuple(ran.steps),
    )  # fmt: skip
    return _estimated(made, verdict.tpu.name)


def _units(code: bundles.Code, counts: Sequence[int]) -> dict[str, float]:
    cycles = max(sum(counts), 1)
    return {
        unit: sum(n * b.uses[at] for n, b in zip(counts, code.bundles, strict=True))
        / (cycles * max(capacity, 1))
        for at, (unit, capacity) in enumerate(code.units.items())
    }


def _lines(code: bundles.Code, counts: Sequence[int]) -> tuple[Line, ...]:
    cycles: collections.Counter[str] = collections.Counter()
    for count, bundle in zip(counts, code.bundles, strict=True):
        places = {i.line for i in bundle.instructions if i.line is not None} or {NO_LINE}
        for place in places:
            cycles[place] += count / len(places)  # type: ignore[assignment]
    return tuple(Line(line, round(spent, 1)) for line, spent in cycles.most_common() if spent)


def step_seconds(model: Model, step: scalar_unit.Step) -> tuple[float, float]:
    """The seconds of a step's bundles, and of its copies."""
    copying = step.hbm / model.bandwidth + model.latency if step.hbm else 0.0
    return step.bundles / model.clock, copying


def lower_bound(made: Profile) -> float | None:
    """The seconds that a call takes at least: each step its cycles, or its bytes at the published
    bandwidth. None: unknown."""
    tpu = made.tpu.partition(":")[0]
    if made.cycles is None or tpu not in CLOCKS:
        return None
    return sum(
        max(step.bundles / CLOCKS[tpu], step.hbm / BANDWIDTHS[tpu]) * step.times
        for step in made.steps
    )


def _estimated(made: Profile, tpu: str) -> Profile:
    model = MODELS.get(tpu)
    if model is None:
        return dataclasses.replace(
            made,
            unknown=f"no estimate of seconds: no measured times of a {tpu} to fit and to check",
        )
    times = [(step_seconds(model, step), step.times) for step in made.steps]
    computing = sum(pair[0] * count for pair, count in times)
    copying = sum(pair[1] * count for pair, count in times)
    total = model.launch + sum(max(pair) * count for pair, count in times)
    bound = "copies (HBM)" if copying > computing else "compute"
    if computing > copying:
        why = (
            "no estimate of seconds: it is bound by compute, and too few such kernels were measured"
        )
        return dataclasses.replace(made, bound=bound, unknown=why)
    return dataclasses.replace(made, bound=bound, seconds=total, error=model.error)
