"""Random kernels whose devices talk: right by construction, or with one fault.

What a right one computes is computed beside it by NumPy, since JAX's interpreter hangs on some. In
each round a device sends a part of a buffer to the device that a permutation says, once that one
has said that its buffer is free. Each round has semaphores of its own.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractMesh, PartitionSpec

from pallas_shim.evaluator import schedules
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.machine import order
from pallas_shim.evaluator.machine.clocks import Clocks
from pallas_shim.evaluator.machine.scheduler import Deadlock
from tests.fuzz.operations import USUAL, Choices

_ROWS, _COLUMNS = 4, 8
_BUFFERS = 3
MESH = pl.DeviceIdType.MESH
_signal = getattr(pl, "semaphore_signal", None) or pltpu.semaphore_signal
_wait = getattr(pl, "semaphore_wait", None) or pltpu.semaphore_wait

# What may be wrong with one round of a kernel. The last ones end in a deadlock.
RACES = ("reads before the copy is there", "changes what is sent", "sends without asking")
DEADLOCKS = ("nobody says that it is free", "nobody sends", "waits for one more")


@dataclasses.dataclass(frozen=True)
class _Round:
    """``to(me, n)``: the device to which each sends the rows of ``source`` to those of ``target``.
    ``before``, ``beside`` and ``after``: what each computes before it, while the copy is under way,
    and afterwards."""

    to: Callable[[Any, int], Any]
    back: Callable[[Any, int], Any]
    source: int
    target: int
    rows: tuple[slice, slice]
    before: Sequence[Any]
    beside: Sequence[Any]
    after: Sequence[Any]


class Talking(Choices):
    """A random kernel on some devices. ``expected()``: what it computes; None: it ends in a
    deadlock."""

    rtol = None
    faults: tuple[str | None, ...] = (None, None, None, *DEADLOCKS)

    def __init__(self, source: random.Random):
        super().__init__(source, USUAL)
        self.count = self.number(2, 4)
        self.rounds = [self._round() for _ in range(self.number(1, 3))]
        self.fault = self.one(self.faults)
        self.at = self.number(0, len(self.rounds) - 1)
        self.together = bool(self.number(0, 1))
        rng = np.random.default_rng(self.number(0, 1 << 16))
        shape = (self.count * _ROWS, _COLUMNS)
        self.args = [rng.integers(-9, 10, shape).astype(np.int32)]
        self.function = self._on_mesh

    def _round(self) -> _Round:
        shift = self.number(0, self.count - 1)
        if self.number(0, 1):
            to = back = _reflection(shift)
        else:
            to, back = _rotation(shift), _rotation(-shift)
        source = self.number(0, _BUFFERS - 1)
        target = (source + self.number(1, _BUFFERS - 1)) % _BUFFERS
        length = self.number(1, _ROWS)
        starts = [self.number(0, _ROWS - length) for _ in range(2)]
        rows = tuple(slice(start, start + length) for start in starts)
        others = [b for b in range(_BUFFERS) if b not in (source, target)]
        return _Round(
            to, back, source, target, (rows[0], rows[1]), self._steps(range(_BUFFERS)),
            self._steps(others), self._steps(range(_BUFFERS)),
        )  # fmt: skip

    def _steps(self, buffers: Sequence[int]) -> list[tuple[int, int, int, int]]:
        """Each sets a buffer to another, times a number, plus the device's number times another."""
        return [
            (self.one(buffers), self.one(buffers), self.number(-2, 3), self.number(0, 3))
            for _ in range(self.number(0, 2))
        ]

    # -- the kernel ---------------------------------------------------------------------------

    def _on_mesh(self, x: Any) -> Any:
        n = len(self.rounds)
        dma = pltpu.SemaphoreType.DMA((n,))
        vmem = pltpu.VMEM((_ROWS, _COLUMNS), jnp.int32)
        whole = pl.BlockSpec(memory_space=pltpu.VMEM)
        run = pl.pallas_call(
            self._kernel, out_shape=jax.ShapeDtypeStruct((_ROWS, _COLUMNS), jnp.int32),
            in_specs=[whole], out_specs=whole,
            scratch_shapes=[vmem] * _BUFFERS + [dma, dma, pltpu.SemaphoreType.REGULAR((n,))],
            compiler_params=pltpu.CompilerParams(collective_id=0),
        )  # fmt: skip
        mesh = AbstractMesh((self.count,), ("x",))
        spec = PartitionSpec("x")
        kwargs: dict[str, Any] = {"mesh": mesh, "in_specs": spec, "out_specs": spec}
        return jax.shard_map(run, check_vma=False, **kwargs)(x)

    def _kernel(self, x_ref: Any, o_ref: Any, *scratch: Any) -> None:
        buffers, (sent, received, free) = scratch[:_BUFFERS], scratch[_BUFFERS:]
        me = lax.axis_index("x")
        for number, buffer in enumerate(buffers):
            buffer[...] = x_ref[...] + number
        for number, each in enumerate(self.rounds):
            fault = self.fault if number == self.at else None
            self._compute(each.before, buffers, me)
            copy = pltpu.make_async_remote_copy(
                buffers[each.source].at[each.rows[0]], buffers[each.target].at[each.rows[1]],
                sent.at[number], received.at[number],
                device_id={"x": each.to(me, self.count)}, device_id_type=MESH,
            )  # fmt: skip
            if fault not in ("sends without asking", "nobody says that it is free"):
                back = {"x": each.back(me, self.count)}
                _signal(free.at[number], 1, device_id=back, device_id_type=MESH)
            if fault != "sends without asking":
                _wait(free.at[number], 2 if fault == "waits for one more" else 1)
            if fault != "nobody sends":
                copy.start()
            self._compute(each.beside, buffers, me)
            if fault == "reads before the copy is there":
                self._compute(((each.source, each.target, 1, 0),), buffers, me)
            if fault == "changes what is sent":
                self._compute(((each.source, each.source, 2, 1),), buffers, me)
            if self.together:
                copy.wait()
            else:
                copy.wait_recv()
                copy.wait_send()
            self._compute(each.after, buffers, me)
        o_ref[...] = sum(buffer[...] * (number + 1) for number, buffer in enumerate(buffers))

    @staticmethod
    def _compute(steps: Sequence[Any], buffers: Sequence[Any], me: Any) -> None:
        for to, of, factor, offset in steps:
            buffers[to][...] = buffers[of][...] * factor + me * offset

    # -- what it computes -----------------------------------------------------------------------

    def expected(self) -> list[np.ndarray] | None:
        if self.fault in DEADLOCKS:
            return None
        n = self.count
        (x,) = self.args
        held = [[part + np.int32(b) for b in range(_BUFFERS)] for part in np.split(x, n)]
        for each in self.rounds:
            for me in range(n):
                self._compute(each.before, held[me], me)
            parts = [held[me][each.source][each.rows[0]].copy() for me in range(n)]
            for me in range(n):
                self._compute(each.beside, held[me], me)
                held[each.to(me, n)][each.target][each.rows[1]] = parts[me]
            for me in range(n):
                self._compute(each.after, held[me], me)
        return [np.concatenate([sum(b * (i + 1) for i, b in enumerate(of)) for of in held])]

    def more(self, jaxpr: Any) -> None:
        """That it computes the same, or waits for ever, in any order; and that no race is seen."""
        timed = Executable(lower(jaxpr, timed=True), lambda loop: False)
        if self.fault is not None:
            for each in (order.LATE, *map(order.Order, range(3))):
                assert deadlocks(timed, self.args, each), f"no deadlock in the order {each}"
            return
        explored = schedules.explore(timed, self.args, 8, self.number(0, 1 << 16))
        assert explored.other is None, explored
        assert not watched(timed, self.args)


class Racing(Talking):
    """A random kernel with a race, perhaps: if orders differ, the clocks have to see why."""

    faults = RACES

    def expected(self) -> list[np.ndarray] | None:
        return []

    def more(self, jaxpr: Any) -> None:
        timed = Executable(lower(jaxpr, timed=True), lambda loop: False)
        explored = schedules.explore(timed, self.args, 16, self.number(0, 1 << 16))
        found = watched(timed, self.args)
        if explored.other is not None:
            assert found, f"nothing is seen of the race that makes {explored.difference}"
        assert all(finding.kind == "races" for finding in found), found


def watched(timed: Executable, args: Sequence[np.ndarray]) -> list[Any]:
    found: list[Any] = []
    with order.running(order.OWN_ORDER, Clocks(found.append)):
        timed(*args)
    return found


def deadlocks(executable: Executable, args: Sequence[np.ndarray], in_order: order.Order) -> bool:
    try:
        with order.running(in_order):
            executable(*args)
    except Deadlock as deadlock:
        return "device" in str(deadlock)
    return False


def _rotation(shift: int) -> Callable[[Any, int], Any]:
    return lambda me, n: (me + shift + n) % n


def _reflection(shift: int) -> Callable[[Any, int], Any]:
    return lambda me, n: (shift - me + n) % n
