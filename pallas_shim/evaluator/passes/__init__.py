"""The passes: each makes a Program that does the same with less.

They can be left out by name, so that a wrong result can be bisected to one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from pallas_shim.evaluator.passes.batching import batch
from pallas_shim.evaluator.passes.carried_rows import compute_in_rows
from pallas_shim.evaluator.passes.common_subexpressions import share_common_subexpressions
from pallas_shim.evaluator.passes.constant_folding import fold_constants
from pallas_shim.evaluator.passes.dead_code import remove_dead_code
from pallas_shim.evaluator.passes.direct_stores import store_directly
from pallas_shim.evaluator.passes.extrema import Extrema
from pallas_shim.evaluator.passes.floor_division import FloorDivision
from pallas_shim.evaluator.passes.grid_batching import batch_grids
from pallas_shim.evaluator.passes.hoisting import hoist_invariants
from pallas_shim.evaluator.passes.in_place import write_in_place
from pallas_shim.evaluator.passes.index_arrays import slice_index_arrays
from pallas_shim.evaluator.passes.load_views import view_loads
from pallas_shim.evaluator.passes.movements import Movements
from pallas_shim.evaluator.passes.store_forwarding import forward_stores
from pallas_shim.evaluator.passes.truth_values import TruthValues
from pallas_shim.evaluator.passes.walks import walk_along_loops
from pallas_shim.evaluator.program import Program

Pass = Callable[[Program], Program]

# In this order: what is folded leaves much dead, where JAX has already removed what was; a load is
# a view only where no later pass moves it or uses it for longer.
PIPELINE: tuple[tuple[str, Pass], ...] = (
    ("constant_folding", fold_constants),
    ("dead_code", remove_dead_code),
    ("common_subexpressions", share_common_subexpressions),
    ("floor_division", FloorDivision.run),
    ("index_arrays", slice_index_arrays),
    ("truth_values", TruthValues.run),
    ("movements", Movements.run),
    ("grid_batching", batch_grids),
    ("hoisting", hoist_invariants),
    ("store_forwarding", forward_stores),
    ("batching", batch),
    ("extrema", Extrema.run),
    ("load_views", view_loads),
    ("dead_code", remove_dead_code),
    ("direct_stores", store_directly),
    ("walks", walk_along_loops),
    ("carried_rows", compute_in_rows),
    ("in_place", write_in_place),
)

# Emission makes no Program of a Program, and so has its place in execute.py; it can be left out
# as the others can.
NAMES = frozenset(name for name, _ in PIPELINE) | {"emission"}


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
