"""The passes: each makes a Program that does the same with less.

They can be left out by name, so that a wrong result can be bisected to one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

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

# In this order: what is folded leaves much dead, where JAX has already removed what was; a load is
# a view only where no later pass moves it or uses it for longer.
PIPELINE: tuple[tuple[str, Pass], ...] = (
    ("constant_folding", fold_constants),
    ("dead_code", remove_dead_code),
    ("common_subexpressions", share_common_subexpressions),
    ("floor_division", FloorDivision.run),
    ("gather_to_slice", turn_gathers_into_slices),
    ("mask_narrowing", MaskNarrowing.run),
    ("movements", Movements.run),
    ("grid_batching", batch_grids),
    ("hoisting", hoist_invariants),
    ("store_forwarding", forward_stores),
    ("batching", batch),
    ("select_to_minmax", SelectToMinMax.run),
    ("copy_elision", elide_copies),
    ("dead_code", remove_dead_code),
    ("store_fusion", fuse_stores),
    ("strength_reduction", reduce_strength),
    ("in_place_recurrences", compute_recurrences_in_place),
    ("in_place", write_in_place),
)

# Code generation makes no Program of a Program, and so has its place in execute.py; it can be left
# out as the others can.
NAMES = frozenset(name for name, _ in PIPELINE) | {"codegen"}


def optimise(program: Program, skip: Collection[str] = frozenset()) -> Program:
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
    for name, run in PIPELINE:
        if name not in skip:
            program = run(program)
    return program
