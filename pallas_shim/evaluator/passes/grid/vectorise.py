"""Vectorisation: runs each instruction of a grid's body over many cells.

A value is either shared, the same for all cells that run together, or a stack. A stack has one axis
in front for each parallel axis of the grid. The axis has size 1 if the value doesn't depend on it.
So a block that all cells of a row share is neither copied nor computed on twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pallas_shim.evaluator import batched_ops, refs
from pallas_shim.evaluator.analysis.cell_tables import Table
from pallas_shim.evaluator.analysis.dependence import Span, block_spans, index_spans
from pallas_shim.evaluator.batching_rules import LeadingAxes, common, each, over_leads
from pallas_shim.evaluator.builder import Builder
from pallas_shim.evaluator.passes.grid.layout import Layout
from pallas_shim.evaluator.passes.grid.reductions import Accumulation
from pallas_shim.evaluator.program import (
    PURE,
    ArrayType,
    Instruction,
    Operation,
    RefType,
    Type,
    Value,
    array_type,
)
from pallas_shim.evaluator.registry import BATCHING_RULES
from pallas_shim.jax_compat.state import Index, Reshape, Slice, Transpose

# Unevenly spaced blocks are copied if they take no more bytes than this.
_LARGEST_COPY = 1 << 21


class Varies(Exception):
    """Cells can't run at once along these axes of the grid: they don't all do the same."""

    def __init__(self, axes: Sequence[int]):
        super().__init__(axes)
        self.axes = tuple(axes)


class CellValue(NamedTuple):
    """A value of a cell as it is over many cells. ``lead`` is None if all cells share it.
    ``listed``: it is a ref that is a list of views."""

    value: Value
    lead: LeadingAxes = None
    listed: bool = False


class Vectoriser:
    """One attempt to run a grid's region on the cells of a layout: what stands for each value,
    and what emits instructions without regions. Those with regions: vectorise_control.py.

    ``calls`` and ``single`` count the instructions that do their work in one call, and those
    that do it cell by cell.
    """

    def __init__(
        self,
        layout: Layout,
        known: Mapping[Value, Table],
        private: Mapping[Value, Value],
        written: Callable[[Value], bool],
        accumulated: Mapping[Value, Accumulation],
        views: dict[Any, Value],
    ):
        """
        Args:
          views: the evenly spaced blocks that there are; those of the body's own are added.
          known: the tables of scalars.
          written: whether the grid writes to what a ref leads to.
          private: for each buffer that is to be one for each cell, the one that is.
          accumulated: what is accumulated, by what would be stored.
        """
        self.layout = layout
        self.known = known
        self.written = written
        self.accumulated = accumulated
        self.views = views
        self._within = {value for a in accumulated.values() for value in a.replaced}
        self.cells: dict[Value, CellValue] = {
            root: CellValue(stack, layout.lead) for root, stack in private.items()
        }
        self.builder = Builder()
        self.entry: list[Instruction] = []  # before the body: what any part of it may use
        self.body: list[Instruction] = []
        self.calls = 0
        self.single = 0
        self._over_leads: dict[Any, Operation | None] = {}
        self._each: dict[Any, Operation | None] = {}

    # -- values -----------------------------------------------------------------------------

    def cell(self, value: Value) -> CellValue:
        """The cell that stands for a value. A value from outside the grid stands for itself."""
        found = self.cells.get(value)
        if found is None:
            table = self.known.get(value)
            if table is None:
                return CellValue(value)
            found = self.cells[value] = self._looked_up(value, table)
        return found

    def _looked_up(self, value: Value, table: Table) -> CellValue:
        step = self.layout.step_of(value)
        if step is not None:
            return CellValue(step)
        at, rest, lead = self.layout.split(table)
        if lead is None:
            rest = rest.reshape(rest.shape[: len(at)])
        type = ArrayType(lead or (), value.type.dtype)
        if not at:
            return CellValue(Value(type, rest), lead)
        with self.builder.block(self.entry):
            return CellValue(self.builder.apply_one("lookup", at, type, table=rest), lead)

    def emit(self, operation: Operation, ins: Sequence[Value]) -> tuple[Value, ...]:
        self.calls += 1
        return self.builder.emit(operation, ins)

    def _counted_singly(self) -> None:
        """Counts the next instruction as one that works cell by cell."""
        self.single += 1
        self.calls -= 1

    def primitive(self, name: str, value: Value, shape: tuple[int, ...], **params: Any) -> Value:
        type = ArrayType(shape, value.type.dtype)
        if value.type == type and name != "transpose":
            return value
        operation = self.builder.operation(name, (value.type,), (type,), params)
        return self.emit(operation, (value,))[0]

    def spread(self, cell: CellValue, lead: LeadingAxes) -> Value:
        """A value as a stack over just these axes."""
        if cell.lead == lead or lead is None:
            return cell.value
        shape = cell.value.type.shape[len(cell.lead or ()) :]
        return self.primitive("broadcast_to", cell.value, (*lead, *shape))

    def require_shared(self, cell: CellValue) -> Value:
        if cell.lead is not None:
            raise Varies(self.layout.differing(cell.lead))
        return cell.value

    def give_up(self) -> Varies:
        return Varies(self.layout.axes)

    # -- instructions -----------------------------------------------------------------------

    def to_do(self, body: Sequence[Instruction]) -> Iterator[Instruction]:
        """The instructions for which something is to be emitted, where they are."""
        for instruction in body:
            outs = instruction.outs
            if outs and outs[0] in self._within:
                continue  # part of an accumulation
            if outs and outs[0] in self.known:
                continue  # looked up where it is used
            self.builder.source = instruction.source
            yield instruction

    def instruction(self, instruction: Instruction) -> None:
        """Emits an instruction without regions."""
        operation, _, outs, _, _ = instruction
        if operation.effects is PURE:
            if outs and type(outs[0].type) is RefType:
                self._view(instruction)
            else:
                self._pure(instruction)
        elif operation.effects.allocates:
            self._allocate(instruction)
        elif operation.name == "get":
            self._load(instruction)
        elif operation.name == "store":
            self._store(instruction)
        else:
            self._other(instruction)

    def _set(self, outs: Sequence[Value], values: Sequence[Value], lead: LeadingAxes) -> None:
        for out, value in zip(outs, values, strict=True):
            self.cells[out] = CellValue(value, lead)

    def _pure(self, instruction: Instruction) -> None:
        operation, ins, outs, _, _ = instruction
        cells = list(map(self.cell, ins))
        leads = tuple([cell.lead for cell in cells])
        lead = common(leads)
        if lead is None:
            self._set(outs, self.emit(operation, [cell.value for cell in cells]), None)
            return
        if not all(type(t) is ArrayType for t in (*operation.ins, *operation.outs)):
            raise self.give_up()
        operation = self._with_predicates_of_elements(operation)
        form = BATCHING_RULES.get(operation.name)
        many = None
        if form is not None:
            if not (form.broadcasts or form.ones):
                leads = tuple(
                    [None if one is None and i in form.unstacked else lead
                     for i, one in enumerate(leads)]
                )  # fmt: skip
            key = (operation, leads)
            if key not in self._over_leads:
                self._over_leads[key] = over_leads(operation, leads)
            many = self._over_leads[key]
        if form is None or many is None:
            self._set(outs, self._one_by_one(operation, cells), lead)
            return
        if form.broadcasts:
            rank = max([len(t.shape) for t in operation.ins])
            values = [self._aligned(cell, rank) for cell in cells]
        elif form.ones:
            ones = (1,) * len(lead)
            values = [
                cell.value if cell.lead else
                self.primitive("reshape", cell.value, (*ones, *cell.value.type.shape),
                                dimensions=None)
                for cell in cells
            ]  # fmt: skip
        else:
            values = [self.spread(cell, to) for cell, to in zip(cells, leads, strict=True)]
        self._set(outs, self.emit(many, values), lead)

    def _with_predicates_of_elements(self, operation: Operation) -> Operation:
        """A selection by one predicate as one by a predicate for each element, which the
        operands then broadcast to."""
        if operation.name != "select_n" or operation.ins[0].shape == operation.ins[1].shape:
            return operation
        which, *cases = map(array_type, operation.ins)
        ins = (ArrayType(cases[0].shape, which.dtype), *cases)
        return self.builder.operation("select_n", ins, operation.outs, operation.params)

    def _aligned(self, cell: CellValue, rank: int) -> Value:
        """A stack that broadcasts against stacks of values of the given rank."""
        if cell.lead is None:
            return cell.value
        shape = cell.value.type.shape[len(cell.lead) :]
        shape = (*cell.lead, *(1,) * (rank - len(shape)), *shape)
        return self.primitive("reshape", cell.value, shape, dimensions=None)

    def _one_by_one(self, operation: Operation, cells: Sequence[CellValue]) -> tuple[Value, ...]:
        leads = tuple([cell.lead for cell in cells])
        key = (operation, leads)
        if key not in self._each:
            self._each[key] = each(operation, leads)
        single = self._each[key]
        if single is None:
            raise self.give_up()
        self._counted_singly()
        return self.emit(single, [cell.value for cell in cells])

    def _other(self, instruction: Instruction) -> None:
        """An effect that isn't known here: nothing for many cells can be made of it."""
        operation, ins, outs, _, _ = instruction
        cells = list(map(self.cell, ins))
        effects = operation.effects
        if effects.writes or effects.io or common([cell.lead for cell in cells]) is not None:
            raise self.give_up()
        self._set(outs, self.emit(operation, [cell.value for cell in cells]), None)

    # -- memory -----------------------------------------------------------------------------

    def _ref_type(self, type: Type, lead: LeadingAxes) -> RefType:
        assert isinstance(type, RefType), type
        return type._replace(shape=(*(lead or ()), *type.shape))

    def _allocate(self, instruction: Instruction) -> None:
        operation, ins, (out,), _, _ = instruction
        if ins or "fill" not in operation.params:
            raise self.give_up()
        lead = self.layout.lead
        made = refs.allocation(self._ref_type(out.type, lead), operation.params["fill"])
        self._set((out,), self.emit(made, ()), lead)

    def _view(self, instruction: Instruction) -> None:
        operation, ins, (out,), _, _ = instruction
        cells = list(map(self.cell, ins))
        leads = [cell.lead for cell in cells]
        spans = block_spans(instruction, self.known, self.layout.rank)
        if spans is None or cells[0].lead is not None:
            if common(leads) is not None:
                raise self.give_up()
            self._set((out,), self.emit(operation, [cell.value for cell in cells]), None)
            return
        found = self._evenly(cells[0].value, spans, out.type)
        if found is None:
            lead = common(leads)
            if lead is None:
                self._set((out,), self.emit(operation, [cell.value for cell in cells]), None)
                return
            types = tuple([cell.value.type for cell in cells])
            type = self._ref_type(out.type, lead)
            nbytes = math.prod(type.shape) * type.dtype.itemsize
            listed = nbytes > _LARGEST_COPY or self.written(ins[0])
            make = batched_ops.each_block if listed else batched_ops.copied_blocks
            if listed:
                self._counted_singly()
            made = make(operation.params["block"], types, type, leads)
            (value,) = self.emit(made, [cell.value for cell in cells])
            found = CellValue(value, lead, listed)
        self.cells[out] = found

    def _evenly(self, ref: Value, spans: Sequence[Span], type: Type) -> CellValue | None:
        """The parts of a shared ref that the cells see, as one view, if they lie evenly."""
        placed = self.layout.evenly(spans)
        if placed is None:
            return None
        at, starts, steps, lead = placed
        kept = tuple([d for d, span in enumerate(spans) if span.kept])
        out = self._ref_type(type, lead)
        if not at and lead is None and ref.type == out:
            return CellValue(ref)
        ins = (ref.type, *[step.type for step in at])
        params = {"starts": starts, "steps": steps, "kept": kept}
        key = (ref, *at, *[start.tobytes() for start in starts], steps, kept, out)
        value = self.views.get(key)
        if value is None:
            view = self.builder.operation("blocks", ins, (out,), params)
            (value,) = self.emit(view, (ref, *at))
            if self.builder.body is self.body:
                self.views[key] = value
        return CellValue(value, lead)

    def _access(
        self, ref: Value, path: tuple[Any, ...], leaves: Sequence[Value]
    ) -> tuple[CellValue, RefType, tuple[Any, ...], list[CellValue]]:
        """A ref and the path in it, as a stacked ref and the path in each member if the path
        starts at a place that depends on the cell. The type is a member's."""
        cell, places = self.cell(ref), list(map(self.cell, leaves))
        if cell.lead is None and common([place.lead for place in places]) is not None:
            first, *rest = path
            if isinstance(first, Index):
                spans = index_spans(first, ref.ref.shape, leaves, self.known, self.layout.rank)
                shape = tuple([dim.size for dim in first.dims if isinstance(dim, Slice)])
                type = ref.ref._replace(shape=shape)
                moved = self._evenly(cell.value, spans, type)
                used = leaves_of(rest)
                if moved is not None and all(places[leaf].lead is None for leaf in used):
                    order = {leaf: i for i, leaf in enumerate(used)}
                    return moved, type, renumbered(rest, order), [places[leaf] for leaf in used]
        return cell, ref.ref, path, places

    def _load(self, instruction: Instruction) -> None:
        operation, (ref, *leaves), (out,), _, _ = instruction
        if type(out.type) is not ArrayType:
            raise self.give_up()
        cell, member, path, places = self._access(ref, operation.params["path"], leaves)
        leads = [cell.lead, *[place.lead for place in places]]
        lead = common(leads)
        values = [cell.value, *[place.value for place in places]]
        types = tuple([value.type for value in values])
        shape = ArrayType((*(lead or ()), *out.type.shape), out.type.dtype)
        if cell.listed or common(leads[1:]) is not None:
            made = batched_ops.each_load(member, path, types, shape, leads, cell.listed)
            if batched_ops.block_of_all(member, path, leads) is None:
                self._counted_singly()
        else:
            if path == operation.params["path"] and lead is None:
                made = operation
            else:
                path = behind(path, cell.lead)
                made = self.builder.once(
                    ("get", types, path),
                    lambda: batched_ops.load(cell.value.ref, path, types, shape),
                )
        self._set((out,), self.emit(made, values), lead)

    def _store(self, instruction: Instruction) -> None:
        operation, (ref, stored, *leaves), _, _, _ = instruction
        if type(stored.type) is not ArrayType:
            raise self.give_up()
        if stored in self.accumulated:
            self._accumulate(instruction, self.accumulated[stored])
            return
        cell, member, path, places = self._access(ref, operation.params["path"], leaves)
        value = self.cell(stored)
        leads = [cell.lead, value.lead, *[place.lead for place in places]]
        values = [cell.value, value.value, *[place.value for place in places]]
        types = tuple([v.type for v in values])
        if common([cell.lead, *leads[2:]]) != self.layout.lead:
            raise self.give_up()  # cells that write to the same place
        if cell.listed or common(leads[2:]) is not None:
            made = batched_ops.each_store(member, path, types, leads, cell.listed)
            self._counted_singly()
        else:
            path = behind(path, cell.lead)
            made = self.builder.once(
                ("store", types, path), lambda: batched_ops.store(cell.value.ref, path, types)
            )
        self.emit(made, values)

    def _accumulate(self, instruction: Instruction, accumulation: Accumulation) -> None:
        operation, (ref, stored, *leaves), _, _, _ = instruction
        target, value, *places = map(self.cell, (ref, accumulation.value, *leaves))
        if target.lead is not None:
            raise self.give_up()
        rank = len(array_type(stored.type).shape)
        values = [target.value, self._aligned(value, rank), *[place.value for place in places]]
        types = tuple([v.type for v in values])
        rounds = math.prod(self.layout.sizes)
        path = operation.params["path"]
        self.emit(batched_ops.accumulate(accumulation.ufunc, path, types, rounds), values)


# -- paths ------------------------------------------------------------------------------------


def behind(path: tuple[Any, ...], lead: LeadingAxes) -> tuple[Any, ...]:
    """A path in each member of a stacked ref."""
    if not lead:
        return path
    k = len(lead)
    steps: list[Any] = []
    for step in path:
        if isinstance(step, Index):
            step = Index((*[Slice(0, size, 1) for size in lead], *step.dims))
        elif isinstance(step, Reshape):
            step = Reshape((*lead, *step.shape))
        elif isinstance(step, Transpose):
            step = Transpose((*range(k), *[d + k for d in step.permutation]))
        steps.append(step)
    return tuple(steps)


def leaves_of(path: Sequence[Any]) -> list[int]:
    """The positions of the leaves that a path's dynamic indices are, in order."""
    dims = [at for step in path if isinstance(step, Index) for at in step.dims]
    places = [at.start if isinstance(at, Slice) else at for at in dims]
    return sorted({place.leaf for place in places if hasattr(place, "leaf")})


def renumbered(path: Sequence[Any], order: Mapping[int, int]) -> tuple[Any, ...]:
    """A path whose dynamic indices have other positions among its leaves."""

    def index(i: Any) -> Any:
        if isinstance(i, Slice):
            return i._replace(start=index(i.start))
        return i._replace(leaf=order[i.leaf]) if hasattr(i, "leaf") else i

    return tuple(
        [Index(tuple(map(index, s.dims))) if isinstance(s, Index) else s for s in path]
    )
