"""The contract of the IR: one row for each operation that lowering and the passes make.

Lowering rules, passes, codegen and the cache agree on operations by name and on parameters by
name. What a name stands for is written down here and nowhere else, and `verify` holds every
program to it. `row_of` finds the row of an operation:

- an operation of our own has the row of its name in `ROWS`;
- an elementwise operation that a pass has given a place for its result has the row `STORED` or
  `IN_PLACE`, whatever its name;
- any other name is a primitive that has a rule, and has the row `PRIMITIVE`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.program import (
    PURE,
    ArrayType,
    Effects,
    Instruction,
    KeyType,
    Operation,
    RefType,
    Region,
    Type,
)
from pallas_shim.evaluator.registry import IMPL_RULES
from pallas_shim.jax_compat.callbacks import CALLBACK_PRIMITIVES
from pallas_shim.jax_compat.state import Index, Slice

# -- parameters -------------------------------------------------------------------------------

PATH = "path"
AS_VIEW = "as_view"
BLOCK = "block"
DIRECT = "direct"
INTO = "into"
UFUNC = "ufunc"

# The parameters that codegen looks at, so that the cache keeps them. It keeps all those of the
# structured operations, and of the others only the callable.
READ_BY_CODEGEN = frozenset({PATH, BLOCK, DIRECT, INTO, UFUNC})

# Beside the ufuncs, the operations whose result is always an array of its own.
MAKES_ARRAYS = frozenset({"concatenate", "convert_element_type", "dot_general", "join", "select_n",
                          "take"})  # fmt: skip


class Param(NamedTuple):
    """A parameter of an operation. One that isn't ``required`` may be missing."""

    name: str
    meaning: str
    required: bool = True


_PATH = Param(PATH, "the `memory.Path` from the ref to what is read or written")
_BLOCK = Param(BLOCK, "where the block lies, as of `grid.block_viewer`")
_LEADS = Param("leads", "for each operand the sizes of its axes in front, None if it has none")
_LISTED = Param("listed", "whether the ref is a list of views, as `each_block` makes it")


# -- operands ---------------------------------------------------------------------------------


class Operand(NamedTuple):
    """``kind``: "ref", "array" (a value that isn't a ref), or "index" (a scalar integer).
    ``count``: "one", "optional", or "any" number of them."""

    name: str
    kind: str
    count: str = "one"


def _operands(text: str) -> tuple[Operand, ...]:
    """``"ref:ref value:array leaf:index*"`` as operands; ``?`` is optional, ``*`` any number."""
    found = []
    for word in text.split():
        name, _, kind = word.partition(":")
        count = {"?": "optional", "*": "any"}.get(kind[-1], "one")
        found.append(Operand(name, kind.rstrip("?*"), count))
    return tuple(found)


class Op(NamedTuple):
    """The row of an operation.

    Attributes:
      does: what it does.
      operands, results: in order.
      params: its parameters. The rows of primitives don't list them: they are JAX's own.
      effects: the effects that it may have; an operation has exactly one of these.
      view: whether the result may share memory with the first operand, and with it only.
      makers, readers: which modules make it, and which look at it by its name or parameters. Every
        other module treats it by its effects, types and ``view`` alone.
      types: what is wrong with the types and parameters of an operation, None if nothing is.
      regions: the same of an instruction's regions, of which all but structured ones have none.
    """

    name: str
    does: str
    operands: tuple[Operand, ...]
    results: tuple[Operand, ...]
    makers: str
    readers: str = ""
    params: tuple[Param, ...] = ()
    effects: tuple[Effects, ...] = (PURE,)
    view: bool = False
    types: Callable[[Operation], str | None] = lambda operation: None
    regions: Callable[[Instruction], str | None] | None = None


# -- types: loads, stores and views -----------------------------------------------------------


def _same_dtype(operation: Operation) -> str | None:
    """The first operand, if there is one, and the result have one dtype."""
    if operation.ins and operation.ins[0].dtype != operation.outs[0].dtype:
        return f"it makes {operation.outs[0]} of {operation.ins[0]}"
    return None


def _leaves_of(path: memory.Path) -> int:
    """How many leaves a path needs."""
    highest = -1
    for step in path:
        for dim in step.dims if isinstance(step, Index) else ():
            parts = (dim.start, dim.size) if isinstance(dim, Slice) else (dim,)
            for part in parts:
                if isinstance(part, (memory.Dynamic, memory.Chosen)):
                    highest = max(highest, part.leaf)
    return highest + 1


def _viewed(operation: Operation) -> tuple[tuple[int, ...], np.dtype] | None:
    """The shape and dtype of what the path of an operation leads to; None if it leads nowhere."""
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


def _load_types(operation: Operation) -> str | None:
    wrong = _path_error(operation, 1)
    out = operation.outs[0]
    if wrong is None and _viewed(operation) != (out.shape, out.dtype):
        return f"its path leads to {_viewed(operation)}, but it gives {out}"
    return wrong


def _store_types(operation: Operation) -> str | None:
    wrong = _path_error(operation, 2)
    found, value = _viewed(operation), operation.ins[1]
    if wrong is not None or found is None:
        return wrong
    if value.dtype != found[1] or not broadcasts(value.shape, found[0]):
        return f"its path leads to {found}, but it stores {value}"
    return None


def _count_types(operation: Operation) -> str | None:
    return _path_error(operation, 2)


def broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether NumPy spreads one shape to another."""
    return len(shape) <= len(to) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False)
    )


def _view_types(operation: Operation) -> str | None:
    block = operation.params.get(BLOCK)
    if block is None:
        return _same_dtype(operation)
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


def _contents_types(operation: Operation) -> str | None:
    (ref,), (out,) = operation.ins, operation.outs
    if ref.dtype != out.dtype or len(ref.shape) != len(out.shape):
        return f"it makes {out} of {ref}"
    return None


def _swap_types(operation: Operation) -> str | None:
    ref, value, mask, *_ = operation.ins
    (out,) = operation.outs
    if value.dtype != ref.dtype or mask.dtype != np.bool_ or out.dtype != ref.dtype:
        return f"it swaps {value} where {mask} for {out}"
    return None


def _copied(operation: Operation) -> str | None:
    """The result is of the first operand's type."""
    if operation.ins[0] != operation.outs[0]:
        return f"it makes {operation.outs[0]} of {operation.ins[0]}"
    return None


# -- types: what passes make ------------------------------------------------------------------


def _stored_types(operation: Operation) -> str | None:
    """Of ``STORED``: ref, the function's operands, leaves."""
    function = operation.params[DIRECT]
    if len(operation.ins) < 1 + function.nin:
        return f"{function.__name__} has {function.nin} operands"
    wrong = _path_error(operation, 1 + function.nin)
    found = _viewed(operation)
    if wrong is not None or found is None:
        return wrong
    shapes = [t.shape for t in operation.ins[1 : 1 + function.nin]]
    if not all(broadcasts(shape, found[0]) for shape in shapes):
        return f"its path leads to {found}, but its operands are of the shapes {shapes}"
    return None


def _in_place_types(operation: Operation) -> str | None:
    """Of ``IN_PLACE``: the function's operands, and maybe an array after them."""
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


def _rows_types(operation: Operation) -> str | None:
    ref, rows = operation.ins[0], operation.outs[0]
    if ref.dtype != rows.dtype or not rows.shape:
        return f"it makes {rows} of {ref}"
    shape, _ = _viewed(operation) or ((), ref.dtype)
    if shape != rows.shape[1:]:
        return f"a row of its path is {shape}, but it gives {rows}"
    return None


def _blocks_types(operation: Operation) -> str | None:
    ref, out = operation.ins[0], operation.outs[0]
    starts, steps, kept = (operation.params[name] for name in ("starts", "steps", "kept"))
    if len(starts) != len(ref.shape) or len(out.shape) != len(steps) + len(kept):
        return f"it makes {out} of {ref}"
    return _same_dtype(operation)


def _lookup_types(operation: Operation) -> str | None:
    table = operation.params["table"]
    if table.shape[len(operation.ins) :] != operation.outs[0].shape:
        return f"it makes {operation.outs[0]} of a table of the shape {table.shape}"
    return None


def _member_types(operation: Operation) -> str | None:
    stack, out = operation.ins[0], operation.outs[0]
    if (stack.shape[1:], stack.dtype) != (out.shape, out.dtype):
        return f"a member of {stack} is no {out}"
    if not 0 <= operation.params["index"] < stack.shape[0]:
        return f"{stack} has no member {operation.params['index']}"
    return None


def _members_types(operation: Operation) -> str | None:
    stack, out = operation.ins[0], operation.outs[0]
    count = len(range(*operation.params["at"].indices(stack.shape[0])))
    if ((count, *stack.shape[1:]), stack.dtype) != (out.shape, out.dtype):
        return f"{count} members of {stack} are no {out}"
    return None


def _join_types(operation: Operation) -> str | None:
    out, count = operation.outs[0], 0
    for position, key in operation.params["parts"]:
        source = operation.ins[position]
        count += 1 if key is None else len(range(*key.indices(source.shape[0])))
        member = source.shape if key is None else source.shape[1:]
        if (member, source.dtype) != (out.shape[1:], out.dtype):
            return f"{source} is no part of {out}"
    return None if count == out.shape[0] else f"its parts are {count}, but it gives {out}"


def _windows_types(operation: Operation) -> str | None:
    if operation.outs[0].shape[0] != len(operation.params["starts"]):
        return f"it has {len(operation.params['starts'])} windows, but gives {operation.outs[0]}"
    return _same_dtype(operation)


# -- types: primitives ------------------------------------------------------------------------


def _broadcast(types: Iterable[Type]) -> tuple[int, ...] | None:
    try:
        return np.broadcast_shapes(*[t.shape for t in types])
    except ValueError:
        return None


def _elementwise(operation: Operation) -> str | None:
    """Operands and result have one dtype, and the result is as large as they spread to."""
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
         "reduce_xor", "argmax", "argmin", "count"),
        _reduction,
    ),
    **dict.fromkeys(
        ("broadcast_in_dim", "broadcast_to", "slice", "dynamic_slice", "gather", "pad"),
        _same_dtype,
    ),
    **dict.fromkeys(("rev", "dynamic_update_slice", "scatter"), _copied),
    **dict.fromkeys(("convert_element_type", "cumsum", "cumprod", "cummax", "cummin"), _same_shape),
    "select_n": _select,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "take": _take,
}  # fmt: skip


def _primitive_types(operation: Operation) -> str | None:
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


def _scan_regions(instruction: Instruction) -> str | None:
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


def _while_regions(instruction: Instruction) -> str | None:
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


def _switch_regions(instruction: Instruction) -> str | None:
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


def _grid_regions(instruction: Instruction) -> str | None:
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


# -- the rows ---------------------------------------------------------------------------------

_READ, _WRITE = Effects(reads=(0,)), Effects(writes=(0,))
_UPDATE = Effects(reads=(0,), writes=(0,))
_NEW = Effects(allocates=True)
_IO = Effects(io=True)


def _row(name: str, does: str, operands: str, results: str, makers: str, **rest: Any) -> Op:
    return Op(name, does, _operands(operands), _operands(results), makers, **rest)


_STRUCTURED_ROWS = (
    _row(
        "scan", "runs its region ``length`` times, with what it carries and a row of each ``x``",
        "carry_or_x:any*", "carry_or_y:array*",
        "rules/control, strength_reduction, vectorise_control",
        readers="execute, codegen, and most passes", regions=_scan_regions,
        params=(Param("length", "the number of rounds"),
                Param("reverse", "whether the last row comes first"),
                Param("num_carry", "how many of the operands and results are carried")),
    ),
    _row(
        "while", "runs its second region as long as the first gives true",
        "carry:array*", "carry:array*", "rules/control, rules/sparsecore, vectorise_control",
        readers="execute, codegen, and most passes", regions=_while_regions,
    ),
    _row(
        "switch", "runs the region that the index says, clamped to those that there are",
        "index:scalar", "result:array*", "rules/control, rules/tpu, vectorise_control",
        readers="execute, codegen, and most passes", regions=_switch_regions,
    ),
    _row(
        "grid", "runs its region for each cell, the last axis fastest",
        "size:index*", "", "grid, scan_as_grid, grid_batching, vectorise_control",
        readers="execute, codegen, and most passes", regions=_grid_regions,
        params=(Param("name", "the kernel's, for progress bars"),),
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
        "own memory, if nothing writes to it", "array:array?", "ref:ref", "grid",
        readers="cell_tables, store_fusion", effects=(_NEW,), types=_same_dtype,
    ),
    _row(
        "empty", "a new buffer with any contents, all of which is stored to before it is read",
        "", "ref:ref", "store_fusion", effects=(_NEW,),
    ),
    _row(
        "view", "a block of a buffer", "ref:ref leaf:index*", "block:ref", "grid",
        readers="codegen, dependence", params=(_BLOCK._replace(required=False),), view=True,
        types=_view_types,
    ),
    _row(
        "block", "a block of a buffer in checked memory", "ref:ref leaf:index*", "block:ref",
        "windows", view=True, types=_same_dtype,
    ),
    _row(
        "get", "what the path leads to, as a copy, or once ``copy_elision`` has proven that "
        "nothing overwrites it, as a view", "ref:ref leaf:index*", "value:array",
        "refs, batched_ops, copy_elision, strength_reduction",
        readers="codegen, alias, dependence, gather_to_slice, copy_elision, vectorise, "
        "privatisation, strength_reduction",
        params=(_PATH, Param(AS_VIEW, "the same without the copy", required=False)),
        effects=(_READ,), view=True, types=_load_types,
    ),
    _row(
        "get_padded", "the same, where what lies outside the ref is uninitialised",
        "ref:ref leaf:index*", "value:array", "refs", params=(_PATH,), effects=(_READ,),
        types=_load_types,
    ),
    _row(
        "store", "stores a value, which may broadcast, where the path leads",
        "ref:ref value:array leaf:index*", "", "refs, batched_ops, strength_reduction",
        readers="codegen, alias, in_place_recurrences, store_fusion, dependence, gather_to_slice, "
        "vectorise, privatisation, strength_reduction",
        params=(_PATH,), effects=(_WRITE,), types=_store_types,
    ),
    _row(
        "contents", "the array in the buffer of a kernel's result, to which nothing writes any "
        "more", "ref:ref", "value:array", "grid", effects=(_READ,), view=True,
        types=_contents_types,
    ),
    _row(
        "masked_swap", "stores where the mask is set, and gives what was there; an error outside",
        "ref:ref value:array mask:array leaf:index*", "before:array", "rules/state",
        effects=(_UPDATE._replace(io=True),), types=_swap_types,
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
        "count:index", "rules/tpu",
    ),
    _row(
        "dma_start", "copies from one ref to the other, or adds",
        "source:ref target:ref leaf:array*", "", "rules/tpu, rules/indirect",
        effects=(Effects((0,), (1,)), Effects((0, 1), (1,))),
    ),
    *[
        _row(
            name, f"{does} a semaphore. To passes it is a store: without a read nobody needs it",
            "ref:ref value:array leaf:index*", "", "rules/tpu", params=(_PATH,),
            effects=(_WRITE,), types=_count_types,
        )
        for name, does in (("semaphore_add", "adds to"), ("semaphore_subtract", "takes from"))
    ],
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

_PASSES_ROWS = (
    _row(
        "blocks", "the blocks of many cells, which lie evenly, as one view",
        "ref:ref step:index*", "blocks:ref", "vectorise", readers="store_fusion",
        params=(Param("starts", "where the first lies along each dimension: tables over the "
                      "steps"),
                Param("steps", "how far each axis in front goes along each dimension"),
                Param("kept", "the dimensions that are the block's own")),
        view=True, types=_blocks_types,
    ),
    _row(
        "each_block", "the blocks of many cells as a list of views, which only `each_get` and "
        "`each_store` take", "ref:ref leaf:array*", "blocks:ref", "vectorise",
        readers="dependence", params=(_BLOCK, _LEADS), view=True, types=_same_dtype,
    ),
    _row(
        "copied_blocks", "a copy of the blocks of many cells, of memory to which nothing writes",
        "ref:ref leaf:array*", "blocks:ref", "vectorise", readers="dependence",
        params=(_BLOCK, _LEADS), effects=(_READ,), types=_same_dtype,
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
        types=_rows_types,
    ),
    _row(
        "lookup", "what a table has at the indices", "at:index*", "value:array",
        "scan_as_grid, vectorise", params=(Param("table", "the array"),), types=_lookup_types,
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
        params=(Param("index", "which"),), view=True, types=_member_types,
    ),
    _row(
        "members", "some members of a stack", "stack:array", "stack:array", "stacks",
        params=(Param("at", "which, a slice"),), view=True, types=_members_types,
    ),
    _row(
        "join", "a stack of values and of parts of other stacks", "source:array*",
        "stack:array", "stacks", readers="in_place",
        params=(Param("parts", "pairs of an operand's position and what to take of it, None for "
                      "all of it as one member"),),
        types=_join_types,
    ),
    _row(
        "windows", "a stack of the windows of an array that lie on an even grid", "array:array",
        "stack:array", "batching", params=(Param("starts", "where each begins"),), view=True,
        types=_windows_types,
    ),
    _row(
        "copy", "a copy, which nothing else shares", "value:array", "value:array",
        "in_place_recurrences, and JAX", types=_copied,
    ),
)  # fmt: skip

ROWS: Mapping[str, Op] = {
    row.name: row for row in (*_STRUCTURED_ROWS, *_MEMORY_ROWS, *_PASSES_ROWS)
}

STORED = _row(
    "an elementwise operation", "a NumPy function of which the result goes where the path leads",
    "ref:ref operand_or_leaf:array*", "", "store_fusion, strength_reduction",
    readers="codegen, strength_reduction",
    params=(_PATH, Param(DIRECT, "the NumPy function")), effects=(_WRITE,), types=_stored_types,
)
IN_PLACE = _row(
    "an elementwise operation", "a NumPy function of which the result is written over an operand, "
    "or over what comes after the operands", "operand:any*", "value:array",
    "in_place, in_place_recurrences", readers="codegen",
    params=(Param(INTO, "the position of what is written over"), Param(UFUNC, "the function")),
    effects=(PURE, *[Effects(writes=(position,)) for position in range(8)]),
    types=_in_place_types,
)
PRIMITIVE = _row(
    "a primitive that has a rule", "what JAX's primitive does, on arrays only", "operand:array*",
    "result:array*", "lower, and passes by `specialise`", view=True, types=_primitive_types,
)


def row_of(operation: Operation) -> Op:
    """The row that holds for an operation."""
    params = operation.params
    if DIRECT in params:
        return STORED
    if INTO in params:
        return IN_PLACE
    return ROWS.get(operation.name, PRIMITIVE)


def wrong_with(operation: Operation) -> str | None:
    """What an operation has that its row doesn't allow, None if all is well."""
    row = row_of(operation)
    for what, types, operands in (
        ("operand", operation.ins, row.operands), ("result", operation.outs, row.results),
    ):  # fmt: skip
        wrong = _arity(what, types, operands)
        if wrong is not None:
            return wrong
    return _first(
        _params_error(operation, row),
        _effects_error(operation, row),
        row.types(operation),
    )


_KINDS: Mapping[str, Callable[[Type], bool]] = {
    "ref": lambda t: isinstance(t, RefType),
    "array": lambda t: not isinstance(t, RefType),
    "scalar": lambda t: isinstance(t, ArrayType) and not t.shape,
    "index": lambda t: isinstance(t, ArrayType) and not t.shape and t.dtype.kind in "iub",
    "any": lambda t: True,
}


def _arity(what: str, types: Sequence[Type], operands: Sequence[Operand]) -> str | None:
    at = 0
    for operand in operands:
        is_kind = _KINDS[operand.kind]
        if operand.count == "one" and at == len(types):
            return f"it has no {what} {operand.name!r}"
        most = {"one": 1, "optional": 1, "any": len(types)}[operand.count]
        for type in types[at : at + most]:
            if not is_kind(type):
                return f"its {what} {at} ({operand.name}) is {type}, which isn't {operand.kind}"
            at += 1
    return None if at == len(types) else f"it has {len(types)} {what}s, more than it takes"


def _params_error(operation: Operation, row: Op) -> str | None:
    for param in row.params:
        if param.required and param.name not in operation.params:
            return f"it has no parameter {param.name!r}: {param.meaning}"
    if row.name != operation.name or operation.name in IMPL_RULES:
        return None  # a primitive's own parameters come along
    unknown = operation.params.keys() - {param.name for param in row.params}
    return f"it has an unknown parameter {min(unknown)!r}" if unknown else None


def _effects_error(operation: Operation, row: Op) -> str | None:
    effects = operation.effects
    if effects not in row.effects:
        return f"its effects are {effects}, where {' or '.join(map(str, row.effects))} are allowed"
    for position in (*effects.reads, *effects.writes):
        if position >= len(operation.ins) or not isinstance(operation.ins[position], RefType):
            return f"it says that it reads or writes operand {position}, which is no ref"
    if operation.view and not (row.view and operation.ins):
        return "it says that its result is a view of its first operand"
    if (operation.fn is None) != (row.regions is not None):
        return "it has no callable" if operation.fn is None else "it has a callable"
    return None
