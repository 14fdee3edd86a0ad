"""Store fusion: computes an elementwise result where it is stored, if it is only stored.

The computation moves down to its store, but not past a write to its operands. NumPy allows operands
that overlap with the destination. Memory that is wholly stored to before anything reads it isn't
filled first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.analysis import induction
from pallas_shim.evaluator.analysis.alias import AliasAnalysis
from pallas_shim.evaluator.passes.rewrite import is_ufunc, with_regions
from pallas_shim.evaluator.program import (
    PURE,
    Array,
    Effects,
    Instruction,
    Operation,
    Program,
    Region,
    Value,
    make_instruction,
)
from pallas_shim.jax_compat.state import Index, Slice


def fuse_stores(program: Program) -> Program:
    uses = Counter(program.top.uses())
    return Program(program.name, _StoreFusion(AliasAnalysis(program), uses).region(program.top))


class _StoreFusion:
    def __init__(self, aliases: AliasAnalysis, uses: Counter[Value]) -> None:
        self.aliases = aliases
        self.uses = uses

    def region(self, region: Region) -> Region:
        body: list[Instruction | None] = list(region.body)
        made: dict[Value, int] = {}  # where a result is made that can be made elsewhere
        viewed: dict[Value, Value] = {}  # the roots of values that are views of memory
        written: dict[Value, int] = {}  # where roots were last written to
        untouched: dict[Value, int] = {}  # where roots that nothing has used yet are allocated
        blocks: dict[Value, Instruction] = {}  # what made a ref of blocks
        for at, instruction in enumerate(region.body):
            operation, ins, outs, regions, _ = instruction
            if is_ufunc(operation) or operation.name == "sum_of_products":
                made[outs[0]] = at
                continue
            if operation.effects is PURE and not regions:
                if operation.name == "blocks":
                    blocks[outs[0]] = instruction
                elif operation.view and ins[0] in viewed:
                    viewed[outs[0]] = viewed[ins[0]]
                continue
            writes = self.aliases.roots(instruction, operation.effects.writes)
            reads = self.aliases.roots(instruction, operation.effects.reads)
            if regions:
                body[at] = with_regions(instruction, list(map(self.region, regions)))
                touched = self.aliases.within(instruction)
                writes += touched.writes
                reads += touched.reads
                for root in touched.writes - touched.reads:
                    start = untouched.get(root)
                    if start is not None and self.fills(body[at], root):
                        body[start] = _unfilled(region.body[start])
            elif operation.name == "buffer" and not ins:
                untouched[outs[0]] = at
            elif operation.name == "store":
                start = untouched.get(writes[0])
                if start is not None and _covers(instruction, writes[0], blocks.get(ins[0])):
                    body[start] = _unfilled(region.body[start])
                before = made.get(ins[1])
                if before is not None and self.uses[ins[1]] == 1:
                    source = region.body[before]
                    seen = map(viewed.get, source.ins)
                    if all(root is None or written.get(root, -1) < before for root in seen):
                        direct = _direct(source, instruction)
                        if direct is not None:
                            body[before], body[at] = None, direct
            elif operation.view and reads:
                viewed[outs[0]] = reads[0]
            for root in (*reads, *writes):
                untouched.pop(root, None)
            written.update(dict.fromkeys(writes, at))
        kept = tuple([instruction for instruction in body if instruction is not None])
        return Region(region.params, kept, region.results)

    def fills(self, grid: Instruction | None, root: Value) -> bool:
        """Whether the cells of a grid, or the rounds of a loop, which read nothing of a buffer,
        store to all of it."""
        assert grid is not None
        if grid.name == "scan":
            return _walks_along(grid, root)
        if grid.name != "grid" or any(size.const is None for size in grid.ins):
            return False
        (region,) = grid.regions
        counts = [int(size.const) for size in grid.ins if size.const is not None]
        blocks = [i for i in region.body if i.name == "blocks" and i.ins[0] is root]
        whole = {i.outs[0] for i in blocks if _are_all(i, region.params, counts)}
        return any(
            i.operation.effects.writes == (0,) and not i.regions and i.ins[0] in whole
            and i.operation.params.get("path") == ()
            and ("direct" in i.operation.params or i.name == "store")
            for i in region.body
        )  # fmt: skip


def _walks_along(scan: Instruction, root: Value) -> bool:
    """Whether a loop stores to one whole row of a buffer after the other, and to all of them."""
    counters = induction.of_scan(scan)
    for store in scan.regions[0].body:
        path = store.operation.params.get("path")
        if store.operation.effects.writes != (0,) or store.ins[0] is not root or store.regions:
            continue
        if not ("direct" in store.operation.params or store.name == "store"):
            continue
        if path is None or len(path) != 1 or not isinstance(path[0], Index):
            continue
        shape = root.ref.shape
        moving = [d for d, at in enumerate(path[0].dims) if not _is_all(at, shape[d])]
        if len(moving) != 1:
            continue
        size, at = shape[moving[0]], path[0].dims[moving[0]]
        if isinstance(at, Slice):
            at = at.start if at.size == 1 else None
        counter = counters.get(store.ins[-1]) if isinstance(at, memory.Dynamic) else None
        if counter is None or abs(counter.step) != 1:
            continue
        if counter.known_range(scan.operation.params["length"]) == (0, size - 1):
            return True
    return False


def _is_all(at: Any, size: int) -> bool:
    return isinstance(at, Slice) and (at.start, at.size, at.stride) == (0, size, 1)


def _direct(source: Instruction, store: Instruction) -> Instruction | None:
    """The instruction of a function with ``out`` that writes to where its result is stored, None if
    that isn't a view of the whole result's shape."""
    operation, operands = source.operation, source.ins
    ref, value, *leaves = store.ins
    shape, dtype, *_ = ref.ref
    path = store.operation.params["path"]
    view = memory.direct_viewer(shape, dtype, path)
    whole = memory.viewed_type(shape, dtype, path) == value.type
    if view is None or not whole or not value.type.shape:
        return None
    function, count = operation.fn, len(operands)
    assert function is not None

    def run_at(ref: Array, *args: Array) -> tuple[()]:
        function(*args[:count], out=view(ref, *args[count:]))
        return ()

    def run_on_all(ref: Array, *args: Array) -> tuple[()]:
        function(*args, out=ref)
        return ()

    run = run_at if path else run_on_all

    params = {**operation.params, "path": path, "direct": function}
    ins = (ref, *operands, *leaves)
    types = tuple([v.type for v in ins])
    direct = Operation(operation.name, params, types, (), run, Effects(writes=(0,)), multiple=True)
    return make_instruction((direct, ins, (), (), source.source))


def _unfilled(buffer: Instruction) -> Instruction:
    """The same allocation, with any contents."""
    operation, ins, outs, regions, source = buffer
    shape, dtype, *_ = outs[0].ref

    def empty() -> Array:
        return memory.aligned(shape, dtype)

    unfilled = Operation("unfilled", operation.params, (), operation.outs, empty, operation.effects)
    return make_instruction((unfilled, ins, outs, regions, source))


def _covers(store: Instruction, root: Value, blocks: Instruction | None) -> bool:
    """Whether a store covers a whole buffer. ``blocks``: the instruction that made its ref, if that
    is `blocks`."""
    if store.operation.params["path"]:
        return False
    if blocks is None:
        return store.ins[0] is root
    return blocks.ins == (root,) and _is_whole(blocks.operation)


def _is_whole(blocks: Operation) -> bool:
    """Whether blocks that lie evenly in an array are all of it."""
    (array,) = blocks.ins
    starts = blocks.params["starts"]
    return not any(start.any() for start in starts) and _tile(blocks) == array.shape


def _tile(blocks: Operation) -> tuple[int, ...] | None:
    """The shape of the part of an array that blocks make up together. None: they have gaps."""
    array, (out,) = blocks.ins[0], blocks.outs
    steps, kept = blocks.params["steps"], blocks.params["kept"]
    lengths = dict(zip(kept, out.shape[len(steps) :], strict=True))
    covered = [lengths.get(d, 1) for d in range(len(array.shape))]
    if any(sum(map(bool, step)) > 1 for step in steps):
        return None
    # The shorter steps first: each continues where those before it end.
    for step, count in sorted(zip(steps, out.shape, strict=False), key=lambda x: sum(x[0])):
        for d, length in enumerate(step):
            if length and length != covered[d]:
                return None
            covered[d] *= count if length else 1
    return tuple(covered)


def _are_all(blocks: Instruction, indices: Sequence[Value], counts: Sequence[int]) -> bool:
    """Whether the blocks of all cells, whose grid has these indices, make up an array."""
    array, tile = blocks.ins[0].ref, _tile(blocks.operation)
    if tile is None or blocks.ins[1:] != tuple(indices) or not math.prod(counts):
        return False
    starts = [np.broadcast_to(s, counts).reshape(-1) for s in blocks.operation.params["starts"]]
    if any((s % n).any() for s, n in zip(starts, tile, strict=True)):
        return False
    different = len(set(zip(*map(np.ndarray.tolist, starts), strict=True)))
    return different * math.prod(tile) == math.prod(array.shape)
