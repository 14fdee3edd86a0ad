"""Vectorises the branches and loops of a grid's body.

A loop stays a loop. A carried value is a stack along the axes along which its start or any round
differs.

All cells that run together take the same branch and loop equally often, unless the divergent code
is small and pure; then every cell executes it and the result is masked. All branches run, and each
cell keeps the results of its own. A loop goes on until no cell wants another round, and cells that
are done keep their values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pallas_shim.evaluator.batching_rules import LeadingAxes, array_type, common
from pallas_shim.evaluator.passes.grid.vectorise import Cell, Vectoriser
from pallas_shim.evaluator.program import (
    PURE,
    ArrayType,
    Instruction,
    Operation,
    Region,
    Value,
    branch_taken,
    make_instruction,
)
from pallas_shim.evaluator.specialise import specialise


class ControlVectoriser(Vectoriser):
    """One attempt to run a grid's region on the cells of a layout."""

    def structured(self, instruction: Instruction) -> None:
        match instruction.name:
            case "switch":
                self._switch(instruction)
            case "scan":
                self._scan(instruction)
            case "while":
                self._while(instruction)
            case "grid":
                self._loop(instruction)
            case _:
                raise self.give_up()

    def _region(
        self, region: Region, given: Sequence[Cell], finish: Callable[[list[Cell]], list[Value]]
    ) -> Region:
        """A region whose parameters are like ``given``; ``finish`` makes its results."""
        params = [Value(cell.value.type) for cell in given]
        for old, new, cell in zip(region.params, params, given, strict=True):
            self.cells[old] = Cell(new, cell.lead)
        outer, self.body = self.body, []
        source = self.source
        self.run(region.body)
        results = finish(list(map(self.cell, region.results)))
        body, self.body, self.source = self.body, outer, source
        return Region(tuple(params), tuple(body), tuple(results))

    def _replace(
        self, instruction: Instruction, ins: Sequence[Value], outs: Sequence[Value],
        regions: Sequence[Region],
    ) -> None:  # fmt: skip
        operation = instruction.operation
        types, out_types = tuple([v.type for v in ins]), tuple([v.type for v in outs])
        made = Operation(
            operation.name, operation.params, types, out_types, None, PURE, multiple=True
        )
        self.body.append(
            make_instruction((made, tuple(ins), tuple(outs), tuple(regions), instruction.source))
        )

    def _switch(self, instruction: Instruction) -> None:
        (index,), outs = instruction.ins, instruction.outs
        if self.cell(index).lead is not None and _may_run_for_nothing(instruction):
            self._take_all(instruction)
            return
        which = self.require_shared(self.cell(index))
        if which.const is not None:
            taken = instruction.regions[branch_taken(int(which.const), len(instruction.regions))]
            self.run(taken.body)
            self.cells.update(zip(outs, map(self.cell, taken.results), strict=True))
            return
        leads: list[LeadingAxes] = [None] * len(outs)

        def note(results: list[Cell]) -> list[Value]:
            for i, cell in enumerate(results):
                leads[i] = common([leads[i], cell.lead])
            return [cell.value for cell in results]

        regions = [self._region(region, (), note) for region in instruction.regions]
        found = []
        for region, old in zip(regions, instruction.regions, strict=True):
            outer, self.body = self.body, list(region.body)
            cells = list(map(self.cell, old.results))
            results = tuple(map(self.spread, cells, leads))
            found.append(Region((), tuple(self.body), results))
            self.body = outer
        types = [value.type for value in found[0].results]
        values = [Value(t) for t in types]
        self._replace(instruction, (which,), values, found)
        for out, value, lead in zip(outs, values, leads, strict=True):
            self.cells[out] = Cell(value, lead)

    def _take_all(self, switch: Instruction) -> None:
        for region in switch.regions:
            self.run(region.body)
        results = zip(*[region.results for region in switch.regions], strict=True)
        for out, cases in zip(switch.outs, results, strict=True):
            self.cells[out] = self._selected(switch.ins[0], cases)

    def _carried(
        self, carry: list[Cell], regions: Callable[[list[Cell], list[LeadingAxes]], list[Region]]
    ) -> tuple[list[Cell], list[Region]]:
        """A loop's initial values and its regions, which are made again while its results
        differ along axes along which what it starts with doesn't."""
        leads = [cell.lead for cell in carry]
        while True:
            counted = self.calls, self.single
            shaped = [
                Cell(Value(_under(lead, cell)), lead)
                for cell, lead in zip(carry, leads, strict=True)
            ]
            after: list[LeadingAxes] = list(leads)
            made = regions(shaped, after)
            if after == leads:
                start = [
                    Cell(self.spread(cell, lead), lead)
                    for cell, lead in zip(carry, leads, strict=True)
                ]
                return start, made
            leads = after
            self.calls, self.single = counted

    def _scan(self, instruction: Instruction) -> None:
        params, (region,) = instruction.operation.params, instruction.regions
        count = params["num_carry"]
        cells = list(map(self.cell, instruction.ins))
        carry, xs = cells[:count], [self._in_front(cell) for cell in cells[count:]]
        rows = [
            Cell(Value(ArrayType(x.value.type.shape[1:], x.value.type.dtype)), x.lead) for x in xs
        ]
        ys_leads: list[LeadingAxes] = []

        def regions(shaped: list[Cell], after: list[LeadingAxes]) -> list[Region]:
            def finish(results: list[Cell]) -> list[Value]:
                ys_leads[:] = [cell.lead for cell in results[count:]]
                for i, cell in enumerate(results[:count]):
                    after[i] = common([after[i], cell.lead])
                return [
                    *map(self.spread, results[:count], after),
                    *[cell.value for cell in results[count:]],
                ]

            return [self._region(region, [*shaped, *rows], finish)]

        start, made = self._carried(carry, regions)
        results = made[0].results
        values = [Value(v.type) for v in results[:count]]
        values += [
            Value(ArrayType((params["length"], *v.type.shape), v.type.dtype))
            for v in results[count:]
        ]
        self._replace(instruction, [cell.value for cell in (*start, *xs)], values, made)
        leads = [*[cell.lead for cell in start], *ys_leads]
        for i, (out, value, lead) in enumerate(zip(instruction.outs, values, leads, strict=True)):
            if i >= count and lead is not None:
                rank, k = len(value.type.shape), len(lead)
                value = self._transposed(value, (*range(1, k + 1), 0, *range(k + 1, rank)))
            self.cells[out] = Cell(value, lead)

    def _in_front(self, cell: Cell) -> Cell:
        """A stack with its lead behind its first dimension, which a scan goes along."""
        if cell.lead is None:
            return cell
        k, rank = len(cell.lead), len(cell.value.type.shape)
        return Cell(self._transposed(cell.value, (k, *range(k), *range(k + 1, rank))), cell.lead)

    def _transposed(self, value: Value, order: tuple[int, ...]) -> Value:
        shape = tuple([value.type.shape[d] for d in order])
        return self.primitive("transpose", value, shape, permutation=order)

    def _while(self, instruction: Instruction) -> None:
        condition, body = instruction.regions
        wanted: list[Cell] = []

        def regions(shaped: list[Cell], after: list[LeadingAxes]) -> list[Region]:
            def finish(results: list[Cell]) -> list[Value]:
                for i, cell in enumerate(results):
                    after[i] = common([after[i], cell.lead])
                return list(map(self.spread, results, after))

            def answer(results: list[Cell]) -> list[Value]:
                wanted[:] = results
                return [results[0].value if for_nothing else self.require_shared(results[0])]

            going = self._region(condition, shaped, answer)
            return [going, self._region(body, shaped, finish)]

        carry = list(map(self.cell, instruction.ins))
        for_nothing = _may_run_for_nothing(instruction)
        start, made = self._carried(carry, regions)
        if wanted[0].lead is not None:
            start, made = self._carried(*self._until_none_is_left(condition, body, carry))
        values = [Value(cell.value.type) for cell in start]
        self._replace(instruction, [cell.value for cell in start], values, made)
        for out, value, cell in zip(instruction.outs, values, start, strict=False):
            self.cells[out] = Cell(value, cell.lead)

    def _until_none_is_left(
        self, condition: Region, body: Region, carry: list[Cell]
    ) -> tuple[list[Cell], Callable[[list[Cell], list[LeadingAxes]], list[Region]]]:
        """A loop that cells leave one by one: it carries who is left, too. As for `_carried`."""
        left = Value(condition.results[0].type)

        def wants(carried: Sequence[Cell]) -> Cell:
            self.cells.update(zip(condition.params, carried, strict=True))
            self.run(condition.body)
            return self.cell(condition.results[0])

        def regions(shaped: list[Cell], after: list[LeadingAxes]) -> list[Region]:
            def any_left(results: list[Cell]) -> list[Value]:
                (cell,) = results
                axes = tuple(range(len(cell.lead or ())))
                return [self.primitive("reduce_or", cell.value, (), axes=axes, out_sharding=None)]

            def finish(results: list[Cell]) -> list[Value]:
                cases = zip(body.params, body.results, strict=True)
                new = [self._selected(left, case) for case in cases]
                new.append(wants(new))
                for i, cell in enumerate(new):
                    after[i] = common([after[i], cell.lead])
                return list(map(self.spread, new, after))

            params = (*body.params, left)
            return [
                self._region(Region(params, (), (left,)), shaped, any_left),
                self._region(Region(params, body.body, ()), shaped, finish),
            ]

        return [*carry, wants(carry)], regions

    def _selected(self, which: Value, cases: Sequence[Value]) -> Cell:
        """The one of several values that each cell selects."""
        type, out = cases[0].type, Value(cases[0].type)
        types = (which.type, *[case.type for case in cases])
        select = specialise("select_n", types, (type,), {}, False)
        self.run([make_instruction((select, (which, *cases), (out,), (), self.source))])
        return self.cell(out)

    def _loop(self, instruction: Instruction) -> None:
        """A grid inside the grid."""
        (region,) = instruction.regions
        sizes = [self.require_shared(self.cell(size)) for size in instruction.ins]
        indices = [Cell(Value(index.type)) for index in region.params]
        made = self._region(region, indices, lambda results: [])
        self._replace(instruction, sizes, (), [made])


# The bytes that a cell may compute without need. Computing them takes no longer than another call.
_LITTLE = 1 << 12


def _may_run_for_nothing(instruction: Instruction) -> bool:
    """Whether the regions may also be run for cells that don't want them: nothing is seen of
    that, it costs little, and comes to an end."""
    for region in instruction.regions:
        for value in (*region.params, *region.results):
            if not isinstance(value.type, ArrayType) or value.type.nbytes > _LITTLE:
                return False
        for inner in region.walk():
            effects = inner.operation.effects
            if inner.name == "while" or effects.writes or effects.io or effects.allocates:
                return False
            if any(isinstance(t, ArrayType) and t.nbytes > _LITTLE for t in inner.operation.outs):
                return False
    return True


def _under(lead: LeadingAxes, cell: Cell) -> ArrayType:
    """The type of a stack with a lead of what another is a stack of."""
    shape, dtype = array_type(cell.value.type)
    return ArrayType((*(lead or ()), *shape[len(cell.lead or ()) :]), dtype)
