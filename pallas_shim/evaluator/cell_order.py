"""The order of a grid's cells, and the cores that run them, as ``InterpretParams`` asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.program import PURE, ArrayType, Effects, Value
from pallas_shim.jax_compat.pallas import PallasCall

if TYPE_CHECKING:
    from pallas_shim.evaluator.lower import Lowering


class CellOrder:
    """The cells' indices, given how often each axis of the grid has turned: ``turn`` for the cell
    that is being lowered.

    Several cores take turns, so only scratch memory tells them from one: each finds its own as it
    was before the kernel.
    """

    def __init__(self, lowering: Lowering, call: PallasCall, sizes: Sequence[Value]) -> None:
        self.lowering, self.call, self.sizes = lowering, call, sizes
        self.turn: Sequence[Value] = ()

    def enter(self, turn: Sequence[Value]) -> list[Value]:
        """The indices of the cell that is lowered from here on."""
        self.turn = turn
        return self.indices(turn)

    def indices(self, counters: Sequence[Value]) -> list[Value]:
        order = self.call.order
        if order is None:
            return list(counters)
        return [
            counter if permutation is None else self._looked_up(permutation, counter)
            for permutation, counter in zip(order.permutations, counters, strict=True)
        ]

    def _looked_up(self, permutation: tuple[int, ...], counter: Value) -> Value:
        table = np.array(permutation, np.int32)
        if counter.const is not None:
            return self.lowering.const(table[int(counter.const)])
        type = ArrayType((), table.dtype)
        (index,) = self.lowering.memory(
            "index_of_cell", [counter], [type], lambda at: table[at], PURE, key=permutation
        )
        return index

    def begin(self, scratch: Sequence[Value]) -> None:
        """Gives each core scratch memory of its own, where its first cell begins."""
        order = self.call.order
        if order is None or order.cores == 1 or not scratch:
            return
        bounds = [int(s.const) for s in self.sizes[: order.parallel] if s.const is not None]
        share = -(-math.prod(bounds) // order.cores)
        fills = [
            memory.initial(ref.ref.space, ref.ref.dtype, self.call.checked) for ref in scratch
        ]
        count, parallel = len(self.turn), order.parallel

        def renew(*values: Any) -> tuple[()]:
            cell = 0
            for size, counter in zip(bounds, values[:parallel], strict=True):
                cell = cell * size + int(counter)
            if cell % share == 0 and not any(values[parallel:count]):
                for ref, fill in zip(values[count:], fills, strict=True):
                    ref[...] = fill
            return ()

        places = tuple(range(count, count + len(scratch)))
        self.lowering.memory(
            "renew_scratch", [*self.turn, *scratch], [], renew, Effects(places, places)
        )
