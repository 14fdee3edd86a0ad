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

from pallas_shim.evaluator.batching_rules import LeadingAxes, common
from pallas_shim.evaluator.passes.grid.vectorise import CellValue, Vectoriser
from pallas_shim.evaluator.program import (
    PURE,
    ArrayType,
    Instruction,
    Operation,
    Region,
    Value,
    array_type,
    branch_taken,
    make_instruction,
)


def run(on: Vectoriser, body: Sequence[Instruction]) -> None:
    """Emits for all cells at once what a body does.

    Raises:
      Varies: the cells don't all do the same.
    """
    for instruction in on.to_do(body):
        if not instruction.regions:
            on.instruction(instruction)
            continue
        match instruction.name:
            case "switch":
                _switch(on, instruction)
            case "scan":
                _scan(on, instruction)
            case "while":
                _while(on, instruction)
            case "grid":
                _loop(on, instruction)
            case _:
                raise on.give_up()


def _region(
    on: Vectoriser,
    region: Region,
    given: Sequence[CellValue],
    finish: Callable[[list[CellValue]], list[Value]],
) -> Region:
    """A region whose parameters are like ``given``; ``finish`` makes its results."""
    params = [Value(cell.value.type) for cell in given]
    for old, new, cell in zip(region.params, params, given, strict=True):
        on.cells[old] = CellValue(new, cell.lead)
    source = on.builder.source
    with on.builder.block() as body:
        run(on, region.body)
        results = finish(list(map(on.cell, region.results)))
    on.builder.source = source
    return Region(tuple(params), tuple(body), tuple(results))


def _replace(
    on: Vectoriser, instruction: Instruction, ins: Sequence[Value], outs: Sequence[Value],
    regions: Sequence[Region],
) -> None:  # fmt: skip
    operation = instruction.operation
    types, out_types = tuple([v.type for v in ins]), tuple([v.type for v in outs])
    made = Operation(operation.name, operation.params, types, out_types, None, PURE, multiple=True)
    on.builder.body.append(
        make_instruction((made, tuple(ins), tuple(outs), tuple(regions), instruction.source))
    )


def _switch(on: Vectoriser, instruction: Instruction) -> None:
    (index,), outs = instruction.ins, instruction.outs
    if on.cell(index).lead is not None and _may_run_for_nothing(instruction):
        _take_all(on, instruction)
        return
    which = on.require_shared(on.cell(index))
    if which.const is not None:
        taken = instruction.regions[branch_taken(int(which.const), len(instruction.regions))]
        run(on, taken.body)
        on.cells.update(zip(outs, map(on.cell, taken.results), strict=True))
        return
    leads: list[LeadingAxes] = [None] * len(outs)

    def note(results: list[CellValue]) -> list[Value]:
        for i, cell in enumerate(results):
            leads[i] = common([leads[i], cell.lead])
        return [cell.value for cell in results]

    regions = [_region(on, region, (), note) for region in instruction.regions]
    found = []
    for region, old in zip(regions, instruction.regions, strict=True):
        with on.builder.block(list(region.body)) as body:
            cells = list(map(on.cell, old.results))
            results = tuple(map(on.spread, cells, leads))
        found.append(Region((), tuple(body), results))
    types = [value.type for value in found[0].results]
    values = [Value(t) for t in types]
    _replace(on, instruction, (which,), values, found)
    for out, value, lead in zip(outs, values, leads, strict=True):
        on.cells[out] = CellValue(value, lead)


def _take_all(on: Vectoriser, switch: Instruction) -> None:
    for region in switch.regions:
        run(on, region.body)
    results = zip(*[region.results for region in switch.regions], strict=True)
    for out, cases in zip(switch.outs, results, strict=True):
        on.cells[out] = _selected(on, switch.ins[0], cases)


def _carried(
    on: Vectoriser,
    carry: list[CellValue],
    regions: Callable[[list[CellValue], list[LeadingAxes]], list[Region]],
) -> tuple[list[CellValue], list[Region]]:
    """A loop's initial values and its regions, which are made again while its results
    differ along axes along which what it starts with doesn't."""
    leads = [cell.lead for cell in carry]
    while True:
        counted = on.calls, on.single
        shaped = [
            CellValue(Value(_under(lead, cell)), lead)
            for cell, lead in zip(carry, leads, strict=True)
        ]
        after: list[LeadingAxes] = list(leads)
        made = regions(shaped, after)
        if after == leads:
            start = [
                CellValue(on.spread(cell, lead), lead)
                for cell, lead in zip(carry, leads, strict=True)
            ]
            return start, made
        leads = after
        on.calls, on.single = counted


def _scan(on: Vectoriser, instruction: Instruction) -> None:
    params, (region,) = instruction.operation.params, instruction.regions
    count = params["num_carry"]
    cells = list(map(on.cell, instruction.ins))
    carry, xs = cells[:count], [_in_front(on, cell) for cell in cells[count:]]
    rows = [
        CellValue(Value(ArrayType(x.value.type.shape[1:], x.value.type.dtype)), x.lead) for x in xs
    ]
    ys_leads: list[LeadingAxes] = []

    def regions(shaped: list[CellValue], after: list[LeadingAxes]) -> list[Region]:
        def finish(results: list[CellValue]) -> list[Value]:
            ys_leads[:] = [cell.lead for cell in results[count:]]
            for i, cell in enumerate(results[:count]):
                after[i] = common([after[i], cell.lead])
            return [
                *map(on.spread, results[:count], after),
                *[cell.value for cell in results[count:]],
            ]

        return [_region(on, region, [*shaped, *rows], finish)]

    start, made = _carried(on, carry, regions)
    results = made[0].results
    values = [Value(v.type) for v in results[:count]]
    values += [
        Value(ArrayType((params["length"], *v.type.shape), v.type.dtype))
        for v in results[count:]
    ]
    _replace(on, instruction, [cell.value for cell in (*start, *xs)], values, made)
    leads = [*[cell.lead for cell in start], *ys_leads]
    for i, (out, value, lead) in enumerate(zip(instruction.outs, values, leads, strict=True)):
        if i >= count and lead is not None:
            rank, k = len(value.type.shape), len(lead)
            value = _transposed(on, value, (*range(1, k + 1), 0, *range(k + 1, rank)))
        on.cells[out] = CellValue(value, lead)


def _in_front(on: Vectoriser, cell: CellValue) -> CellValue:
    """A stack with its lead behind its first dimension, which a scan goes along."""
    if cell.lead is None:
        return cell
    k, rank = len(cell.lead), len(cell.value.type.shape)
    return CellValue(_transposed(on, cell.value, (k, *range(k), *range(k + 1, rank))), cell.lead)


def _transposed(on: Vectoriser, value: Value, order: tuple[int, ...]) -> Value:
    shape = tuple([value.type.shape[d] for d in order])
    return on.primitive("transpose", value, shape, permutation=order)


def _while(on: Vectoriser, instruction: Instruction) -> None:
    condition, body = instruction.regions
    wanted: list[CellValue] = []

    def regions(shaped: list[CellValue], after: list[LeadingAxes]) -> list[Region]:
        def finish(results: list[CellValue]) -> list[Value]:
            for i, cell in enumerate(results):
                after[i] = common([after[i], cell.lead])
            return list(map(on.spread, results, after))

        def answer(results: list[CellValue]) -> list[Value]:
            wanted[:] = results
            return [results[0].value if for_nothing else on.require_shared(results[0])]

        going = _region(on, condition, shaped, answer)
        return [going, _region(on, body, shaped, finish)]

    carry = list(map(on.cell, instruction.ins))
    for_nothing = _may_run_for_nothing(instruction)
    start, made = _carried(on, carry, regions)
    if wanted[0].lead is not None:
        start, made = _carried(on, *_until_none_is_left(on, condition, body, carry))
    values = [Value(cell.value.type) for cell in start]
    _replace(on, instruction, [cell.value for cell in start], values, made)
    for out, value, cell in zip(instruction.outs, values, start, strict=False):
        on.cells[out] = CellValue(value, cell.lead)


def _until_none_is_left(
    on: Vectoriser, condition: Region, body: Region, carry: list[CellValue]
) -> tuple[list[CellValue], Callable[[list[CellValue], list[LeadingAxes]], list[Region]]]:
    """A loop that cells leave one by one: it carries who is left, too. As for `_carried`."""
    left = Value(condition.results[0].type)

    def wants(carried: Sequence[CellValue]) -> CellValue:
        on.cells.update(zip(condition.params, carried, strict=True))
        run(on, condition.body)
        return on.cell(condition.results[0])

    def regions(shaped: list[CellValue], after: list[LeadingAxes]) -> list[Region]:
        def any_left(results: list[CellValue]) -> list[Value]:
            (cell,) = results
            axes = tuple(range(len(cell.lead or ())))
            return [on.primitive("reduce_or", cell.value, (), axes=axes, out_sharding=None)]

        def finish(results: list[CellValue]) -> list[Value]:
            cases = zip(body.params, body.results, strict=True)
            new = [_selected(on, left, case) for case in cases]
            new.append(wants(new))
            for i, cell in enumerate(new):
                after[i] = common([after[i], cell.lead])
            return list(map(on.spread, new, after))

        params = (*body.params, left)
        return [
            _region(on, Region(params, (), (left,)), shaped, any_left),
            _region(on, Region(params, body.body, ()), shaped, finish),
        ]

    return [*carry, wants(carry)], regions


def _selected(on: Vectoriser, which: Value, cases: Sequence[Value]) -> CellValue:
    """The one of several values that each cell selects."""
    type, out = cases[0].type, Value(cases[0].type)
    types = (which.type, *[case.type for case in cases])
    select = on.builder.operation("select_n", types, (type,), {})
    run(on, [make_instruction((select, (which, *cases), (out,), (), on.builder.source))])
    return on.cell(out)


def _loop(on: Vectoriser, instruction: Instruction) -> None:
    """A grid inside the grid."""
    (region,) = instruction.regions
    sizes = [on.require_shared(on.cell(size)) for size in instruction.ins]
    indices = [CellValue(Value(index.type)) for index in region.params]
    made = _region(on, region, indices, lambda results: [])
    _replace(on, instruction, sizes, (), [made])


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


def _under(lead: LeadingAxes, cell: CellValue) -> ArrayType:
    """The type of a stack with a lead of what another is a stack of."""
    shape, dtype = array_type(cell.value.type)
    return ArrayType((*(lead or ()), *shape[len(cell.lead or ()) :]), dtype)
