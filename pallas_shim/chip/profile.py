"""Where a kernel's time goes on a TPU: its schedule, joined with how often each part of it runs."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

from pallas_shim.chip import bundles, issue, scalar_unit
from pallas_shim.chip.copies import LOCAL, Flight
from pallas_shim.chip.dumps import UnreadableDump
from pallas_shim.chip.jobs import Allocation
from pallas_shim.chip.model import BANDWIDTHS, CLOCKS, MODELS, PEAKS, Model, rates
from pallas_shim.chip.verdicts import Verdict

__all__ = ["MODELS", "Line", "Model", "Moved", "Profile", "lower_bound", "profile"]

NO_LINE = "no line"


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the user's source: the cycles in which its instructions were started (a cycle that
    starts several lines' is shared among them), those in which it waited for copies, and how many
    instructions each unit started for it."""

    line: str
    cycles: float
    waited: float = 0.0
    units: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Moved:
    """What was copied of one operand, in one direction: how often, and bytes together."""

    operand: str
    kind: str
    times: int
    size: int


@dataclasses.dataclass(frozen=True)
class Roofline:
    """A kernel's place under the roofs of its TPU. ``operations``: of floating-point numbers, in
    one call. ``size``: bytes copied from and to HBM. ``peak`` and ``bandwidth`` are published."""

    operations: int
    size: int
    peak: float
    bandwidth: float


@dataclasses.dataclass(frozen=True)
class Profile:
    """One kernel on one TPU.

    ``cycles``: bundles that run in one call. ``elapsed``: cycles that a call takes, with ``stalls``
    (bundles that wait for a busy unit) and ``waited`` (for copies); ``moving``: those in which
    copies move bytes. Beyond `MODELS` they are a lower bound. ``clock``: cycles a second.
    ``waiting``: when it waited for copies, the first times. ``names``: of operands and results.
    ``units``: by unit, the share of its capacity that is used. ``steps``, ``turns``, ``flights``:
    see `scalar_unit`. ``from_run``: the source lines whose branches a run in NumPy decided.
    ``checked``: what of this the run in NumPy confirms or contradicts. ``seconds``: an estimate,
    with its ``error``. ``unknown``: why what is missing is missing.
    """

    kernel: str
    source: str | None
    operands: str
    tpu: str
    bundles: int | None = None
    cycles: int | None = None
    elapsed: float | None = None
    stalls: float = 0.0
    waited: float = 0.0
    moving: float = 0.0
    clock: float | None = None
    units: dict[str, float] = dataclasses.field(default_factory=dict)
    lines: tuple[Line, ...] = ()
    copies: tuple[scalar_unit.Copy, ...] = ()
    moved: tuple[Moved, ...] = ()
    steps: tuple[scalar_unit.Step, ...] = ()
    turns: tuple[scalar_unit.Turn, ...] = ()
    flights: tuple[Flight, ...] = ()
    waiting: tuple[tuple[float, float], ...] = ()
    names: tuple[str, ...] = ()
    allocations: tuple[Allocation, ...] = ()
    vmem: int = 0
    roofline: Roofline | None = None
    from_run: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()
    bound: str | None = None
    seconds: float | None = None
    error: str | None = None
    unknown: str | None = None

    def row(self) -> dict[str, Any]:
        """The JSON form."""
        made = dataclasses.asdict(self)
        for name in ("copies", "steps", "turns", "flights"):
            made[name] = [each._asdict() for each in getattr(self, name)]
        return made


def profile(verdict: Verdict, executed: scalar_unit.Executed = scalar_unit.NOTHING) -> Profile:
    """Joins the schedule in a verdict with the scalar unit's program, and with what a run of the
    kernel in NumPy decided. Never raises because of the schedule's form."""
    answer, tpu = verdict.answer, verdict.tpu.name
    made = Profile(verdict.kernel, verdict.source, verdict.operands, verdict.target)
    made = dataclasses.replace(
        made, allocations=tuple(answer.allocations or ()), vmem=verdict.tpu.vmem,
        clock=CLOCKS.get(tpu),
    )  # fmt: skip
    files = answer.schedule
    if files is None:
        reason = answer.unread or f"{answer.outcome}: {answer.message}"
        return dataclasses.replace(made, unknown=reason)
    try:
        code = bundles.read(files)
        made = dataclasses.replace(made, bundles=len(code.bundles))
        ran = scalar_unit.run(code, tpu, rates(tpu), executed)
    except UnreadableDump as error:
        reason = f"no schedule with libtpu {answer.libtpu}: {error}"
        return dataclasses.replace(made, unknown=reason)
    except scalar_unit.Unknown as error:
        return dataclasses.replace(made, unknown=f"no times: {error}")
    made = dataclasses.replace(
        made, cycles=sum(ran.counts), elapsed=ran.cycles,
        stalls=sum(ran.busy) - sum(ran.counts), waited=sum(ran.waits.values()), moving=ran.moving,
        units=_units(code, ran, tpu), lines=_lines(code, ran),
        copies=tuple(ran.copies.values()), moved=_moved(ran, verdict.names),
        steps=tuple(ran.steps), turns=tuple(ran.turns), flights=tuple(ran.flights),
        waiting=tuple(ran.waiting), names=tuple(verdict.names),
        from_run=ran.from_run, checked=_checked(ran, executed),
        roofline=_roofline(verdict, ran, tpu),
    )  # fmt: skip
    made = dataclasses.replace(made, bound=_bound(made))
    return _estimated(made, tpu, verdict.devices)


def _units(code: bundles.Code, ran: scalar_unit.Run, tpu: str) -> dict[str, float]:
    """The use of each unit: cycles for which it is occupied, of all that it has."""
    cycles = max(sum(ran.busy), 1.0)
    used = dict.fromkeys(code.units, 0.0)
    for count, bundle in zip(ran.counts, code.bundles, strict=True):
        spent: dict[str, float] = {u: n for u, n in zip(used, bundle.uses, strict=True)}
        for unit, occupied in issue.by_unit(bundle, tpu).items():
            if unit in spent:
                spent[unit] = max(spent[unit], occupied)
        for unit, amount in spent.items():
            used[unit] += count * amount
    return {u: used[u] / (cycles * max(capacity, 1)) for u, capacity in code.units.items()}


def _lines(code: bundles.Code, ran: scalar_unit.Run) -> tuple[Line, ...]:
    cycles: collections.Counter[str] = collections.Counter()
    waited: collections.Counter[str] = collections.Counter()
    units: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for number, (count, spent, bundle) in enumerate(
        zip(ran.counts, ran.busy, code.bundles, strict=True)
    ):
        if not count:
            continue
        places = {i.line for i in bundle.instructions if i.line is not None} or {NO_LINE}
        for place in places:
            cycles[place] += spent / len(places)  # type: ignore[assignment]
        for instruction in bundle.instructions:
            units[instruction.line or NO_LINE][issue.unit(instruction)] += count
        if number in ran.waits:
            waits = [i.line for i in bundle.instructions if i.name.startswith("dma.done")]
            waited[waits[0] or NO_LINE] += ran.waits[number]  # type: ignore[assignment]
    return tuple(
        Line(line, round(spent, 1), round(waited[line], 1), dict(units[line]))
        for line, spent in sorted(cycles.items(), key=lambda each: -(each[1] + waited[each[0]]))
        if spent
    )


def _moved(ran: scalar_unit.Run, names: Sequence[str]) -> tuple[Moved, ...]:
    found: dict[tuple[str, str], Moved] = {}
    for copy in ran.copies.values():
        at, kind = copy.operand, copy.kind.removeprefix("dma.")
        name = "not known" if at is None else names[at] if at < len(names) else f"operand {at}"
        old = found.get((name, kind), Moved(name, kind, 0, 0))
        found[name, kind] = Moved(name, kind, old.times + copy.times, old.size + copy.size)
    return tuple(found.values())


def _checked(ran: scalar_unit.Run, executed: scalar_unit.Executed) -> tuple[str, ...]:
    """Where a run in NumPy copied or branched, too: whether as much, and alike."""
    here: collections.Counter[str] = collections.Counter()
    for copy in ran.copies.values():
        if copy.line is not None:
            here[copy.line] += copy.size
    said = []
    for line, (times, size) in executed.copies.items():
        if line not in here:
            continue
        if here[line] == size:
            said.append(f"{line}: {times} copies of {size:,} bytes, as in the run")
        else:
            said.append(f"{line}: {here[line]:,} bytes copied, but {size:,} in the run")
    for line, agreed in ran.agreed.items():
        count = len(executed.branches[line])
        said.append(f"{line}: {agreed} of {count} branches as in the run")
    return tuple(said)


def _roofline(verdict: Verdict, ran: scalar_unit.Run, tpu: str) -> Roofline | None:
    if verdict.operations is None or tpu not in PEAKS:
        return None
    size = sum(step.hbm * step.times for step in ran.steps)
    return Roofline(verdict.operations, size, PEAKS[tpu], BANDWIDTHS[tpu])


def _bound(made: Profile) -> str:
    """What most of the time is spent on."""
    assert made.elapsed is not None
    launch = MODELS[made.tpu].launch if made.tpu in MODELS else 0.0
    if made.clock is not None and launch * made.clock > made.elapsed:
        return "launch"
    if made.waited < 0.5 * made.elapsed:
        busiest = max(made.units, key=lambda unit: made.units[unit], default="")
        if not made.units or made.units[busiest] < 0.3:
            return "compute (latency of instructions)"
        return f"compute ({busiest})"
    return "HBM" if made.moving > 0.5 * made.elapsed else "DMA latency"


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


def _estimated(made: Profile, tpu: str, devices: int) -> Profile:
    def without(why: str) -> Profile:
        return dataclasses.replace(made, unknown=f"no estimate of seconds: {why}")

    model = MODELS.get(tpu)
    if model is None:
        return without(f"no measured times of a {tpu} to fit and to check")
    ends = {end for copy in made.copies for end in copy.kind.removeprefix("dma.").split("_to_")}
    if devices > 1 or not ends <= LOCAL:
        return without("it talks to other devices or cores, and no such kernel was measured")
    assert made.elapsed is not None and made.bound is not None
    error = model.computing if made.bound.startswith("compute") else model.copying
    if error is None:
        return without("it is bound by compute, and too few such kernels were measured")
    seconds = made.elapsed / model.clock + model.launch
    return dataclasses.replace(made, seconds=seconds, error=error)
