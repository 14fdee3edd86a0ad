"""Writes instructions as lines of source, except loops and branches."""

from __future__ import annotations

import functools
import operator
from typing import Any

import numpy as np

from pallas_shim.evaluator import broadcasting, memory, scalars
from pallas_shim.evaluator.analysis import ranges
from pallas_shim.evaluator.codegen import numbers, places
from pallas_shim.evaluator.codegen.numbers import Number
from pallas_shim.evaluator.codegen.source import PythonSource
from pallas_shim.evaluator.program import PURE, ArrayType, Instruction, Value

# These operands come as the leaves of a path, which any kind of number can be.
_FIRST_LEAF = {"get": 1, "store": 2, "view": 1}

# The source of the operations that `scalars` has for floats.
_OPERATORS: dict[Any, str] = {
    operator.add: "{} + {}",
    operator.sub: "{} - {}",
    operator.mul: "{} * {}",
    operator.neg: "-{}",
    operator.abs: "abs({})",
    operator.eq: "{} == {}",
    operator.ne: "{} != {}",
    operator.lt: "{} < {}",
    operator.le: "{} <= {}",
    operator.gt: "{} > {}",
    operator.ge: "{} >= {}",
}


def is_written_out(instruction: Instruction) -> bool:
    """Whether an instruction is one that needs no call, as far as its types tell."""
    operation, _, outs, regions, _ = instruction
    if regions:
        return False
    if operation.name == "view":
        return "block" in operation.params
    if operation.name in ("get", "store"):
        return places.has_key(operation.params.get("path"))
    return len(outs) == 1 and numbers.kind(outs[0].type) is not None


def write(to: PythonSource, instruction: Instruction) -> None:
    """Writes out an instruction without regions."""
    operation, ins, outs, _, _ = instruction
    if operation.fn is memory.same:
        _rename(to, outs[0], ins[0])
    elif not (_number(to, instruction) or _access(to, instruction)):
        _call(to, instruction)


def _rename(to: PythonSource, new: Value, old: Value) -> None:
    to.names[new] = to.text(old)
    if numbers.kind(old.type):
        to.known_limits[new] = to.limits(old)


def _number(to: PythonSource, instruction: Instruction) -> bool:
    """Writes out arithmetic on scalars; False if it isn't that."""
    operation, ins, outs, _, _ = instruction
    types = [v.type for v in (*ins, *outs)]
    if operation.effects != PURE or len(outs) != 1:
        return False
    if not ins or not all(isinstance(t, ArrayType) and not t.shape for t in types):
        return False
    if all(numbers.kind(t) for t in types[:-1]):
        operands = list(map(to.number, ins))
        found = numbers.expression(operation.name, operation.ins, types[-1], operands)
        if found is not None:
            _assign(to, outs[0], found)
            if operation.name == "convert_element_type" and ins[0].type.dtype.kind == "b":
                to.conditions[outs[0]] = operands[0].text
            return True
    symbol = _OPERATORS.get(scalars.function(operation))
    if symbol is None or any(map(numbers.kind, types[:-1])):
        return False
    operands_text = [to.text(v) for v in ins]
    to.line(f"{to.fresh(outs[0])} = {symbol.format(*operands_text)}")
    return True


def _assign(to: PythonSource, out: Value, number: Number) -> None:
    assert isinstance(out.type, ArrayType)
    low, high = whole = ranges.of_dtype(out.type.dtype)
    text = number.text
    if number.range.within(whole):
        to.known_limits[out] = number.range
        to.line(f"{to.fresh(out)} = {text}")
    elif low == 0:
        to.line(f"{to.fresh(out)} = {numbers.wrapped(text, out.type.dtype)}")
    else:
        name = to.fresh(out)
        back = numbers.wrapped(name, out.type.dtype)
        to.line(f"{name} = {text}")
        to.line(f"if not {low} <= {name} <= {high}: {name} = {back}")


def _access(to: PythonSource, instruction: Instruction) -> bool:
    """Writes out a load, a store or a block; False if it isn't that, or has no short form."""
    operation, ins, outs, _, _ = instruction
    params, path = operation.params, operation.params.get("path")
    clamped = functools.partial(_clamped, to)
    if operation.name == "view" and "block" in params:
        leaves = list(map(to.number, ins[1:]))
        key = places.key_of_block(ins[0].ref, params["block"], leaves, clamped)
        to.line(f"{to.fresh(outs[0])} = {key.of(to.text(ins[0]), to_view=True)}")
        return True
    if not places.has_key(path):
        return False
    count = {"get": 1, "store": 2}.get(operation.name)
    if "direct" in params:
        count = len(ins) - places.leaves(path)
    if count is None:
        return False
    key = places.key_of_path(ins[0].ref, path, list(map(to.number, ins[count:])), clamped)
    if "direct" in params:
        operands = ", ".join(map(to.array, ins[1:count]))
        target = key.of(to.text(ins[0]))
        fn = broadcasting.function(params["direct"], instruction)
        to.line(f"{to.given(fn)}({operands}, out={target})")
    elif key.is_element:
        _element(to, instruction, key)
    elif outs:
        copied = "" if operation.view else ".copy()"
        to.line(f"{to.fresh(outs[0])} = {key.of(to.text(ins[0]))}{copied}")
    else:
        place = key.of(to.text(ins[0])) if key.parts else f"{to.text(ins[0])}[...]"
        to.line(f"{place} = {to.text(ins[1])}")
    return True


def _element(to: PythonSource, instruction: Instruction, key: places.Subscript) -> None:
    """Writes out the load or the store of one element."""
    _, ins, outs, _, _ = instruction
    ref, kind = ins[0], ins[0].ref.dtype.kind
    buffer = to.buffer(ref) if kind in "iub" else None
    if buffer is not None:
        place = key.of(buffer)
    elif kind in "iu" and outs:
        place = f"{to.text(ref)}.item({', '.join(key.parts)})"
    else:
        place = key.of(to.text(ref))
    to.line(f"{to.fresh(outs[0])} = {place}" if outs else f"{place} = {to.text(ins[1])}")


def _clamped(to: PythonSource, start: Number, dim: int, size: int) -> str:
    """The start of a slice after XLA has clamped it."""
    text, last = start.text, dim - size
    if not (text.isidentifier() or text.lstrip("-").isdigit()):
        text = to.fresh()
        to.line(f"{text} = {start.text}")
    if 0 <= start.low and start.high <= last:
        return text
    inside = to.fresh()
    clamped = f"{to.given(memory.clamped)}({text}, {dim}, {size})"
    to.line(f"{inside} = {text} if 0 <= {text} <= {last} else {clamped}")
    return inside


def _call(to: PythonSource, instruction: Instruction) -> None:
    operation, ins, outs, _, _ = instruction
    fn = scalars.function(operation)
    assert fn is not None, instruction
    over = ""
    if "into" in operation.params:
        fn = operation.params["ufunc"]
        over = f", out={to.array(ins[operation.params['into']])}"
        ins = ins[: fn.nin]
    leaf = _FIRST_LEAF.get(operation.name, len(ins))
    # NumPy's types make their scalars of Python's numbers, and its ufuncs take those for
    # numbers of the type of the array beside them.
    same_types = len({v.type.dtype for v in ins}) == 1
    if isinstance(fn, type) or isinstance(fn, np.ufunc) and outs[0].type.shape and same_types:
        leaf = 0
    args = ", ".join([*map(to.array, ins[:leaf]), *map(to.text, ins[leaf:])])
    call = f"{to.given(broadcasting.function(fn, instruction))}({args}{over})"
    if not outs:
        to.line(call)
    elif operation.multiple:
        to.line(f"{', '.join(map(to.fresh, outs))}, = {call}")
    else:
        to.line(f"{to.fresh(outs[0])} = {call}")
    for out in outs:
        if numbers.kind(out.type) == "integer":
            to.line(f"{to.names[out]} = int({to.names[out]})")
