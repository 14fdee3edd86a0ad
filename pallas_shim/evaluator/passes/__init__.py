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
from pallas_shim.evaluator.passes.from_end import FromEnd
from pallas_shim.evaluator.passes.gather_to_slice import (
    remove_what_gathers_used,
    turn_gathers_into_slices,
)
from pallas_shim.evaluator.passes.grid.grid_batching import batch_grids
from pallas_shim.evaluator.passes.grid.loop_distribution import distribute_loops
from pallas_shim.evaluator.passes.hoisting import hoist_invariants
from pallas_shim.evaluator.passes.in_place import write_in_place
from pallas_shim.evaluator.passes.in_place_recurrences import compute_recurrences_in_place
from pallas_shim.evaluator.passes.mask_narrowing import MaskNarrowing
from pallas_shim.evaluator.passes.movements import Movements
from pallas_shim.evaluator.passes.narrow_products import NarrowProducts
from pallas_shim.evaluator.passes.one_hot import OneHot
from pallas_shim.evaluator.passes.select_to_minmax import SelectToMinMax
from pallas_shim.evaluator.passes.store_forwarding import forward_stores
from pallas_shim.evaluator.passes.store_fusion import fuse_stores
from pallas_shim.evaluator.passes.strength_reduction import reduce_strength
from pallas_shim.evaluator.passes.sums_of_products import sum_products
from pallas_shim.evaluator.passes.wide_products import WideProducts
from pallas_shim.evaluator.program import Program

Pass = Callable[[Program], Program]

# The comments argue for the order. They say what each pass needs from earlier passes, what it
# makes, and what later passes may no longer assume.
PIPELINE: tuple[tuple[str, Pass], ...] = (
    # Needs: nothing. Makes: constants of known values; branches taken and loops of one round become
    # inline code. After it: later passes may assume all they could before.
    ("constant_folding", fold_constants),
    # Needs: folding, which leaves instructions without a use. Makes: a smaller program.
    ("dead_code", remove_dead_code),
    # Needs: no dead values, since they would keep others. Makes: one Value of equal values, so that
    # later passes compare by `is`. After it: a value may be used in regions inside its own.
    ("common_subexpressions", share_common_subexpressions),
    # Needs: equal operands are one Value. Makes: `floor_divide` and `floor_remainder`, which aren't
    # JAX primitives. After it: divisions by known numbers no longer look like jnp's composition.
    ("floor_division", FloorDivision.run),
    # Needs: equal operands are one Value. Makes: `mulhi`, and products of whole words.
    ("wide_products", WideProducts.run),
    # Needs: widened operands and their products in one chain of values, which batching over cells
    # cuts by stacks. Makes: products of operands as narrow as they were.
    ("narrow_products", NarrowProducts.run),
    # Needs: known sizes of grids and loops; gathers and scatters with whole loads and stores beside
    # them. Makes: loads and stores of slices at a scalar plus a number, and constant masks.
    ("gather_to_slice", turn_gathers_into_slices),
    # Needs: constant masks are constants. Makes: booleans instead of integers and floats that are 0
    # or 1. After it: there is one more reduction, `count`.
    ("mask_narrowing", MaskNarrowing.run),
    # Needs: constant indices and masks. Makes: `take` and `join` of gathers, rolls, slices and
    # selects. After it: these two aren't JAX primitives.
    ("movements", Movements.run),
    # Needs: gathers that became slices. Makes: a program without the loads of whole buffers that
    # they leave unused, with which no cells could be proven independent.
    ("dead_code", remove_what_gathers_used),
    # Needs: each access has its ref, path and block, and only loads and stores touch memory. Makes:
    # stacks over cells, grids with fewer axes or none, `blocks`, `lookup`, `each_*`, `accumulate`.
    # After it: a ref may be a list of views, scratch may have axes in front, and the instructions
    # of a cell are no longer in one region.
    ("grid_batching", batch_grids),
    # Needs: grid batching is done, which runs loops of many cells together where it can. Makes:
    # what grid batching makes, and buffers that start unfilled (`unfilled`). It doesn't serve
    # native code, which computes all of a round at once.
    ("loop_distribution", distribute_loops),
    # Needs: final loops and grids, since cells can't batch an instruction that left its grid.
    # Makes: invariants before their loops. After it: a value may be live through a loop.
    ("hoisting", hoist_invariants),
    # Needs: an address that doesn't change in a loop is one Value outside it. Makes: stored values
    # instead of loads.
    ("store_forwarding", forward_stores),
    # Needs: chains from value to value, without memory between. Makes: one operation on a stack of
    # many. After it: pure instructions are in another order, and an operand may be part of a stack.
    ("batching", batch),
    # Needs: grid batching and batching are done, which have no rules for what it makes. Makes:
    # `gather_from_end`, which isn't a JAX primitive.
    ("from_end", FromEnd.run),
    # Needs: grid batching and batching are done, which have no rules for what it makes. Makes:
    # `first_true`, `one_hot_get` and `one_hot_set`, which aren't JAX primitives.
    ("one_hot", OneHot.run),
    # Needs: batching is done, since a select batches with others and an extremum wouldn't. Makes:
    # `min` and `max` of selects.
    ("select_to_minmax", SelectToMinMax.run),
    # Needs: no later pass moves an instruction past a write. Makes: loads that are views of memory.
    # After it: the value of a load changes with the memory. So no pass may add a use after its last
    # use, nor a write to that memory before it.
    ("copy_elision", elide_copies),
    # Needs: nothing. Makes: a program without what batching and forwarding left unused.
    ("dead_code", remove_dead_code),
    # Needs: sums that grid batching has written out, without the stores that nobody reads. It moves
    # products, but not past a write. Makes: `sum_of_products`, which isn't a JAX primitive.
    ("sums_of_products", sum_products),
    # Needs: loads that are views, since only their lifetimes are known. Makes: elementwise
    # operations and sums of products that write to memory (`direct`), and buffers that start
    # unfilled (`unfilled`). After it: an elementwise operation may have an effect and no result.
    ("store_fusion", fuse_stores),
    # Needs: loads and stores in their final form. Makes: `rows` before a scan, which then takes
    # refs beside arrays. After it: the place of such a row is unknown, and a counter may be gone.
    ("strength_reduction", reduce_strength),
    # Needs: rows. Makes: carried values that lie in rows. After it: a carried value may be memory.
    ("in_place_recurrences", compute_recurrences_in_place),
    # Needs: final last uses, so it comes last. Makes: results that are written over operands
    # without a further use (`into`). After it: a value's array may hold another value.
    ("in_place", write_in_place),
)

# Code generation doesn't return a Program, so execute.py calls it. It can be left out like a pass.
NAMES = frozenset(name for name, _ in PIPELINE) | {"codegen"}


class Watcher(Protocol):
    """Sees the programs of a pipeline: the one from lowering, and the one after each pass."""

    def program(self, program: Program, after: str) -> None: ...


# Makes a watcher for each pipeline, beside those passed to `optimise`. The tests set it.
watch_all: Callable[[], Watcher] | None = None


def optimise(
    program: Program, skip: Collection[str] = frozenset(), watchers: Collection[Watcher] = ()
) -> Program:
    """Runs the pipeline, without the passes named in ``skip``.

    Raises:
      ValueError: ``skip`` has a name that no pass has.
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
