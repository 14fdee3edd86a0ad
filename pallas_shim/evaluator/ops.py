"""The contract of the IR: one row for each operation that lowering and the passes make.

Lowering rules, passes, codegen and the cache know operations and parameters by name. Only this file
defines the names, and `verify` checks every program against it. `row_of` finds the row of an
operation:

- an operation of our own has the row of its name in `ROWS`;
- an elementwise operation to which a pass has given a place for its result has the row `STORED` or
  `IN_PLACE`, whatever its name; so has a sum of products;
- any other name is a primitive with a rule, and has the row `PRIMITIVE`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pallas_shim.evaluator import op_types
from pallas_shim.evaluator.op_types import (
    AS_VIEW,
    BLOCK,
    DIRECT,
    INTO,
    PATH,
    UFUNC,
)
from pallas_shim.evaluator.program import (
    CELLS,
    PURE,
    Effects,
    Instruction,
    Operation,
)
from pallas_shim.jax_compat.callbacks import CALLBACK_PRIMITIVES

# -- parameters -------------------------------------------------------------------------------

# These operations, like the ufuncs, always return a new array.
MAKES_ARRAYS = frozenset({"concatenate", "convert_element_type", "dot_general", "join", "select_n",
                          "sum_of_products", "take"})  # fmt: skip


class Param(NamedTuple):
    """A parameter of an operation. It may be missing unless it is ``required``."""

    name: str
    meaning: str
    required: bool = True


_PATH = Param(PATH, "the `memory.Path` from the ref to what is read or written")
_BLOCK = Param(BLOCK, "where the block lies, as of `blocks.block_viewer`")
_LEADS = Param("leads", "for each operand the sizes of its axes in front, None if it has none")
_LISTED = Param("listed", "whether the ref is a list of views, as `each_block` makes it")
_CHECKED = (
    Param("checks", "what it checks or makes"),
    Param("of", "the `checks.lowering.Aspect` of memory without which it isn't needed, or None"),
    Param("place", "the `checks.place.Place` of an access, or None"),
)


# -- operands ---------------------------------------------------------------------------------


class Operand(NamedTuple):
    """An operand, or several of the same kind. ``kind``: "ref", "array" (a value that isn't a ref),
    or "index" (a scalar integer). ``number``: "one", "optional", or "any" number of operands."""

    name: str
    kind: str
    number: str = "one"


def _operands(text: str) -> tuple[Operand, ...]:
    """Parses ``"ref:ref value:array leaf:index*"`` into operands. ``?`` means optional, ``*`` any
    number."""
    found = []
    for word in text.split():
        name, _, kind = word.partition(":")
        number = {"?": "optional", "*": "any"}.get(kind[-1], "one")
        found.append(Operand(name, kind.rstrip("?*"), number))
    return tuple(found)


class Op(NamedTuple):
    """The row of an operation.

    Attributes:
      does: a description of the operation.
      operands, results: its operands and results, in order.
      params: its parameters. The rows of primitives don't list them, because they are JAX's own.
      effects: the effects that it may have. An operation has exactly one of these.
      sees: "read" or "written" if the operation may wait. Other programs may run while it waits, so
        it also reads, or reads and writes, the refs at the end of its operands.
      view: whether the result may share memory with the first operand. It shares with no other.
      makers, readers: the modules that make it, and the modules that look at its name or
        parameters. All other modules look only at its effects, types and ``view``.
      types: returns the error in the types and parameters of an operation. None if there is none.
      regions: returns the error in an instruction's regions. Only structured operations have
        regions, and they have no callable.
    """

    name: str
    does: str
    operands: tuple[Operand, ...]
    results: tuple[Operand, ...]
    makers: str
    readers: str = ""
    params: tuple[Param, ...] = ()
    effects: tuple[Effects, ...] = (PURE,)
    sees: str = ""
    view: bool = False
    types: Callable[[Operation], str | None] = lambda operation: None
    regions: Callable[[Instruction], str | None] | None = None


# -- the rows ---------------------------------------------------------------------------------

_READ, _WRITE = Effects(reads=(0,)), Effects(writes=(0,))
_UPDATE = Effects(reads=(0,), writes=(0,))
_NEW = Effects(allocates=True)
_IO = Effects(io=True)
# The last operands of an operation that may wait. Other programs may change them meanwhile.
_SEEN = "seen:ref*"


def _row(name: str, does: str, operands: str, results: str, makers: str, **rest: Any) -> Op:
    return Op(name, does, _operands(operands), _operands(results), makers, **rest)


_STRUCTURED_ROWS = (
    _row(
        "scan", "runs its region ``length`` times, with what it carries and a row of each ``x``",
        "carry_or_x:any*", "carry_or_y:array*",
        "rules/control, strength_reduction, vectorise_control, loop_distribution",
        readers="execute, codegen, and most passes", regions=op_types.scan_regions,
        params=(Param("length", "the number of rounds"),
                Param("reverse", "whether the last row comes first"),
                Param("num_carry", "how many of the operands and results are carried")),
    ),
    _row(
        "while", "runs its second region as long as the first gives true",
        "carry:array*", "carry:array*", "rules/control, rules/sparsecore, vectorise_control",
        readers="execute, codegen, and most passes", regions=op_types.while_regions,
    ),
    _row(
        "switch", "runs the region that the index says, clamped to those that there are",
        "index:scalar", "result:array*", "rules/control, rules/dma, vectorise_control",
        readers="execute, codegen, and most passes", regions=op_types.switch_regions,
    ),
    _row(
        "grid", "runs its region for each cell, the last axis fastest",
        "size:index*", "", "grid, scan_as_grid, grid_batching, vectorise_control",
        readers="execute, codegen, and most passes", regions=op_types.grid_regions,
        params=(
            Param("name", "the kernel's, for progress bars"),
            Param(CELLS, "for each index its axis, the first cell, and how many run together. "
                  "Missing where it isn't a kernel's grid", required=False),
        ),
    ),
)  # fmt: skip

_MEMORY_ROWS = (
    _row(
        "allocate", "a new buffer of which each element is ``fill``", "", "ref:ref",
        "refs, grid_batching, vectorise", readers="vectorise", effects=(_NEW,),
        params=(Param("fill", "what each element is"),),
    ),
    _row(
        "buffer", "the buffer of an operand of a kernel, or a new one. It may be the operand's "
        "own memory, if nothing writes to it", "array:array?", "ref:ref", "grid_buffers",
        readers="cell_tables, store_fusion", effects=(_NEW,), types=op_types.same_dtype,
    ),
    _row(
        "unfilled", "a new buffer with any contents, all of which is stored to before it is read",
        "", "ref:ref", "store_fusion, refs", effects=(_NEW,),
    ),
    _row(
        "view", "a block of a buffer", "ref:ref leaf:index*", "block:ref", "grid_blocks",
        readers="codegen, dependence", params=(_BLOCK._replace(required=False),), view=True,
        types=op_types.view_types,
    ),
    _row(
        "block", "a block of a buffer in checked memory", "ref:ref leaf:index*", "block:ref",
        "windows", view=True, types=op_types.same_dtype,
    ),
    _row(
        "get", "what the path leads to, as a copy, or once ``copy_elision`` has proven that "
        "nothing overwrites it, as a view", "ref:ref leaf:index*", "value:array",
        "refs, batched_ops, copy_elision, strength_reduction",
        readers="codegen, alias, dependence, gather_to_slice, copy_elision, vectorise, "
        "privatisation, strength_reduction",
        params=(_PATH, Param(AS_VIEW, "the same without the copy", required=False)),
        effects=(_READ,), view=True, types=op_types.load_types,
    ),
    _row(
        "get_padded", "the same, where what lies outside the ref is uninitialised",
        "ref:ref leaf:index*", "value:array", "refs", params=(_PATH,), effects=(_READ,),
        types=op_types.load_types,
    ),
    _row(
        "store", "stores a value, which may broadcast, where the path leads",
        "ref:ref value:array leaf:index*", "", "refs, batched_ops, strength_reduction",
        readers="codegen, alias, in_place_recurrences, store_fusion, dependence, gather_to_slice, "
        "vectorise, privatisation, strength_reduction",
        params=(_PATH,), effects=(_WRITE,), types=op_types.store_types,
    ),
    _row(
        "contents", "the array in the buffer of a kernel's result, to which nothing writes any "
        "more", "ref:ref", "value:array", "grid_buffers", effects=(_READ,), view=True,
        types=op_types.contents_types,
    ),
    _row(
        "received", "the array in the buffer of a kernel's result, to which others may have copied",
        "rows:ref number:index", "value:array", "machine/rows", effects=(_READ,), view=True,
    ),
    _row(
        "masked_swap", "stores where the mask is set, and gives what was there; an error outside",
        "ref:ref value:array mask:array leaf:index*", "before:array", "refs",
        effects=(_UPDATE._replace(io=True),), types=op_types.swap_types,
    ),
    _row(
        "check_bounds", "an error if a path leaves its ref", "leaf:index*", "", "refs",
        effects=(_IO,),
    ),
    _row(
        "check_block", "an error if a block leaves its array", "leaf:index*", "", "windows",
        effects=(_IO,),
    ),
    _row(
        "check_revisit", "an error if a block comes back after others",
        "visits:ref leaf:index*", "", "windows", effects=(_WRITE._replace(io=True),),
    ),
    _row(
        "move_block", "fills an input's block, or writes an output's back, when the index moves on",
        "visits:ref buffer:ref block:ref leaf:index*", "", "windows",
        effects=(Effects((1, 2), (0, 1), io=True), Effects((1, 2), (0, 2), io=True)),
    ),
    _row(
        "write_back", "writes the last block back", "visits:ref buffer:ref block:ref", "",
        "windows", effects=(Effects((0, 2), (1,)),),
    ),
    _row(
        "dma_size", "the number of elements of a view of dynamic size", "leaf:index*",
        "count:index", "rules/dma",
    ),
    _row(
        "dma_start", "copies from one ref to the other, or adds",
        "source:ref target:ref leaf:array*", "", "rules/dma, rules/indirect",
        effects=(Effects((0,), (1,)), Effects((0, 1), (1,))),
    ),
    *[
        _row(
            name, f"{does} a semaphore. To passes it is a store: without a read nobody needs it",
            "ref:ref value:array leaf:index*", "", "rules/dma", params=(_PATH,),
            effects=(_WRITE,), types=op_types.count_types,
        )
        for name, does in (("semaphore_add", "adds to"), ("semaphore_subtract", "takes from"))
    ],
    _row(
        "semaphore_take", "takes from a semaphore that nobody else signals; an error if it hasn't "
        "that many", "semaphore:ref value:index leaf:index*", "", "rules/dma",
        effects=(_UPDATE._replace(io=True),),
    ),
    _row(
        "index_of_cell", "an index of the cell that comes at this turn", "turn:index",
        "index:index", "cell_order",
    ),
    _row(
        "core_of_cell", "the core that runs the cell that comes at this turn", "turn:index*",
        "core:index", "cell_order",
    ),
    _row(
        "cells_of_core", "how many places along the parallel axes a core takes", "core:index",
        "count:index", "cell_order",
    ),
    _row(
        "renew_scratch", "gives scratch memory its first contents, where a core's cells begin",
        f"turn:index* {_SEEN}", "", "cell_order", sees="written",
    ),
    _row(
        "next_cell", "the indices of the cell after one, or of the last cell itself",
        "index_or_size:index*", "next:index*", "lookahead",
    ),
    _row(
        "turn_block", "the place that was noted for a block before the last cell, and a note of "
        "its place in the next", "noted:ref index_or_place:index*", "place:index*", "lookahead",
        effects=(_UPDATE,),
    ),
    _row(
        "fetch_block", "copies the block that the next cell reads to one of two buffers, and tells "
        "which one this cell reads", "buffers:ref noted:ref array:ref index_or_place:index*",
        "which:index",
        "lookahead", effects=(Effects((0, 1, 2), (0, 1)),),
    ),
    _row(
        "fetched_block", "one of two buffers of a block", "buffers:ref which:index", "block:ref",
        "lookahead", view=True, types=op_types.row_types,
    ),
    _row(
        "warn", "warns the user, once in a process", "", "", "grid", effects=(_IO,),
    ),
    _row(
        "check_state", "what checks look at: a kernel's state, or the shadow of memory",
        "given:any*", "state:array", "checks", readers="checks", effects=(_IO,), params=_CHECKED,
    ),
    _row(
        "check", "a check of an access or of a block, or what it needs to know", "given:any*", "",
        "checks", readers="checks", effects=(_IO,), params=_CHECKED,
    ),
    _row(
        "check_mask", "the elements that an access touches", "given:array", "mask:array",
        "rules/indirect, rules/sparsecore",
    ),
    _row(
        "disturb", "a value, of which undefined elements are replaced if the run asks for it",
        "value:array given:any*", "value:array", "checks", effects=(_IO,), view=True,
    ),
    _row(
        "record_cell", "tells the user's recorder of a cell", "core:index index:index*", "",
        "grid, rules/mesh", effects=(_IO,),
    ),
    _row(
        "probe", "tells the watch of a run what it gets", "seen:any*", "", "watching",
        effects=(_IO,),
    ),
    _row(
        "prng_seed", "sets the state of the hardware's generator", "state:ref seed:array*", "",
        "rules/hardware_random", effects=(_WRITE,),
    ),
    _row(
        "prng_random_bits", "random bits, and the next state", "state:ref", "bits:array",
        "rules/hardware_random", effects=(_UPDATE,),
    ),
    *[
        _row(name, "a function of the user's, or what it prints", "value:array*",
             "result:array*", "rules/callbacks", effects=(_IO,))
        for name in CALLBACK_PRIMITIVES
    ],
)  # fmt: skip

_MACHINE_ROWS = (
    _row(
        "programs", "runs its region once for each program, each on parts of the operands, and "
        "puts together what they give", "around:index operand:array*", "result:array*",
        "machine/programs", readers="execute, machine", regions=op_types.programs_regions,
        params=(Param("kind", '"device" or "core"'), Param("count", "how many programs"),
                Param("coordinates", "of each, along each axis"),
                Param("names", "what messages call each, of all groups of them"),
                Param("missing", "the places at which there is no program"),
                Param("names_in", "for each operand `machine.shards.Names`"),
                Param("names_out", "the same for each result"),
                Param("splits", "for each operand the part of each program, a tuple of slices"),
                Param("joins", "for each result the place of each program's part, None for a "
                      "replica of an earlier one")),
    ),
    _row(
        "await", "stands still until a semaphore has a count, and takes that from it",
        f"semaphore:ref count:index leaf:index* {_SEEN}", "", "machine/programs, machine/rows",
        readers="machine", effects=(_UPDATE._replace(io=True),), sees="written",
        types=op_types.count_types, regions=op_types.no_regions,
        params=(_PATH, Param("num_leaves", "how many leaves the path has"),
                Param("decrement", "whether the count is taken from the semaphore"),
                Param("semaphore", "what the user calls it")),
    ),
    _row(
        "take_count", "takes a count from a semaphore that no other program reaches; an error if "
        "it hasn't that many", "semaphore:ref count:index number:index leaf:index*", "",
        "machine/rows", effects=(_UPDATE._replace(io=True),),
    ),
    _row(
        "signal", "adds to a semaphore that another program may wait for",
        f"semaphore:ref count:index leaf:index* {_SEEN}", "", "machine/programs, machine/rows",
        readers="machine", effects=(_UPDATE._replace(io=True),), sees="read",
        types=op_types.count_types, params=(_PATH,),
    ),
    _row(
        "meet", "stands still until all programs of a group have come, and takes away what "
        "``combine`` makes of what they brought", f"number:index brought:array* {_SEEN}",
        "taken:array*", "machine/programs, machine/rows", readers="machine", effects=(_IO,),
        sees="written", regions=op_types.no_regions,
        params=(Param("name", "what messages call the meeting"),
                Param("key", "a number that tells it from others"),
                Param("groups", "for each program the numbers of those that it meets, and its "
                      "rank among them"),
                Param("names", "what messages call the programs"),
                Param("num_brought", "how many operands are brought"),
                Param("combine", "the function"),
                Param("patient", "whether those who came go on if the others never come")),
    ),
    _row(
        "program_number", "the number of the program at some indices, an error if there is none",
        "index:index*", "number:index", "rules/remote", effects=(_IO,),
    ),
    _row(
        "dma", "copies between programs", "source:ref target:ref leaf:index*", "", "rules/dma",
        effects=(Effects((0,), (1,)),), readers="machine, watching",
        params=(Param("paths", "from the source and from the target to what is copied"),
                Param("num_leaves", "how many of the leaves are the source's")),
    ),
    _row(
        "turn", "lets the other programs run first", _SEEN, "", "machine/programs, machine/rows",
        readers="machine", effects=(_IO,), sees="written", regions=op_types.no_regions,
    ),
    _row(
        "pass_by", "lets other programs run, and copies happen, in some orders", _SEEN, "",
        "machine/programs, machine/rows", readers="machine", effects=(_IO,), sees="written",
        regions=op_types.no_regions,
    ),
    _row(
        "copy_later", "a copy whose steps, its regions, run when the order says",
        "semaphore_or_leaf:any*", "", "machine/programs", readers="execute, machine",
        effects=(_IO,), regions=op_types.copy_regions,
        params=(Param("semaphores", "for each step the path to the semaphore that it adds to and "
                      "the number of its leaves, or None"),),
    ),
    _row(
        "note", "tells those who watch for races what a program does", "number:index value:any*",
        "", "machine/programs", effects=(_IO,),
        params=(Param("unseen", "what it can't tell, or None"),),
    ),
    _row(
        "land", "ends the copies of a kernel", "", "", "machine/programs", effects=(_IO,),
    ),
    _row(
        "leftover", "warns if a kernel leaves semaphores other than zero, and sets them to that",
        f"number:index {_SEEN}", "", "machine/rows", effects=(_IO,), sees="written",
    ),
    _row(
        "rows_of_programs", "a buffer for each program, which others reach, each made when it is "
        "first reached", "", "rows:ref", "machine/rows", effects=(_NEW,),
        params=(Param("count", "how many"),),
    ),
    _row(
        "row_to_fill", "the buffer of one program, all of which a copy writes next",
        "rows:ref number:index", "row:ref", "machine/rows", effects=(_IO,), view=True,
        types=op_types.row_types,
    ),
    _row(
        "row_of_program", "the buffer of one program", "rows:ref number:index", "row:ref",
        "machine/rows", view=True, types=op_types.row_types,
    ),
    _row(
        "filled_row", "the program's own buffer, filled with what an operand of a kernel has",
        "rows:ref number:index operand:array*", "row:ref", "machine/rows", view=True,
        effects=(_WRITE._replace(io=True),), types=op_types.row_types,
    ),
)  # fmt: skip

_PASSES_ROWS = (
    _row(
        "blocks", "the blocks of many cells, which lie evenly, as one view",
        "ref:ref step:index*", "blocks:ref", "vectorise", readers="store_fusion",
        params=(Param("starts", "where the first lies along each dimension: tables over the "
                      "steps"),
                Param("steps", "how far each axis in front goes along each dimension"),
                Param("kept", "the dimensions that are the block's own")),
        view=True, types=op_types.blocks_types,
    ),
    _row(
        "each_block", "the blocks of many cells as a list of views, which only `each_get` and "
        "`each_store` take", "ref:ref leaf:array*", "blocks:ref", "vectorise",
        readers="dependence", params=(_BLOCK, _LEADS), view=True, types=op_types.same_dtype,
    ),
    _row(
        "copied_blocks", "a copy of the blocks of many cells, of memory to which nothing writes",
        "ref:ref leaf:array*", "blocks:ref", "vectorise", readers="dependence",
        params=(_BLOCK, _LEADS), effects=(_READ,), types=op_types.same_dtype,
    ),
    _row(
        "each_get", "a load for each of many cells, from a ref or at a place of its own",
        "ref:ref leaf:array*", "values:array", "vectorise", params=(_PATH, _LEADS, _LISTED),
        effects=(_READ,),
    ),
    _row(
        "each_store", "a store for each of many cells, to a ref or at a place of its own",
        "ref:ref value:array leaf:array*", "", "vectorise", params=(_PATH, _LEADS, _LISTED),
        effects=(_WRITE,),
    ),
    _row(
        "accumulate", "``ref[at] = f(ref[at], value)`` for one round after the other",
        "ref:ref values:array leaf:array*", "", "vectorise",
        params=(_PATH, Param(UFUNC, "the function's name"), Param("rounds", "how many")),
        effects=(_UPDATE,),
    ),
    _row(
        "rows", "the rows that the rounds of a loop go along, behind one another", "ref:ref",
        "rows:ref", "strength_reduction", readers="in_place_recurrences", params=(_PATH,),
        view=True,
        types=op_types.rows_types,
    ),
    _row(
        "lookup", "what a table has at the indices", "at:index*", "value:array",
        "scan_as_grid, vectorise", params=(Param("table", "the array"),),
        types=op_types.lookup_types,
    ),
    _row(
        "each", "a primitive on one member of its operands' stacks after the other",
        "value:array*", "values:array*", "forms",
        params=(Param("primitive", "its name"), Param("of", "its parameters"),
                Param("members", "the types of a member's operands"), _LEADS,
                Param("multiple", "whether it gives a tuple")),
    ),
    _row(
        "member", "one member of a stack", "stack:array", "value:array", "stacks",
        params=(Param("index", "which"),), view=True, types=op_types.member_types,
    ),
    _row(
        "members", "some members of a stack", "stack:array", "stack:array", "stacks",
        params=(Param("at", "which, a slice"),), view=True, types=op_types.members_types,
    ),
    _row(
        "join", "a stack of values and of parts of other stacks", "source:array*",
        "stack:array", "stacks", readers="in_place",
        params=(Param("parts", "pairs of an operand's position and what to take of it, None for "
                      "all of it as one member"),),
        types=op_types.join_types,
    ),
    _row(
        "windows", "a stack of the windows of an array that lie on an even grid", "array:array",
        "stack:array", "batching", params=(Param("starts", "where each begins"),), view=True,
        types=op_types.windows_types,
    ),
    _row(
        "sum_of_products", "products of matrices, added to what comes before them, or to zeros",
        "start_or_matrix:array*", "sum:array", "sums_of_products", readers="store_fusion",
        params=(Param("starts", "whether the first operand is what they are added to"),
                Param("dimension_numbers", "those of `dot_general`, of each product")),
        types=op_types.sum_of_products_types,
    ),
    _row(
        "copy", "a copy, which nothing else shares", "value:array", "value:array",
        "in_place_recurrences, and JAX", types=op_types.copied,
    ),
)  # fmt: skip

ROWS: Mapping[str, Op] = {
    row.name: row for row in (*_STRUCTURED_ROWS, *_MEMORY_ROWS, *_MACHINE_ROWS, *_PASSES_ROWS)
}

STORED = _row(
    "an elementwise operation", "a function with ``out`` of which the result goes where the path "
    "leads",
    "ref:ref operand_or_leaf:array*", "", "store_fusion, strength_reduction",
    readers="codegen, strength_reduction",
    params=(_PATH, Param(DIRECT, "the function")), effects=(_WRITE,),
    types=op_types.stored_types,
)
IN_PLACE = _row(
    "an elementwise operation", "a NumPy function of which the result is written over an operand, "
    "or over what comes after the operands", "operand:any*", "value:array",
    "in_place, in_place_recurrences", readers="codegen",
    params=(Param(INTO, "the position of what is written over"), Param(UFUNC, "the function")),
    effects=(PURE, *[Effects(writes=(position,)) for position in range(8)]),
    types=op_types.in_place_types,
)
PRIMITIVE = _row(
    "a primitive that has a rule", "what JAX's primitive does, on arrays only", "operand:array*",
    "result:array*", "lower, and passes by `specialise`", view=True, types=op_types.primitive_types,
)


def row_of(operation: Operation) -> Op:
    """The row of an operation."""
    params = operation.params
    if DIRECT in params:
        return STORED
    if INTO in params:
        return IN_PLACE
    return ROWS.get(operation.name, PRIMITIVE)
