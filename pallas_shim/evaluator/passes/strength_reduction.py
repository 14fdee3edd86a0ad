"""Strength reduction: hands a loop that walks along memory by its counter the rows, one by one.

In each round, the row ``ref[..., counter, ...]`` is a view that the loop gets like the rows of an
array that it scans. No round computes an address. The view is the same memory, whatever writes to
it, so only one thing has to be proven: the counter stays inside. A counter without another use is
removed. Later passes know the memory of such rows, but not their place in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pallas_shim.evaluator.analysis import induction
from pallas_shim.evaluator.analysis.induction import Induction
from pallas_shim.evaluator.analysis.ranges import Range
from pallas_shim.evaluator.memory import Dynamic, as_slice
from pallas_shim.evaluator.passes.rewrite import with_regions
from pallas_shim.evaluator.program import (
    PURE,
    Array,
    Effects,
    Instruction,
    Operation,
    Program,
    RefType,
    Region,
    Value,
    make_instruction,
)
from pallas_shim.jax_compat.state import Index, Slice

# In loops shorter than this, rows cost more than addresses.
_FEWEST_ROUNDS = 3


def reduce_strength(program: Program) -> Program:
    if not any(i.name == "scan" for i in program.top.walk()):
        return program
    return Program(program.name, _StrengthReduction(program).region(program.top))


class _StrengthReduction:
    def __init__(self, program: Program) -> None:
        self.uses = Counter(program.top.uses())

    def region(self, region: Region) -> Region:
        body: list[Instruction] = []
        for instruction in region.body:
            if instruction.regions:
                inner = [self.region(r) for r in instruction.regions]
                instruction = with_regions(instruction, inner)
                if instruction.name == "scan" and not instruction.operation.params["reverse"]:
                    body += self.scan(instruction)
                    continue
            body.append(instruction)
        return Region(region.params, tuple(body), region.results)

    def scan(self, scan: Instruction) -> Iterator[Instruction]:
        """The instructions that do the same as a loop."""
        params, (region,) = scan.operation.params, scan.regions
        length, count = params["length"], params["num_carry"]
        counters = induction.of_scan(scan) if length >= _FEWEST_ROUNDS else {}
        counters = {param: counter for param, counter in counters.items() if counter.step > 0}
        inside = {out for i in region.body for out in i.outs}
        body: list[Instruction] = []
        rows: list[Value] = []  # parameters of the region, each with the memory it walks along
        walked: list[Value] = []
        for instruction in region.body if counters else ():
            found = _access(instruction, counters, length, inside)
            if found is None:
                body.append(instruction)
                continue
            outer, row, changed = found
            yield outer
            walked.append(outer.outs[0])
            rows.append(row)
            self.uses.subtract(instruction.ins)
            if changed is not None:
                self.uses.update(changed.ins)
                body.append(changed)
        if not rows:
            yield scan
            return
        # A counter is used by the addition and as what the loop goes on with.
        kept = [
            k
            for k, param in enumerate(region.params[:count])
            if not (
                param in counters
                and self.uses[param] == 1
                and self.uses[region.results[k]] == 1
                and not self.uses[scan.outs[k]]
            )
        ]
        gone = {region.results[k] for k in range(count) if k not in kept}
        kept += range(count, len(scan.outs))
        carried = [k for k in kept if k < count]
        ins = (*[scan.ins[k] for k in carried], *scan.ins[count:], *walked)
        outs = tuple([scan.outs[k] for k in kept])
        inner = Region(
            (*[region.params[k] for k in carried], *region.params[count:], *rows),
            tuple([i for i in body if gone.isdisjoint(i.outs)]),
            tuple([region.results[k] for k in kept]),
        )
        operation = Operation(
            "scan",
            {**params, "num_carry": len(carried)},
            tuple([v.type for v in ins]),
            tuple([v.type for v in outs]),
            None,
            scan.operation.effects,
            multiple=True,
        )
        yield make_instruction((operation, ins, outs, (inner,), scan.source))


def _access(
    instruction: Instruction, counters: dict[Value, Induction], length: int, inside: set[Value]
) -> tuple[Instruction, Value, Instruction | None] | None:
    """For an access to a row by a counter: the operation that makes all rows, the row of a round,
    and the access to the row, None if the row is used as it is."""
    operation, ins, outs, _, source = instruction
    path = operation.params.get("path")
    if not path or len(path) > 1 or not isinstance(path[0], Index) or ins[0] in inside:
        return None
    if not isinstance(ins[0].type, RefType) or ins[0].type.key_ndim:
        return None
    moving = [d for d, index in enumerate(path[0].dims) if _leaf(index) is not None]
    if len(moving) != 1 or not all(map(_is_plain, path[0].dims)):
        return None
    (axis,) = moving
    leaf = _leaf(path[0].dims[axis])
    assert leaf is not None
    count = len(ins) - 1  # the operands before the leaves, of which there is one
    counter = counters.get(ins[count])
    if leaf != 0 or counter is None:
        return None
    places = counter.known_range(length)
    if places is None or not places.within(Range(0, ins[0].ref.shape[axis] - 1)):
        return None
    rows = _rows(path[0].dims, axis, slice(places.low, places.high + 1, counter.step))
    shape = tuple([d.size for d in path[0].dims if isinstance(d, Slice)])
    if not shape:
        return None  # an element is read when it is asked for
    type = ins[0].ref._replace(shape=shape)
    if operation.name == "get":
        row = outs[0] if operation.view else Value(type)
        changed = None if operation.view else _changed(operation, _copy, (row,), outs, source)
    elif operation.name == "store":
        row = Value(type)
        changed = _changed(operation, _store, (row, ins[1]), (), source)
    elif "direct" in operation.params:
        row = Value(type)
        into = _into(operation.params["direct"])
        changed = _changed(operation, into, (row, *ins[1:count]), (), source)
    else:
        return None
    of_all = ins[0].ref._replace(shape=(length, *shape))
    making = Operation("rows", {"path": path}, (ins[0].type,), (of_all,), rows, PURE, view=True)
    return make_instruction((making, (ins[0],), (Value(of_all),), (), source)), row, changed


def _leaf(index: Any) -> int | None:
    start = index.start if isinstance(index, Slice) else index
    return start.leaf if isinstance(start, Dynamic) else None


def _is_plain(index: Any) -> bool:
    if not isinstance(index, Slice):
        return isinstance(index, (int, Dynamic))
    return index.size == 1 if isinstance(index.start, Dynamic) else index.stride > 0


def _rows(dims: tuple[Any, ...], axis: int, walk: slice) -> Callable[[np.ndarray], np.ndarray]:
    """The function from a ref to the views of all rounds, along a first axis."""
    key: list[Any] = []
    for index in dims:
        if isinstance(index, Slice) and not isinstance(index.start, Dynamic):
            key.append(as_slice(index))
        else:
            key.append(index)
    key[axis] = walk
    before = sum(isinstance(index, Slice) for index in dims[:axis])
    rank = sum(isinstance(index, Slice) for index in dims) + 1
    if isinstance(dims[axis], Slice):
        key.insert(axis + 1, None)  # a slice of one element keeps its axis
    chosen = tuple(key)
    order = (before, *[axis for axis in range(rank) if axis != before])

    def rows(ref: Array) -> Array:
        return ref[chosen].transpose(order)

    return rows


def _changed(
    operation: Operation,
    fn: Callable[..., Any],
    ins: tuple[Value, ...],
    outs: tuple[Value, ...],
    source: Any,
) -> Instruction:
    """The same access, to a row."""
    params = {**operation.params, "path": ()}
    types, made = tuple([v.type for v in ins]), tuple([v.type for v in outs])
    effects: Effects = operation.effects
    made_of = Operation(
        operation.name, params, types, made, fn, effects, multiple=operation.multiple
    )
    return make_instruction((made_of, ins, outs, (), source))


def _copy(row: Array) -> Array:
    return row.copy()


def _store(row: Array, value: Array) -> tuple[()]:
    row[...] = value
    return ()


def _into(function: Callable[..., Any]) -> Callable[..., tuple[()]]:
    def run(row: Array, *operands: Array) -> tuple[()]:
        function(*operands, out=row)
        return ()

    return run
