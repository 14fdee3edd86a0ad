"""The passes. Each turns a Program into one that does the same with less.

Each can be left out by name, so that a wrong result can be bisected to one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from pallas_shim.evaluator.passes.batching import batch
from pallas_shim.evaluator.passes.common_subexpressions import share_common_subexpressions
from pallas_shim.evaluator.passes.constant_folding import fold_constants
from pallas_shim.evaluator.passes.copy_elision import elide_copies
from pallas_shim.evaluator.passes.dead_code import remove_dead_code
from pallas_shim.evaluator.passes.floor_division import FloorDivision
from pallas_shim.evaluator.passes.gather_to_slice import turn_gathers_into_slices
from pallas_shim.evaluator.passes.grid.grid_batching import batch_grids
from pallas_shim.evaluator.passes.hoisting import hoist_invariants
from pallas_shim.evaluator.passes.in_place import write_in_place
from pallas_shim.evaluator.passes.in_place_recurrences import compute_recurrences_in_place
from pallas_shim.evaluator.passes.mask_narrowing import MaskNarrowing
from pallas_shim.evaluator.passes.movements import Movements
from pallas_shim.evaluator.passes.select_to_minmax import SelectToMinMax
from pallas_shim.evaluator.passes.store_forwarding import forward_stores
from pallas_shim.evaluator.passes.store_fusion import fuse_stores
from pallas_shim.evaluator.passes.strength_reduction import reduce_strength
from pallas_shim.evaluator.program import Program

Pass = Callable[[Program], Program]

# The order is an argument. Of each pass it is said what it needs of those before it, what it makes
# of the program, and what those after it may no longer take for granted.
PIPELINE: tuple[tuple[str, Pass], ...] = (
    # Needs: nothing. Makes: constants of all that is known, branches taken and loops of one round
    # inline. After it: nothing changes for others.
    ("constant_folding", fold_constants),
    # Needs: what folding left without a use. Makes: less of the same.
    ("dead_code", remove_dead_code),
    # Needs: no dead values, which would keep others. Makes: equal values one Value, so that later
    # passes compare by `is`. After it: a value may be used in regions inside its own.
    ("common_subexpressions", share_common_subexpressions),
    # Needs: equal operands are one Value. Makes: `floor_divide` and `floor_remainder`, which no JAX
    # primitive is. After it: divisions by known numbers aren't jnp's composition any more.
    ("floor_division", FloorDivision.run),
    # Needs: known sizes of grids and loops, and whole loads and stores beside the gathers and
    # scatters. Makes: loads and stores of slices at a scalar plus a number, and masks constant.
    ("gather_to_slice", turn_gathers_into_slices),
    # Needs: what masks are constant is so. Makes: booleans in the place of integers and floats that
    # are 0 or 1. After it: `count` is one more reduction.
    ("mask_narrowing", MaskNarrowing.run),
    # Needs: constant indices and masks. Makes: `take` and `join` of gathers, rolls, slices and
    # choices. After it: these two have no JAX primitive behind them.
    ("movements", Movements.run),
    # Needs: every access by its ref, path and block, and memory that only loads and stores touch.
    # Makes: stacks over cells, grids with fewer axes or none, `blocks`, `lookup`, `each_*`,
    # `accumulate`. After it: a ref may be a list of views, scratch may have axes in front, and
    # what a cell does is no longer in one region.
    ("grid_batching", batch_grids),
    # Needs: loops and grids as they stay, since what leaves one is out of reach of batching by
    # cells. Makes: invariants before their loops. After it: a value may be live through a loop.
    ("hoisting", hoist_invariants),
    # Needs: addresses that don't change in a loop are one Value outside it. Makes: stored values in
    # the place of loads.
    ("store_forwarding", forward_stores),
    # Needs: chains from value to value, without memory between. Makes: one operation on a stack
    # of many. After it: what is pure is in another order, and an operand may be part of a stack.
    ("batching", batch),
    # Needs: batches made, since a choice batches with others and an extremum wouldn't. Makes: `min`
    # and `max` of selects.
    ("select_to_minmax", SelectToMinMax.run),
    # Needs: no pass after it moves an instruction past a write. Makes: loads that are views of
    # memory. After it: the value of a load changes with the memory, so that it may be used no
    # later than the last use that there is, and nothing may write there before that.
    ("copy_elision", elide_copies),
    # Needs: nothing. Makes: what batching and forwarding left unused is gone.
    ("dead_code", remove_dead_code),
    # Needs: loads that are views, since only of those it is known how long they hold. Makes:
    # elementwise operations that write to memory (`direct`), buffers that start unfilled (`empty`).
    # After it: an elementwise operation may have an effect and no result.
    ("store_fusion", fuse_stores),
    # Needs: loads and stores in their last form. Makes: `rows` before a scan, which takes refs
    # beside arrays. After it: where such a row lies is told nowhere, and a counter may be gone.
    ("strength_reduction", reduce_strength),
    # Needs: rows. Makes: what a loop carries in its rows. After it: a carried value may be memory.
    ("in_place_recurrences", compute_recurrences_in_place),
    # Needs: last uses that stay the last, so it is itself last. Makes: results over operands that
    # are used no more (`into`). After it: a value's array may hold another value.
    ("in_place", write_in_place),
)

# Code generation makes no Program of a Program, and so has its place in execute.py; it can be left
# out as the others can.
NAMES = frozenset(name for name, _ in PIPELINE) | {"codegen"}


class Watcher(Protocol):
    """Sees the programs of a pipeline: the one that lowering made, and that of each pass."""

    def program(self, program: Program, after: str) -> None: ...


# What makes a watcher for each pipeline, beside those that are given: the tests set it.
watch_all: Callable[[], Watcher] | None = None


def optimise(
    program: Program, skip: Collection[str] = frozenset(), watchers: Collection[Watcher] = ()
) -> Program:
    """Runs the pipeline, but for the passes named in ``skip``.

    Raises:
      ValueError: there is no pass of some name in ``skip``.
    """
    unknown = set(skip) - NAMES
    if unknown:
        raise ValueError(
            f"there is no pass named {', '.join(sorted(unknown))}; "
            f"the passes are {', '.join(sorted(NAMES))}"
        )
    if watch_all is not None:
        watchers = (watch_all(), *watchers)
    for watcher in watchers:
        watcher.program(program, "lowering")
    for name, run in PIPELINE:
        if name not in skip:
            program = run(program)
            for watcher in watchers:
                watcher.program(program, name)
    return program
