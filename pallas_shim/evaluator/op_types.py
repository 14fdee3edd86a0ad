"""Checks the types of operations, and the types of instructions' regions.

Each check returns the error in words, or None. `ops` assigns the checks to operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.program import Instruction, KeyType, Operation, RefType, Region, Type
from pallas_shim.evaluator.registry import IMPL_RULES
from pallas_shim.jax_compat.state import Index, Slice

# The names of parameters that several modules share.
PATH = "path"
AS_VIEW = "as_view"
BLOCK = "block"
DIRECT = "direct"
INTO = "into"
UFUNC = "ufunc"

# Codegen reads these parameters, so the cache keeps them. The cache keeps all parameters of
# structured operations. Of other operations it keeps only these and the callable.
READ_BY_CODEGEN = frozenset({
    PATH, BLOCK, DIRECT, INTO, UFUNC,
    # and native code:
    "axes", "axis", "broadcast_dimensions", "dimension", "dimension_numbers", "fill_value",
    "indices", "kept", "leads", "listed", "mode", "none", "padding_config", "parts",
    "rounding_method", "rounds", "slice_sizes", "starts", "steps", "table", "y",
})  # fmt: skip

# The messages of these operations contain the user's names and lines. The cache's key doesn't cover
# these, so the cache keeps no program with such an operation.
NAMES_THE_USERS = frozenset(
    {"programs", "await", "meet", "take_count", "semaphore_take", "leftover", "warn"}
)


# -- types: loads, stores and views -----------------------------------------------------------


def same_dtype(operation: Operation) -> str | None:
    """Checks that the first operand, if there is one, and the result have the same dtype."""
    if operation.ins and operation.ins[0].dtype != operation.outs[0].dtype:
        return f"it makes {operation.outs[0]} of {operation.ins[0]}"
    return None


def _leaves_of(path: memory.Path) -> int:
    """The number of leaves that a path needs."""
    highest = -1
    for step in path:
        for dim in step.dims if isinstance(step, Index) else ():
            parts = (dim.start, dim.size) if isinstance(dim, Slice) else (dim,)
            for part in parts:
                if isinstance(part, (memory.Dynamic, memory.Chosen)):
                    highest = max(highest, part.leaf)
    return highest + 1


def _viewed(operation: Operation) -> tuple[tuple[int, ...], np.dtype] | None:
    """The shape and dtype of the part that an operation's path leads to. None if the path is
    invalid."""
    ref = operation.ins[0]
    try:
        return memory.viewed_type(ref.shape, ref.dtype, operation.params[PATH])
    except (IndexError, TypeError, ValueError, ZeroDivisionError):
        return None


def _path_error(operation: Operation, first_leaf: int) -> str | None:
    path = operation.params[PATH]
    if _viewed(operation) is None:
        return f"its path doesn't lead into {operation.ins[0]}"
    shape, dtype = operation.ins[0].shape, operation.ins[0].dtype
    for step in path:
        if isinstance(step, Index) and len(step.dims) != len(shape):
            return f"its path indexes {len(step.dims)} dimensions of {len(shape)}"
        shape, dtype = memory.viewed_type(shape, dtype, (step,))
    if _leaves_of(path) > len(operation.ins) - first_leaf:
        return f"its path needs {_leaves_of(path)} leaves"
    return None


def load_types(operation: Operation) -> str | None:
    wrong = _path_error(operation, 1)
    out = operation.outs[0]
    if wrong is None and _viewed(operation) != (out.shape, out.dtype):
        return f"its path leads to {_viewed(operation)}, but it gives {out}"
    return wrong


def store_types(operation: Operation) -> str | None:
    wrong = _path_error(operation, 2)
    found, value = _viewed(operation), operation.ins[1]
    if wrong is not None or found is None:
        return wrong
    if value.dtype != found[1] or not broadcasts(value.shape, found[0]):
        return f"its path leads to {found}, but it stores {value}"
    return None


def count_types(operation: Operation) -> str | None:
    return _path_error(operation, 2)


def broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether NumPy broadcasts one shape to another."""
    return len(shape) <= len(to) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False)
    )


def view_types(operation: Operation) -> str | None:
    block = operation.params.get(BLOCK)
    if block is None:
        return same_dtype(operation)
    ref, out = operation.ins[0], operation.outs[0]
    if len(block) != len(ref.shape):
        return f"its block has {len(block)} dimensions, and {ref} other ones"
    shape = []
    for at in block:
        if isinstance(at, slice):
            shape.append(at.stop - at.start)
        elif isinstance(at, tuple) and not at[-1]:
            shape.append(at[3])
    if (tuple(shape), ref.dtype) != (out.shape, out.dtype):
        return f"its block is {tuple(shape)} of {ref}, but it gives {out}"
    return None


def contents_types(operation: Operation) -> str | None:
    (ref,), (out,) = operation.ins, operation.outs
    if ref.dtype != out.dtype or len(ref.shape) != len(out.shape):
        return f"it makes {out} of {ref}"
    return None


def swap_types(operation: Operation) -> str | None:
    ref, value, mask, *_ = operation.ins
    (out,) = operation.outs
    if value.dtype != ref.dtype or mask.dtype != np.bool_ or out.dtype != ref.dtype:
        return f"it swaps {value} where {mask} for {out}"
    return None


def copied(operation: Operation) -> str | None:
    """Checks that the result has the first operand's type."""
    if operation.ins[0] != operation.outs[0]:
        return f"it makes {operation.outs[0]} of {operation.ins[0]}"
    return None


# -- types: what passes make ------------------------------------------------------------------


def stored_types(operation: Operation) -> str | None:
    """Checks a ``STORED`` operation. Its operands are ref, the function's operands, leaves."""
    function = operation.params[DIRECT]
    if isinstance(function, np.ufunc):
        count = function.nin
    else:  # a sum of products has any number
        count = len(operation.ins) - 1 - _leaves_of(operation.params[PATH])
    if len(operation.ins) < 1 + count:
        return f"{function.__name__} has {count} operands"
    wrong = _path_error(operation, 1 + count)
    found = _viewed(operation)
    if wrong is not None or found is None:
        return wrong
    if not isinstance(function, np.ufunc):
        return _sum_error(operation, operation.ins[1 : 1 + count], found)
    shapes = [t.shape for t in operation.ins[1 : 1 + count]]
    if not all(broadcasts(shape, found[0]) for shape in shapes):
        return f"its path leads to {found}, but its operands are of the shapes {shapes}"
    return None


def in_place_types(operation: Operation) -> str | None:
    """Checks an ``IN_PLACE`` operation. Its operands are the function's, and maybe one array
    more."""
    function, position = operation.params[UFUNC], operation.params[INTO]
    if not function.nin <= len(operation.ins) <= function.nin + 1:
        return f"{function.__name__} has {function.nin} operands"
    if not 0 <= position < len(operation.ins):
        return f"it has no operand {position}"
    over, out = operation.ins[position], operation.outs[0]
    if (over.shape, over.dtype) != (out.shape, out.dtype):
        return f"it writes {out} over {over}"
    writes = (position,) if isinstance(over, RefType) else ()
    if operation.effects.writes != writes:
        return f"it says that it writes to {operation.effects.writes}, where it is {writes}"
    return None


def rows_types(operation: Operation) -> str | None:
    ref, rows = operation.ins[0], operation.outs[0]
    if ref.dtype != rows.dtype or not rows.shape:
        return f"it makes {rows} of {ref}"
    shape, _ = _viewed(operation) or ((), ref.dtype)
    if shape != rows.shape[1:]:
        return f"a row of its path is {shape}, but it gives {rows}"
    return None


def blocks_types(operation: Operation) -> str | None:
    ref, out = operation.ins[0], operation.outs[0]
    starts, steps, kept = (operation.params[name] for name in ("starts", "steps", "kept"))
    if len(starts) != len(ref.shape) or len(out.shape) != len(steps) + len(kept):
        return f"it makes {out} of {ref}"
    return same_dtype(operation)


def lookup_types(operation: Operation) -> str | None:
    table = operation.params["table"]
    if table.shape[len(operation.ins) :] != operation.outs[0].shape:
        return f"it makes {operation.outs[0]} of a table of the shape {table.shape}"
    return None


def member_types(operation: Operation) -> str | None:
    stack, out = operation.ins[0], operation.outs[0]
    if (stack.shape[1:], stack.dtype) != (out.shape, out.dtype):
        return f"a member of {stack} is no {out}"
    if not 0 <= operation.params["index"] < stack.shape[0]:
        return f"{stack} has no member {operation.params['index']}"
    return None


def members_types(operation: Operation) -> str | None:
    stack, out = operation.ins[0], operation.outs[0]
    count = len(range(*operation.params["at"].indices(stack.shape[0])))
    if ((count, *stack.shape[1:]), stack.dtype) != (out.shape, out.dtype):
        return f"{count} members of {stack} are no {out}"
    return None


def join_types(operation: Operation) -> str | None:
    out, count = operation.outs[0], 0
    for position, key in operation.params["parts"]:
        source = operation.ins[position]
        count += 1 if key is None else len(range(*key.indices(source.shape[0])))
        member = source.shape if key is None else source.shape[1:]
        if (member, source.dtype) != (out.shape[1:], out.dtype):
            return f"{source} is no part of {out}"
    return None if count == out.shape[0] else f"its parts are {count}, but it gives {out}"


def windows_types(operation: Operation) -> str | None:
    if operation.outs[0].shape[0] != len(operation.params["starts"]):
        return f"it has {len(operation.params['starts'])} windows, but gives {operation.outs[0]}"
    return same_dtype(operation)


def sum_of_products_types(operation: Operation) -> str | None:
    (out,) = operation.outs
    return _sum_error(operation, operation.ins, (out.shape, out.dtype))


def _sum_error(
    operation: Operation, operands: Sequence[Type], made: tuple[Any, np.dtype]
) -> str | None:
    """Checks the operands of a sum of products, which is made as an array of a shape and dtype."""
    starts = operation.params["starts"]
    matrices = operands[starts:]
    if any((start.shape, start.dtype) != made for start in operands[:starts]):
        return f"it starts with {operands[0]}, but gives {made}"
    if not matrices or len(matrices) % 2:
        return "its matrices aren't pairs"
    if len(set(matrices[::2])) != 1 or len(set(matrices[1::2])) != 1:
        return "its products are of different types"
    return None


def row_types(operation: Operation) -> str | None:
    rows, row = operation.ins[0], operation.outs[0]
    if (rows.shape[1:], rows.dtype) != (row.shape, row.dtype):
        return f"a row of {rows} is no {row}"
    return None


# -- types: primitives ------------------------------------------------------------------------


def _broadcast(types: Iterable[Type]) -> tuple[int, ...] | None:
    try:
        return np.broadcast_shapes(*[t.shape for t in types])
    except ValueError:
        return None


def _elementwise(operation: Operation) -> str | None:
    """Checks that operands and result have one dtype, and that the operands broadcast to the
    result's shape."""
    out = operation.outs[0]
    dtype = operation.params.get("out_dtype") or out.dtype
    if any(t.dtype != operation.ins[0].dtype for t in operation.ins[1:]):
        return f"its operands are {', '.join(map(str, operation.ins))}"
    if operation.params.get("out_dtype") is None and operation.ins[0].dtype != dtype:
        return f"it makes {out} of {operation.ins[0]}"
    return _spread(operation)


def _spread(operation: Operation) -> str | None:
    if _broadcast(operation.ins) != operation.outs[0].shape:
        return f"it makes {operation.outs[0]} of {', '.join(map(str, operation.ins))}"
    return None


def _comparison(operation: Operation) -> str | None:
    if operation.outs[0].dtype != np.bool_ or operation.ins[0].dtype != operation.ins[-1].dtype:
        return f"it makes {operation.outs[0]} of {', '.join(map(str, operation.ins))}"
    return _spread(operation)


def _select(operation: Operation) -> str | None:
    which, *cases = operation.ins
    out = operation.outs[0]
    if any(t.dtype != out.dtype for t in cases) or which.dtype.kind not in "bi":
        return f"it makes {out} of {', '.join(map(str, operation.ins))}"
    return _spread(operation)


def _reshape(operation: Operation) -> str | None:
    x, out = operation.ins[0], operation.outs[0]
    if math.prod(x.shape) != math.prod(out.shape) or x.dtype != out.dtype:
        return f"it makes {out} of {x}"
    return None


def _transpose(operation: Operation) -> str | None:
    x, out, order = operation.ins[0], operation.outs[0], operation.params["permutation"]
    if sorted(order) != list(range(len(x.shape))) or x.dtype != out.dtype:
        return f"it makes {out} of {x}"
    return None if tuple([x.shape[d] for d in order]) == out.shape else f"it makes {out} of {x}"


def _concatenate(operation: Operation) -> str | None:
    axis, out = operation.params["dimension"], operation.outs[0]
    for x in operation.ins:
        rest = (x.shape[:axis], x.shape[axis + 1 :], x.dtype)
        if rest != (out.shape[:axis], out.shape[axis + 1 :], out.dtype):
            return f"{x} is no part of {out}"
    if sum(x.shape[axis] for x in operation.ins) != out.shape[axis]:
        return f"its parts together are no {out}"
    return None


def _reduction(operation: Operation) -> str | None:
    axes, x = operation.params["axes"], operation.ins[0]
    kept = tuple([size for d, size in enumerate(x.shape) if d not in axes])
    if kept != operation.outs[0].shape:
        return f"it makes {operation.outs[0]} of {x} along {tuple(axes)}"
    return None


def _take(operation: Operation) -> str | None:
    x, axis = operation.ins[0], operation.params["axis"]
    shape = (*x.shape[:axis], len(operation.params["indices"]), *x.shape[axis + 1 :])
    if (shape, x.dtype) != (operation.outs[0].shape, operation.outs[0].dtype):
        return f"it makes {operation.outs[0]} of {x}"
    return None


def _same_shape(operation: Operation) -> str | None:
    if operation.ins[0].shape != operation.outs[0].shape:
        return f"it makes {operation.outs[0]} of {operation.ins[0]}"
    return None


_TYPES_OF_PRIMITIVES: Mapping[str, Callable[[Operation], str | None]] = {
    **dict.fromkeys(
        ("add", "add_any", "sub", "mul", "div", "rem", "neg", "max", "min", "and", "or", "xor",
         "not", "sign", "square", "floor", "ceil", "round", "exp", "exp2", "expm1", "log",
         "log1p", "logistic", "sqrt", "rsqrt", "cbrt", "sin", "cos", "tan", "tanh", "erf",
         "atan2", "nextafter", "shift_left", "shift_right_logical", "shift_right_arithmetic",
         "floor_divide", "floor_remainder"),
        _elementwise,
    ),
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), _comparison),
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshape),
    **dict.fromkeys(
        ("reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_and", "reduce_or",
         "reduce_xor", "argmax", "argmin", "count", "first_true",
         "one_hot_get"),
        _reduction,
    ),
    **dict.fromkeys(
        ("broadcast_in_dim", "broadcast_to", "slice", "dynamic_slice", "gather",
         "gather_from_end", "pad"),
        same_dtype,
    ),
    **dict.fromkeys(("rev", "dynamic_update_slice", "scatter", "one_hot_set"), copied),
    **dict.fromkeys(("convert_element_type", "cumsum", "cumprod", "cummax", "cummin"), _same_shape),
    "select_n": _select,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "take": _take,
}  # fmt: skip


def primitive_types(operation: Operation) -> str | None:
    if operation.name not in IMPL_RULES:
        return "there is no rule for it, and no row in ops.py"
    if IMPL_RULES[operation.name].view and not operation.view:
        return "its rule may give a view of its first operand, which it doesn't say"
    if any(isinstance(t, KeyType) for t in (*operation.ins, *operation.outs)):
        return None
    if len(operation.outs) != 1 and not operation.multiple:
        return f"it has {len(operation.outs)} results"
    types = _TYPES_OF_PRIMITIVES.get(operation.name)
    return None if types is None else types(operation)


# -- regions ----------------------------------------------------------------------------------


def _differ(what: str, one: Sequence[Type], other: Sequence[Type]) -> str | None:
    if len(one) != len(other):
        return f"{what}: {len(one)} of them for {len(other)}"
    for position, (a, b) in enumerate(zip(one, other, strict=True)):
        if a != b:
            return f"{what}: number {position} is {a} for {b}"
    return None


def _params(region: Region) -> tuple[Type, ...]:
    return tuple([v.type for v in region.params])


def _results(region: Region) -> tuple[Type, ...]:
    return tuple([v.type for v in region.results])


def _first(*found: str | None) -> str | None:
    return next((wrong for wrong in found if wrong is not None), None)


def scan_regions(instruction: Instruction) -> str | None:
    operation, _, _, regions, _ = instruction
    if len(regions) != 1:
        return f"it has {len(regions)} regions, not one"
    (region,) = regions
    length, count = operation.params["length"], operation.params["num_carry"]
    ins, outs, params, results = operation.ins, operation.outs, _params(region), _results(region)
    if length < 0 or not 0 <= count <= min(len(ins), len(outs)):
        return f"it carries {count} values for {length} rounds"
    wrong = _first(
        _differ("what its region carries, for its operands", params[:count], ins[:count]),
        _differ("what a round carries on, for its region", results[:count], params[:count]),
        _differ("what it gives, for what it carries", outs[:count], params[:count]),
    )
    if wrong is not None:
        return wrong
    if len(params) != len(ins) or len(results) != len(outs):
        return (
            f"its region has {len(params)} parameters and {len(results)} results, "
            f"and it has {len(ins)} operands and {len(outs)} results"
        )
    for one, all_ in (*zip(params[count:], ins[count:], strict=True),
                      *zip(results[count:], outs[count:], strict=True)):  # fmt: skip
        if ((length, *one.shape), one.dtype) != (all_.shape, all_.dtype):
            return f"a round has {one} of {all_}"
    return None


def while_regions(instruction: Instruction) -> str | None:
    operation, _, _, regions, _ = instruction
    if len(regions) != 2:
        return f"it has {len(regions)} regions, not a condition and a body"
    condition, body = regions
    going = _results(condition)
    if len(going) != 1 or going[0].shape or going[0].dtype != np.bool_:
        return f"its condition gives {', '.join(map(str, going))}, not a boolean"
    return _first(
        _differ("the parameters of its condition, for its operands", _params(condition),
                operation.ins),
        _differ("the parameters of its body, for its operands", _params(body), operation.ins),
        _differ("what its body carries on, for its operands", _results(body), operation.ins),
        _differ("what it gives, for its operands", operation.outs, operation.ins),
    )  # fmt: skip


def switch_regions(instruction: Instruction) -> str | None:
    operation, _, _, regions, _ = instruction
    if not regions:
        return "it has no branches"
    for number, region in enumerate(regions):
        if region.params:
            return f"branch {number} has parameters"
        wrong = _differ(f"the results of branch {number}", _results(region), operation.outs)
        if wrong is not None:
            return wrong
    return None


def grid_regions(instruction: Instruction) -> str | None:
    regions = instruction.regions
    if len(regions) != 1:
        return f"it has {len(regions)} regions, not one"
    if regions[0].results:
        return "a cell has results"
    if len(regions[0].params) != len(instruction.ins):
        return f"it has {len(instruction.ins)} sizes for {len(regions[0].params)} indices"
    if any(t.shape or t.dtype.kind not in "iu" for t in _params(regions[0])):
        return "an index isn't a scalar integer"
    return None


def no_regions(instruction: Instruction) -> str | None:
    return "it has regions" if instruction.regions else None


def copy_regions(instruction: Instruction) -> str | None:
    semaphores = instruction.operation.params["semaphores"]
    if len(instruction.regions) != len(semaphores):
        return f"it has {len(instruction.regions)} regions for {len(semaphores)} steps"
    if any(region.params or region.results for region in instruction.regions):
        return "a step takes or gives something"
    return None


def programs_regions(instruction: Instruction) -> str | None:
    """Checks the regions of programs. The region's parameters are the program's number, its
    coordinates, and its parts of the operands."""
    operation, _, _, regions, _ = instruction
    if len(regions) != 1:
        return f"it has {len(regions)} regions, not one"
    params, results = _params(regions[0]), _results(regions[0])
    coordinates, parts = operation.params["coordinates"], operation.ins[1:]
    if len(coordinates) != operation.params["count"]:
        return f"it has {operation.params['count']} programs at {len(coordinates)} places"
    first = 1 + len(coordinates[0])
    if any(t.shape or t.dtype.kind not in "iu" for t in params[:first]):
        return "the number of a program or its place isn't a scalar integer"
    return _first(
        _parts("operand", params[first:], parts, operation.params["splits"]),
        _parts("result", results, operation.outs, operation.params["joins"]),
    )


def _parts(
    what: str, parts: Sequence[Type], wholes: Sequence[Type], keys: Sequence[Sequence[object]]
) -> str | None:
    if not len(parts) == len(wholes) == len(keys):
        return f"it has {len(parts)} parts of {len(wholes)} {what}s, cut {len(keys)} times"
    for part, whole in zip(parts, wholes, strict=True):
        if part.dtype != whole.dtype or len(part.shape) != len(whole.shape):
            return f"a program has {part} of the {what} {whole}"
        if any(p and w % p for p, w in zip(part.shape, whole.shape, strict=True)):
            return f"parts that are {part} don't make the {what} {whole}"
    return None
