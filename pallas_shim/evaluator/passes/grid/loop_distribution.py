"""Loop distribution: makes several loops of one that carries more than counters.

Each round of a recurrence needs the round before, so its rounds can't run together. But most of
what a round computes may not be part of the recurrence:

    for t: state = exp(delta[t] * a) * state + x[t]; out[t] = sum(state * c[t])

becomes a loop that computes and keeps ``exp(delta[t] * a)``, one that computes and keeps the
states, and one that computes and stores the sums. The first and the last carry only counters, so
their rounds may run together as the cells of a grid do (scan_as_grid.py).

Loads, and views of what they load, are left in each loop that needs them. All other values that one
loop makes and another needs are kept in buffers, a row for each round.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from pallas_shim.evaluator import batched_ops, refs, registry
from pallas_shim.evaluator.analysis import induction
from pallas_shim.evaluator.analysis.alias import AliasAnalysis
from pallas_shim.evaluator.analysis.cell_tables import constants
from pallas_shim.evaluator.builder import Builder
from pallas_shim.evaluator.memory import Dynamic
from pallas_shim.evaluator.passes.grid.grid_batching import batched_loop
from pallas_shim.evaluator.passes.grid.scan_as_grid import as_grid
from pallas_shim.evaluator.passes.rewrite import with_regions
from pallas_shim.evaluator.program import (
    PURE,
    ArrayType,
    Instruction,
    Operation,
    Program,
    RefType,
    Region,
    Value,
    array_type,
    make_instruction,
)
from pallas_shim.jax_compat.state import Index, Slice

# Fewer rounds don't pay for the buffers. Larger arrays take longer than calls of NumPy.
_FEWEST_ROUNDS, _LARGEST_ARRAY = 8, 1 << 15
# The bytes of all buffers of a loop together.
_LARGEST_BUFFERS = 1 << 22


def distribute_loops(program: Program) -> Program:
    if not any(i.name == "scan" for i in program.top.walk()):
        return program
    registry.load()
    aliases = AliasAnalysis(program)
    return Program(program.name, _region(program.top, aliases, constants(program, aliases)))


def _region(
    region: Region, aliases: AliasAnalysis, held: Mapping[Value, np.ndarray]
) -> Region:
    body: list[Instruction] = []
    for instruction in region.body:
        if instruction.regions:
            parts = distributed(instruction, aliases) if instruction.name == "scan" else None
            found = parts and _with_rounds_together(parts, held)
            if found:
                body += found
                continue
            inner = [_region(one, aliases, held) for one in instruction.regions]
            instruction = with_regions(instruction, inner)
        body.append(instruction)
    return Region(region.params, tuple(body), region.results)


def _with_rounds_together(
    parts: Distributed, held: Mapping[Value, np.ndarray]
) -> list[Instruction] | None:
    """None if the rounds before the recurrence, or those after it, can't run together."""
    loops = [part for part in (parts.before, parts.recurrence, parts.after) if part]
    aliases = AliasAnalysis(Program("", Region((), (*parts.buffers, *loops), ())))
    body = [*parts.buffers]
    for part in loops:
        if part is parts.recurrence:
            body.append(part)
            continue
        loop = as_grid(part)
        batched = loop and batched_loop(loop, aliases, held, set())
        if batched is None:
            return None
        body += batched
    return body


class Distributed(NamedTuple):
    """``buffers`` allocate what the loops keep. ``before`` and ``after`` carry only counters, the
    recurrence lies between."""

    buffers: tuple[Instruction, ...]
    before: Instruction | None
    recurrence: Instruction
    after: Instruction | None


def distributed(scan: Instruction, aliases: AliasAnalysis) -> Distributed | None:
    """The loops that do the same as a scan. None if there is nothing to run together, or if that
    isn't proven to do the same."""
    params, (region,) = scan.operation.params, scan.regions
    length, count = params["length"], params["num_carry"]
    if length < _FEWEST_ROUNDS or params["reverse"] or len(scan.ins) != count:
        return None
    if len(scan.outs) != count or not _is_plain(region.body, aliases):
        return None
    counters = induction.of_scan(scan)
    rounds = next((p for p, c in counters.items() if c.step == 1 and _starts_at_zero(c)), None)
    if rounds is None or len(counters) == count:
        return None
    return _Distribution(scan, rounds, counters).loops()


def _starts_at_zero(counter: induction.Induction) -> bool:
    return counter.start.const is not None and int(counter.start.const) == 0


def _is_plain(body: Iterable[Instruction], aliases: AliasAnalysis) -> bool:
    """Whether a loop only computes with small arrays, and stores to nothing that it loads from,
    and no two of its instructions store to one buffer."""
    loaded: set[Value] = set()
    stored: list[Value] = []
    for operation, ins, outs, regions, _ in body:
        name, effects = operation.name, operation.effects
        if regions or not all(type(value.type) is ArrayType for value in outs):
            return False
        if any(array_type(value.type).nbytes > _LARGEST_ARRAY for value in outs):
            return False
        if effects is PURE:
            if not all(type(value.type) is ArrayType for value in ins):
                return False
        elif name == "get" and not (effects.writes or effects.io):
            loaded.add(aliases.root(ins[0]))
        elif name == "store" and not (effects.reads or effects.io):
            stored.append(aliases.root(ins[0]))
        else:
            return False
    return len(set(stored)) == len(stored) and loaded.isdisjoint(stored)


class _Distribution:
    """``rounds``: the parameter of the scan's region that counts the rounds from zero. Instructions
    are named by their places in the region."""

    def __init__(
        self, scan: Instruction, rounds: Value, counters: Collection[Value]
    ) -> None:
        self.scan = scan
        self.rounds = rounds
        self.counters = counters
        (self.region,) = scan.regions
        self.length = scan.operation.params["length"]
        self.builder = Builder()
        self.builder.source = scan.source
        self.cheap: set[Value] = set()  # what each loop makes for itself
        self.made: set[Value] = set()
        self.late = {param for param in self.region.params if param not in counters}
        for instruction in self.region.body:
            if not self.late.isdisjoint(instruction.ins):
                self.late.update(instruction.outs)  # depends on the recurrence
            elif self.is_cheap(instruction):
                self.cheap.update(instruction.outs)
            self.made.update(instruction.outs)

    def is_cheap(self, instruction: Instruction) -> bool:
        if any(value in self.made and value not in self.cheap for value in instruction.ins):
            return False
        scalars = not any(value.type.shape for value in instruction.outs)
        return instruction.operation.view or instruction.name == "get" or scalars

    def loops(self) -> Distributed | None:
        region, body = self.region, self.region.body
        stores = {at for at, instruction in enumerate(body) if instruction.name == "store"}
        needed = self.closure(region.results, ())
        late = {at for at in needed if not self.late.isdisjoint(body[at].ins)}
        rest = (self.closure(self.used(stores), ()) - needed) | stores
        of_rest, of_all = self.used(rest), self.used(late | rest).union(region.results)
        within = {out for at in rest for out in body[at].outs}
        values = [*region.params, *[out for instruction in body for out in instruction.outs]]
        early = [
            v for v in values
            if v in of_all and v in self.made and v not in self.late and v not in self.cheap
        ]  # fmt: skip
        states = [v for v in values if v in of_rest and v in self.late and v not in within]
        kept = [*early, *states]
        before = self.closure(early, ())
        moved = [at for at in before | (rest - stores) if self.cheap.isdisjoint(body[at].outs)]
        if len(moved) <= len(kept) or not all(value.type.shape for value in kept):
            return None
        if sum(array_type(value.type).nbytes for value in kept) * self.length > _LARGEST_BUFFERS:
            return None
        with self.builder.block() as made:
            rows: dict[Value, Value] = {}
            for value in kept:
                shape, dtype = array_type(value.type)
                type = RefType((self.length, *shape), dtype, "default")
                (rows[value],) = self.builder.emit(refs.unfilled(type), ())
        return Distributed(
            tuple(made),
            self.loop(before, {}, {v: rows[v] for v in early}) if early else None,
            self.loop(
                self.closure(region.results, early),
                {v: rows[v] for v in early},
                {v: rows[v] for v in states},
                whole=True,
            ),
            self.loop(self.closure(self.used(stores), kept) | stores, rows, {}) if rest else None,
        )

    def used(self, places: Iterable[int]) -> set[Value]:
        return {value for at in places for value in self.region.body[at].ins}

    def closure(self, values: Iterable[Value], given: Collection[Value]) -> set[int]:
        """The instructions by which values are made from those given."""
        found: set[int] = set()
        wanted = set(values).difference(given)
        for at in reversed(range(len(self.region.body))):
            instruction = self.region.body[at]
            if not wanted.isdisjoint(instruction.outs):
                found.add(at)
                wanted.update(set(instruction.ins).difference(given))
        return found

    def loop(
        self,
        chosen: Collection[int],
        given: Mapping[Value, Value],
        keeps: Mapping[Value, Value],
        *,
        whole: bool = False,
    ) -> Instruction:
        """A loop of some of the instructions. ``given`` are the buffers of values that it may load,
        and ``keeps`` those of values that it stores. ``whole``: it carries all that the scan does,
        otherwise only the counters."""
        region, scan = self.region, self.scan
        carried = [k for k, p in enumerate(region.params) if whole or p in self.counters]
        results = [region.results[k] for k in carried]
        chosen = set(chosen) | self.closure(results, given)
        new = {region.params[k]: Value(region.params[k].type) for k in carried}
        used = self.used(chosen).union(results)
        with self.builder.block() as body:
            for value, buffer in given.items():
                if value in used:
                    new[value] = self.loaded(buffer, value, new[self.rounds])
            for value, buffer in keeps.items():
                if value in new:
                    self.store(buffer, new[value], new[self.rounds])
            for at, instruction in enumerate(region.body):
                if at not in chosen:
                    continue
                operation, ins, outs, _, self.builder.source = instruction
                made = self.builder.emit(operation, [new.get(value, value) for value in ins])
                new.update(zip(outs, made, strict=True))
                for value in outs:
                    if value in keeps:
                        self.store(keeps[value], new[value], new[self.rounds])
        self.builder.source = scan.source
        params = {**scan.operation.params, "num_carry": len(carried)}
        starts = tuple([scan.ins[k] for k in carried])
        types = tuple([start.type for start in starts])
        outs = tuple([scan.outs[k] if whole else Value(scan.outs[k].type) for k in carried])
        inner = Region(
            tuple([new[region.params[k]] for k in carried]),
            tuple(body),
            tuple([new.get(value, value) for value in results]),
        )
        operation = Operation("scan", params, types, types, None, PURE, multiple=True)
        return make_instruction((operation, starts, outs, (inner,), scan.source))

    def loaded(self, buffer: Value, value: Value, at: Value) -> Value:
        path, types = _row(buffer), (buffer.type, at.type)
        operation = batched_ops.load(buffer.ref, path, types, array_type(value.type))
        return self.builder.emit(operation, (buffer, at))[0]

    def store(self, buffer: Value, value: Value, at: Value) -> None:
        types = (buffer.type, value.type, at.type)
        operation = batched_ops.store(buffer.ref, _row(buffer), types)
        self.builder.emit(operation, (buffer, value, at))


def _row(buffer: Value) -> tuple[Index]:
    """The path to the row of a buffer that an operand chooses."""
    return (Index((Dynamic(0), *[Slice(0, size, 1) for size in buffer.ref.shape[1:]])),)
