"""The order of a grid's cells, and the cores that run them, as `PallasCall.order` says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.machine import programs
from pallas_shim.evaluator.machine.programs import NUMBER
from pallas_shim.evaluator.program import PURE, Effects, Instruction, Value
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.jax_compat.pallas import PallasCall

if TYPE_CHECKING:  # lower is in a higher layer
    from pallas_shim.evaluator.lower import Lowering

# The axis of the cores that share a grid. No mesh has it.
CORE = "the core"


class CellOrder:
    """The cells' indices, given how often each loop of the grid has turned: ``turn`` for the cell
    that is being lowered.

    Cores that don't wait for one another take turns, so only their own memory tells them from one
    core. Their cells are in one loop (`begin`), or each core has a loop (`one_after_another`).
    Cores that wait are programs (`as_programs`). ``turns`` has the sizes of the loop that is being
    lowered.
    """

    def __init__(self, lowering: Lowering, call: PallasCall, sizes: Sequence[Value]) -> None:
        self.lowering, self.call, self.sizes = lowering, call, sizes
        self.turn: Sequence[Value] = ()
        self.turns = sizes
        self._core: Value | None = None
        order = call.order
        self._bounds = (
            [] if order is None
            else [int(s.const) for s in sizes[: order.parallel] if s.const is not None]
        )  # fmt: skip

    def enter(self, turn: Sequence[Value]) -> list[Value]:
        """The indices of the cell that is lowered from here on."""
        self.turn = turn
        return self.indices(turn)

    def indices(self, counters: Sequence[Value]) -> list[Value]:
        order = self.call.order
        if order is None:
            return list(counters)
        if self._core is not None:
            return [*self._in_part(counters[0]), *counters[1:]]
        return [
            counter if permutation is None else self._looked_up(np.array(permutation), counter)
            for permutation, counter in zip(order.permutations, counters, strict=True)
        ]

    def core(self) -> Value:
        """The core that runs the cell that is being lowered."""
        order = self.call.order
        if self._core is not None:
            return self._core
        if order is None or order.cores == 1:
            return self.lowering.const(np.int32(0))
        bounds, share = self._bounds, self._share()

        def core(*turn: Any) -> Any:
            return np.int32(np.ravel_multi_index(list(map(int, turn)), bounds) // share)

        (number,) = self.lowering.memory(
            "core_of_cell", self.turn[: order.parallel], [NUMBER], core, PURE
        )
        return number

    def _looked_up(self, numbers: np.ndarray, counter: Value) -> Value:
        table = numbers.astype(np.int32)
        if counter.const is not None:
            return self.lowering.const(table[int(counter.const)])
        (index,) = self.lowering.memory(
            "index_of_cell", [counter], [NUMBER], lambda at: table[at], PURE,
            key=tuple(table.tolist()),
        )  # fmt: skip
        return index

    # -- one loop for all cores -----------------------------------------------------------------

    def begin(self, scratch: Sequence[Value]) -> None:
        """Gives each core scratch memory of its own, where its first cell begins."""
        order = self.call.order
        if order is None or order.cores == 1 or not scratch or self._core is not None:
            return
        bounds, share = self._bounds, self._share()
        fills = self._fills(scratch)
        count, parallel = len(self.turn), order.parallel

        def renew(*values: Any) -> tuple[()]:
            cell = 0
            for size, counter in zip(bounds, values[:parallel], strict=True):
                cell = cell * size + int(counter)
            if cell % share == 0 and not any(values[parallel:count]):
                for ref, fill in zip(values[count:], fills, strict=True):
                    ref[...] = fill
            return ()

        self._renew(self.turn, scratch, renew)

    def _renew(
        self, turn: Sequence[Value], scratch: Sequence[Value], renew: Callable[..., tuple[()]]
    ) -> None:
        places = tuple(range(len(turn), len(turn) + len(scratch)))
        self.lowering.memory(
            "renew_scratch", [*turn, *scratch], [], renew, Effects(places, places)
        )

    def _fills(self, scratch: Sequence[Value]) -> list[Any]:
        return [memory.initial(ref.ref.space, ref.ref.dtype, self.call.checked) for ref in scratch]

    def _share(self) -> int:
        """How many places along the parallel axes a core takes. The last one may find fewer."""
        assert self.call.order is not None
        return -(-math.prod(self._bounds) // self.call.order.cores)

    # -- a loop for each core ---------------------------------------------------------------------

    def has_loops(self, followed: bool) -> bool:
        """Whether each core has a loop. Not if the cells are ``followed``, or memory is checked:
        those who look at them are told of one loop."""
        order = self.call.order
        several = order is not None and order.cores > 1
        return several and not followed and self.call.checked is None

    def one_after_another(
        self, scratch: Sequence[Value], cells: Callable[[], list[Instruction]]
    ) -> list[Instruction]:
        """The cells of all cores, which don't wait for one another. ``cells`` makes one core's."""
        order = self.call.order
        assert order is not None
        made: list[Instruction] = []
        fills = self._fills(scratch)

        def renew(*refs: Any) -> tuple[()]:
            for ref, fill in zip(refs, fills, strict=True):
                ref[...] = fill
            return ()

        for core in range(min(order.cores, -(-math.prod(self._bounds) // self._share()))):
            if core and scratch:
                with self.lowering.block() as between:
                    self._renew((), scratch, renew)
                made += between
            self._enter_core(self.lowering.const(np.int32(core)))
            made += cells()
        return made

    def as_programs(self, part: Callable[[], None]) -> list[Instruction]:
        """The cells of all cores as programs, which may wait for one another. ``part`` emits one
        core's, with the core's own memory."""
        lowering, order = self.lowering, self.call.order
        assert order is not None
        if any(self.sizes[axis].const is None for axis in range(order.parallel)):
            raise Unsupported("pallas_call", "a dynamic parallel axis on several cores")
        machine = lowering.machine

        def core(_: Sequence[Value]) -> Sequence[Value]:
            self._enter_core(machine.levels[-1].indices[CORE])
            with machine.within(machine.kernel, machine.where, True):
                part()
            return ()

        names = [f"core {n}" for n in range(order.cores)]
        with lowering.block() as made:
            sizes = {CORE: order.cores}
            programs.emit_programs(lowering, "core", sizes, (), (), (), (), (), core, names)
        return made

    def _enter_core(self, core: Value) -> None:
        """Cells of this core are lowered from here on."""
        order = self.call.order
        assert order is not None
        total, share = math.prod(self._bounds), self._share()

        def of(core: Any) -> Any:
            return np.int32(max(0, min(share, total - int(core) * share)))

        if core.const is not None:
            count = self.lowering.const(of(core.const))
        elif total == share * order.cores:
            count = self.lowering.const(np.int32(share))
        else:
            (count,) = self.lowering.memory("cells_of_core", [core], [NUMBER], of, PURE)
        self._core = core
        self.turns = [count, *self.sizes[order.parallel :]]

    def _in_part(self, counter: Value) -> list[Value]:
        """The indices along the parallel axes, of a cell of the core's part of them."""
        order, lowering, core = self.call.order, self.lowering, self._core
        assert order is not None and core is not None
        place = counter
        if core.const is None:
            share = lowering.const(np.int32(self._share()))
            first = lowering.apply_one("mul", [core, share], NUMBER)
            place = lowering.apply_one("add", [counter, first], NUMBER)
        elif int(core.const):
            first = lowering.const(np.int32(int(core.const) * self._share()))
            place = lowering.apply_one("add", [counter, first], NUMBER)
        permutations = order.permutations[: order.parallel]
        long = [axis for axis, size in enumerate(self._bounds) if size > 1]
        if len(long) <= 1 and not any(permutations):
            zero = lowering.const(np.int32(0))
            return [place if axis in long else zero for axis in range(order.parallel)]
        indices = np.unravel_index(np.arange(math.prod(self._bounds)), self._bounds)
        return [
            self._looked_up(along if permuted is None else np.array(permuted)[along], place)
            for along, permuted in zip(indices, permutations, strict=True)
        ]
