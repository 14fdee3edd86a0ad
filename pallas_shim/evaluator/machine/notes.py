"""Notes what the programs of a machine do, for those who watch for races.

A note is an operation without results. It tells the run's clocks what happens, if it has some.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator import memory
from pallas_shim.evaluator.machine import order
from pallas_shim.evaluator.machine.clocks import Clocks, Spot
from pallas_shim.evaluator.machine.operations import NOTE
from pallas_shim.evaluator.program import Effects, Value

if TYPE_CHECKING:
    from pallas_shim.evaluator.lower import Lowering


def note(
    lowering: Lowering, ins: Sequence[Value], tell: Callable[..., None], unseen: str | None = None
) -> None:
    """Emits a note to the run's clocks, if it has some: ``tell(clocks, program, spot, *values)``.

    Only what programs do in kernels that talk is noted. ``unseen``: what isn't, in words.
    """
    machine = lowering.machine
    if not (machine.timed and machine.talks):
        return
    level, depth = machine.levels[-1], len(machine.levels)
    source = lowering.source

    def line() -> str | None:
        where = jax_compat.user_source(source)
        return None if where is None else where.partition(" ")[0]

    spot = Spot(machine.kernel, machine.where or None, line, level.names)

    def run(number: Any, *values: Any) -> tuple[()]:
        clocks = order.current().watch
        if clocks is not None:
            tell(clocks, (depth, int(number)), spot, *values)
        return ()

    lowering.memory(
        NOTE, [level.number, *ins], [], run, Effects(io=True), params={"unseen": unseen}
    )


def note_cell(lowering: Lowering, indices: Sequence[Value]) -> None:
    """Notes that the program begins a cell of its kernel's grid."""
    if indices:
        note(
            lowering, indices,
            lambda clocks, program, spot, *cell: clocks.begin_cell(program, tuple(map(int, cell))),
        )  # fmt: skip


def note_touch(
    lowering: Lowering, ref: Value, path: memory.Path, leaves: Sequence[Value], writes: bool
) -> None:
    """Notes that the program, or the copy whose step this is, reads or writes memory."""
    view = memory.viewer(ref.type.shape, ref.type.dtype, path)
    name = lowering.names.get(ref)

    def touch(clocks: Clocks, program: Any, spot: Spot, ref: Any, *leaves: Any) -> None:
        clocks.touch(program, ref, view(ref, *leaves), writes, spot, name)

    note(lowering, [ref, *leaves], touch)


def note_elements(
    lowering: Lowering,
    ref: Value,
    leaves: Sequence[Value],
    find: Callable[[Sequence[Any]], np.ndarray],
    text: Callable[[Sequence[Any]], str],
    writes: bool,
) -> None:
    """Notes that the program reads or writes some elements of a ref. ``find`` gives their numbers,
    and ``text`` their indices, of the leaves."""
    name = lowering.names.get(ref)

    def touch(clocks: Clocks, program: Any, spot: Spot, ref: Any, *leaves: Any) -> None:
        clocks.touch(program, ref, ref, writes, spot, name, find(leaves), text(leaves))

    note(lowering, [ref, *leaves], touch)


def note_unseen(lowering: Lowering, what: str) -> None:
    """Notes that the clocks don't see an access."""
    note(lowering, (), lambda clocks, program, spot: None, what)


def note_count(
    lowering: Lowering,
    ref: Value,
    path: memory.Path,
    leaves: Sequence[Value],
    count: Value,
    change: Callable[..., None],
) -> None:
    """Notes that the program changes a semaphore: ``change(clocks, program, semaphore, count)``."""
    view = memory.viewer(ref.type.shape, ref.type.dtype, path)

    def tell(clocks: Clocks, program: Any, spot: Spot, ref: Any, count: Any, *leaves: Any) -> None:
        change(clocks, program, view(ref, *leaves), int(count))

    note(lowering, [ref, count, *leaves], tell)
