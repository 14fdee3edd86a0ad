"""How fast a TPU is, as far as that is published or was measured, and how wrong that may be."""

from __future__ import annotations

from typing import NamedTuple

from pallas_shim.chip.copies import Rates


class Model(NamedTuple):
    """What turns cycles into seconds. ``clock``: cycles a second. ``bandwidth``: bytes a second
    from and to HBM. ``latency``: the seconds that a copy takes beside its bytes; ``start``: those
    for which it occupies the engine beside its bytes. ``launch``: once a call.

    ``copying`` and ``computing`` say how far estimates were from a real chip's times, for kernels
    that are bound by copies and by compute. None: too few were measured, so none is given.
    ``mostly_kernels`` and ``mixed`` say it for whole functions: of those in which kernels take
    nearly all of the time, and of the others.
    """

    clock: float
    bandwidth: float
    latency: float
    start: float
    launch: float
    copying: str | None
    computing: str | None
    mostly_kernels: str
    mixed: str


# Bandwidth, latency and start are fitted to five kernels of the public record (docs/chip.md), and
# the errors are those of its others, of both models. Other TPUs have no measured times to fit, so
# they get no estimate.
MODELS = {
    "v6e": Model(
        clock=1.755e9,
        bandwidth=1.3e12,
        latency=500e-9,
        start=80e-9,
        launch=0.12e-3,
        copying="of 30 other measured kernels that are bound by copies, 29 were estimated within "
        "15% of a real v6e's time, and one within 16%, if operands lie in HBM as here",
        computing="of only four measured kernels that are bound by compute, one was estimated at "
        "0.65 times a real v6e's time, and one each at 0.73, 0.91 and 1.2 times",
        mostly_kernels="of 34 measured functions in which XLA's operations take less than an "
        "eighth of the kernels' time, 30 were estimated within 15% of a real v6e's time, and the "
        "worst at 0.65 times",
        mixed="of 31 measured functions in which XLA's operations take more, the mean error was a "
        "factor of 1.15, and the worst 1.72",
    )
}

# The clocks follow from the FLOP/s that are published for one matrix unit.
CLOCKS = {"v5e": 1.50e9, "v5p": 1.75e9, "v6e": 1.755e9, "v7x": 2.20e9}
# Bytes a second, and operations of bfloat16 a second, of a core, as published.
BANDWIDTHS = {"v5e": 0.82e12, "v5p": 1.23e12, "v6e": 1.64e12, "v7x": 3.70e12}
PEAKS = {"v5e": 197e12, "v5p": 229e12, "v6e": 918e12, "v7x": 1153e12}


def clock(tpu: str) -> float | None:
    """Cycles a second, if they are known."""
    return CLOCKS.get(tpu)


def rates(tpu: str) -> Rates:
    """The pace of copies in cycles: as measured, or at the published bandwidth without any
    latency, or, if nothing is known, at once."""
    model = MODELS.get(tpu)
    if model is not None:
        return Rates(
            model.bandwidth / model.clock, model.latency * model.clock, model.start * model.clock
        )
    if tpu in CLOCKS:
        return Rates(BANDWIDTHS[tpu] / CLOCKS[tpu], 0.0, 0.0)
    return Rates(float("inf"), 0.0, 0.0)
