"""Batching: runs equal unrolled instructions as one, on stacks of their operands.

The agenda is DyNet's (Neubig, Goldberg and Dyer, "On-the-fly operation batching in dynamic
computation graphs", 2017). Of all ready instructions, those with the same operation run together.
The operation whose remaining instructions have the lowest average depth comes first. Instructions
with effects, and those too large for stacks, stay in order.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator import registry
from pallas_shim.evaluator.batching_rules import over_stack, stacked
from pallas_shim.evaluator.builder import Builder
from pallas_shim.evaluator.passes.rewrite import with_regions
from pallas_shim.evaluator.passes.stacks import CALL, VIEW, StackPlan, Stacks
from pallas_shim.evaluator.program import (
    PURE,
    Array,
    ArrayType,
    Instruction,
    Operation,
    Program,
    Region,
    Value,
    array_type,
)
from pallas_shim.evaluator.registry import BATCHING_RULES, Stack

# Stacks of more bytes than this would leave the second-level cache between two instructions,
# and the work on them outweighs the calls that they save.
_LARGEST_STACK = 1 << 18
_LARGEST_MEMBER = _LARGEST_STACK // 8
# The assumed number of instructions that use a stack, directly or through results.
_USES = 3
# Fewer slices of an array than this are not worth its being copied into a stack.
_FEWEST_SLICES = 4


def batch(program: Program) -> Program:
    registry.load()
    return Program(program.name, _Batching().region(program.top))


class _Batching:
    """Facts that hold throughout a program."""

    def __init__(self) -> None:
        self.builder = Builder()
        self._stackable: dict[Operation, bool] = {}
        self._ordered: dict[Operation, bool] = {}
        self._batched: dict[Any, Operation | None] = {}
        self._outer: dict[Region, tuple[Value, ...]] = {}

    def region(self, region: Region) -> Region:
        body = region.body
        if any([i.regions for i in body]):
            body = tuple(
                [
                    with_regions(i, list(map(self.region, i.regions))) if i.regions else i
                    for i in body
                ]
            )
        agenda = _Agenda(self, body)
        if agenda.worthwhile:
            with self.builder.block() as made:
                agenda.run(region.results)
            body = tuple(made)
        return Region(region.params, body, region.results)

    def stackable(self, operation: Operation) -> bool:
        """Whether instructions with this operation may become one."""
        known = self._stackable.get(operation)
        if known is None:
            name, ins, outs = operation.name, operation.ins, operation.outs
            # A slice is a view, however large the array that it is of.
            types = outs if name == "slice" else (*ins, *outs)
            known = self._stackable[operation] = (
                operation.effects is PURE
                and name in BATCHING_RULES
                and not (BATCHING_RULES[name].reorders and ins[0].dtype.kind not in "iub")
                and all(isinstance(t, ArrayType) and t.nbytes <= _LARGEST_MEMBER for t in types)
                and all(isinstance(t, ArrayType) and t.size for t in outs)
                # Operators on scalars cost less than taking one out of a stack.
                and any(t.shape for t in (*ins, *outs))
            )
        return known

    def stays_in_order(self, operation: Operation) -> bool:
        """Whether instructions that stay single must not change places with their like:
        effects would be seen in another order, large results would be alive together."""
        known = self._ordered.get(operation)
        if known is None:
            known = self._ordered[operation] = operation.effects is not PURE or any(
                type(t) is ArrayType and t.nbytes > _LARGEST_MEMBER for t in operation.outs
            )
        return known

    def batched(
        self, operation: Operation, size: int, shared: tuple[bool, ...]
    ) -> Operation | None:
        """The operation that does on stacks what the given one does on each member."""
        key = (operation, size, shared)
        if key not in self._batched:
            types = tuple(map(array_type, operation.ins))
            self._batched[key] = over_stack(operation, Stack(size, types, shared))
        return self._batched[key]

    def from_outside(self, region: Region) -> Iterable[Value]:
        """The values that a region uses and does not define, in the order of their first use."""
        known = self._outer.get(region)
        if known is None:
            used: dict[Value, None] = {}
            defined = set(region.params)
            for instruction in region.body:
                used.update(dict.fromkeys(self.uses(instruction)))
                defined.update(instruction.outs)
            used.update(dict.fromkeys(region.results))
            known = self._outer[region] = tuple([v for v in used if v not in defined])
        return known

    def uses(self, instruction: Instruction) -> Iterable[Value]:
        """The values that an instruction and its regions use, each once if there are such.

        They are in the order of the program, because what is emitted for them is in that order.
        """
        _, ins, _, regions, _ = instruction
        if not regions:
            return ins
        return dict.fromkeys(itertools.chain(ins, *map(self.from_outside, regions)))


class _Agenda:
    """The body of one region: its dependences, and the instructions that replace it."""

    def __init__(self, batching: _Batching, body: Sequence[Instruction]) -> None:
        self.batching = batching
        self.body = body
        self.builder = batching.builder
        self.stacks = Stacks(batching.builder)
        self.keys = self._keys()
        self.users: list[list[int]] = [[] for _ in body]
        self.missing = [0] * len(body)
        self.depth = [0] * len(body)
        self.used_singly: set[Value] = set()
        self._depend()
        # A quick test: whether some instructions that may run together can be ready at the same
        # time.
        levels = [
            level for level in zip(self.keys, self.depth, strict=True) if level[0] is not None
        ]
        self.worthwhile = len(set(levels)) < len(levels)

    def _keys(self) -> list[Hashable]:
        """The key that each instruction shares with those that it may run together with, if any."""
        stackable = self.batching.stackable
        keys: list[Hashable] = [
            operation if not regions and stackable(operation) else None
            for operation, _, _, regions, _ in self.body
        ]
        of_one_array = [
            (at, (instruction.ins[0], instruction.outs[0].type))
            for at, instruction in enumerate(self.body)
            if instruction.name == "slice" and keys[at] is not None
        ]
        count = Counter(keys)
        siblings = Counter([sibling for _, sibling in of_one_array])
        for at, sibling in of_one_array:
            if siblings[sibling] >= max(_FEWEST_SLICES, count[keys[at]]):
                keys[at] = sibling
        count = Counter(keys)
        return [None if count[key] == 1 else key for key in keys]

    def _depend(self) -> None:
        """Finds out what depends on what, and how deep it lies."""
        users, depth = self.users, self.depth
        producer: dict[Value, int] = {}
        last_ordered = None
        for at, instruction in enumerate(self.body):
            operation, ins, outs, regions, _ = instruction
            used = self.batching.uses(instruction) if regions else ins
            needed = {producer[v] for v in used if v in producer}
            if self.keys[at] is None:
                if operation.name != "concatenate":
                    self.used_singly.update(used)
                if regions or self.batching.stays_in_order(operation):
                    if last_ordered is not None:
                        needed.add(last_ordered)
                    last_ordered = at
            if needed:
                self.missing[at] = len(needed)
                depth[at] = 1 + max([depth[earlier] for earlier in needed])
                for earlier in needed:
                    users[earlier].append(at)
            for out in outs:
                producer[out] = at

    def run(self, results: Sequence[Value]) -> None:
        """Emits the body in which instructions that are ready together and equal run as one."""
        body, keys, users, missing, depth = (
            self.body, self.keys, self.users, self.missing, self.depth,
        )  # fmt: skip
        total: dict[Hashable, list[int]] = {}  # of remaining instructions: their depths, number
        for key, level in zip(keys, depth, strict=True):
            if key is not None:
                sums = total.setdefault(key, [0, 0])
                sums[0] += level
                sums[1] += 1
        ready: dict[Hashable, list[int]] = {}
        heap: list[tuple[float, int, Hashable]] = []

        def offer(at: int) -> None:
            key = keys[at]
            if key is None:
                heapq.heappush(heap, (depth[at], at, None))
            elif key in ready:
                ready[key].append(at)
            else:
                ready[key] = [at]
                depths, number = total[key]
                heapq.heappush(heap, (depths / number, at, key))

        for at, number in enumerate(missing):
            if not number:
                offer(at)
        while heap:
            _, first, key = heapq.heappop(heap)
            done = [first] if key is None else ready.pop(key)
            if key is not None:
                sums = total[key]
                sums[0] -= sum([depth[at] for at in done])
                sums[1] -= len(done)
            if len(done) == 1:
                self.single(body[first])
            else:
                self.group([body[at] for at in done])
            for at in done:
                for user in users[at]:
                    missing[user] -= 1
                    if not missing[user]:
                        offer(user)
        self.builder.source = None
        for value in results:
            self.stacks.single(value)

    # -- emitting ---------------------------------------------------------------------------

    def single(self, instruction: Instruction) -> None:
        stacks = self.stacks
        if stacks.places:
            self.builder.source = instruction.source
            if instruction.name == "concatenate" and self.concatenate(instruction):
                return
            for value in self.batching.uses(instruction):
                stacks.single(value)
        self.builder.body.append(instruction)

    def group(self, members: list[Instruction]) -> None:
        """Emits instructions with one key that are all ready."""
        operation = members[0].operation
        if operation.name == "slice" and any([m.operation is not operation for m in members]):
            if not self.slices(members):
                for member in members:
                    self.single(member)
            return
        members = self.in_order_of_first_stack(members)
        nbytes = max([array_type(t).nbytes for t in (*operation.ins, *operation.outs)])
        most = max(2, _LARGEST_STACK // nbytes)
        for start in range(0, len(members), most):
            part = members[start : start + most]
            if len(part) == 1 or not self.together(part):
                for member in part:
                    self.single(member)

    def in_order_of_first_stack(self, members: list[Instruction]) -> list[Instruction]:
        places = self.stacks.places
        for position in range(len(members[0].ins)):
            if all([member.ins[position] in places for member in members]):
                return sorted(members, key=lambda member: places[member.ins[position]][:2])
        return members

    def together(self, members: list[Instruction]) -> bool:
        """Emits instructions with one operation as one, if that pays."""
        operation, size = members[0].operation, len(members)
        form = BATCHING_RULES[operation.name]
        columns = list(zip(*[member.ins for member in members], strict=True))
        shared = tuple([column.count(column[0]) == size for column in columns])
        if all(shared):
            return False
        batched = self.batching.batched(operation, size, shared)
        if batched is None:
            return False
        members, columns, plans, cost = self.cheapest_order(members, columns, shared)
        needed = [out for m in members for out in m.outs if out in self.used_singly]
        if cost / _USES + VIEW * len(needed) >= CALL * (size - 1):
            return False
        self.builder.source = members[0].source
        rank = len(operation.outs[0].shape)
        ins = []
        for position, (column, is_shared) in enumerate(zip(columns, shared, strict=True)):
            if is_shared:
                value = column[0]
                self.stacks.single(value)
                if not form.broadcasts and position not in form.unstacked:
                    value = self.stacks.repeated(value, size)
            else:
                value = self.stacks.stack(column, plans[position].pieces)
                if form.broadcasts and len(column[0].type.shape) < rank:
                    value = self.aligned(value, rank)
            ins.append(value)
        outs = self.builder.emit(batched, ins)
        for out, column in zip(outs, zip(*[m.outs for m in members], strict=True), strict=True):
            self.stacks.add(out, column)
        return True

    def cheapest_order(
        self,
        members: list[Instruction],
        columns: list[tuple[Value, ...]],
        shared: tuple[bool, ...],
    ) -> tuple[list[Instruction], list[tuple[Value, ...]], dict[int, StackPlan], float]:
        """The members in the order, of those of one operand's stack, in which stacking costs
        least; their operands by position; the plans of those, and what they cost."""
        places = self.stacks.places
        best: Any = None
        orders = [None, *[p for p, is_shared in enumerate(shared) if not is_shared]]
        for position in orders:
            if position is not None:
                if any([value not in places for value in columns[position]]):
                    continue
                members = sorted(members, key=lambda member: places[member.ins[position]][:2])
                columns = list(zip(*[member.ins for member in members], strict=True))
            plans = {p: self.stacks.plan(columns[p]) for p in range(len(columns)) if not shared[p]}
            cost = sum([plan.cost for plan in plans.values()])
            if best is None or cost < best[-1]:
                best = (members, columns, plans, cost)
            if cost <= VIEW * len(plans):
                break
        return best

    def aligned(self, stack: Value, rank: int) -> Value:
        """A stack of scalars or of other arrays of lower rank, with further axes so that it
        broadcasts against one of arrays of that rank."""
        size, *shape = stack.type.shape
        type = ArrayType((size, *(1,) * (rank - len(shape)), *shape), stack.type.dtype)
        if stack.const is not None:
            return Value(type, stack.const.reshape(type.shape))
        return self.builder.apply_one("reshape", (stack,), type, dimensions=None)

    # -- slices and concatenations ------------------------------------------------------------

    def slices(self, members: list[Instruction]) -> bool:
        """Makes a stack of slices of one array that lie on an even grid."""
        first = members[0]
        (array,), (out,) = first.ins, first.operation.outs
        if any([any(s != 1 for s in m.operation.params["strides"] or ()) for m in members]):
            return False
        by_start = {tuple(m.operation.params["start_indices"]): m for m in members}
        windows = windows_on_grid(list(by_start), array.type.shape, array_type(out))
        if windows is None or len(by_start) != len(members):
            return False
        self.builder.source = first.source
        self.stacks.single(array)
        (stack,) = self.builder.emit(windows, (array,))
        self.stacks.add(stack, [by_start[start].outs[0] for start in sorted(by_start)])
        return True

    def concatenate(self, instruction: Instruction) -> bool:
        """Makes a concatenation of one stack's members by moving the stack's axis."""
        values = instruction.ins
        if len(values) < 2 or any(value not in self.stacks.places for value in values):
            return False
        if any(value.type != values[0].type for value in values):
            return False
        plan = self.stacks.plan(values)
        if 2 * len(plan.pieces) > len(values):
            return False
        stack = self.stacks.stack(values, plan.pieces)
        dimension = instruction.operation.params["dimension"]
        axes = list(range(len(stack.type.shape)))
        axes.insert(dimension, axes.pop(0))
        moved = ArrayType(tuple([stack.type.shape[axis] for axis in axes]), stack.type.dtype)
        if dimension:
            order = tuple(axes)
            stack = self.builder.apply_one("transpose", (stack,), moved, permutation=order)
        out = (instruction.outs[0].type,)
        reshape = self.builder.operation("reshape", (moved,), out, {"dimensions": None})
        self.builder.body.append(instruction._replace(operation=reshape, ins=(stack,)))
        return True


def windows_on_grid(
    starts: Sequence[tuple[int, ...]], shape: tuple[int, ...], window: ArrayType
) -> Operation | None:
    """The operation that stacks the windows of an array at all of the given starts, in order;
    None if these are not evenly spaced along each axis or the windows overlap."""
    split: list[int] = []
    sizes: list[int] = []
    taken: list[slice] = []
    inner: list[slice] = []
    for axis, size in enumerate(window.shape):
        along = sorted({start[axis] for start in starts})
        step = along[1] - along[0] if len(along) > 1 else size
        stop = along[0] + step * len(along)
        if along != list(range(along[0], stop, step)) or step < size or stop > shape[axis]:
            return None
        sizes.append(len(along))
        split += (len(along), step)
        taken.append(slice(along[0], stop))
        inner += (slice(None), slice(size))
    if np.prod(sizes) != len(starts):
        return None
    at, within, out = tuple(taken), tuple(inner), stacked(window, len(starts))
    order = (*range(0, len(split), 2), *range(1, len(split), 2))

    def run(x: Array) -> Array:
        # Make it one piece, because parts of a stack are used many times.
        parts = x[at].reshape(split)[within].transpose(order)
        return np.ascontiguousarray(parts).reshape(out.shape)

    params = {"starts": tuple(starts)}
    array = ArrayType(shape, window.dtype)
    return Operation("windows", params, (array,), (out,), run, view=True)
