"""Writes loops and branches as Python's own."""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Iterable

import numpy as np

from pallas_shim.evaluator import progress
from pallas_shim.evaluator.analysis import induction, ranges
from pallas_shim.evaluator.analysis.liveness import dead_after
from pallas_shim.evaluator.analysis.ranges import Range
from pallas_shim.evaluator.codegen import numbers
from pallas_shim.evaluator.codegen.instructions import write
from pallas_shim.evaluator.codegen.source import Emitted, PythonSource
from pallas_shim.evaluator.frames import loop_name
from pallas_shim.evaluator.program import Instruction, Region, Value


def function(
    loop: Instruction, slot: Callable[[Value], int], known: dict[str, types.CodeType]
) -> Emitted:
    """The loop as a function. ``slot``, ``known``: see `codegen.emit`."""
    to = PythonSource(slot)
    to.at = loop
    _structured(to, loop)
    return to.compiled(loop, known)


def _structured(to: PythonSource, instruction: Instruction) -> None:
    _STRUCTURED[instruction.name](to, instruction)
    to.at = instruction


def _inside(to: PythonSource, region: Region, after: Callable[[], None]) -> None:
    """A region as a block of its own, and the lines that ``after`` adds to it."""
    to.indent += 1
    before = to.lines
    dead = dead_after(region.body, region.results)
    for position, instruction in enumerate(region.body):
        to.at = instruction
        if instruction.regions:
            _structured(to, instruction)
        else:
            write(to, instruction)
        for value in dead.get(position, ()):
            to.line(f"{to.names[value]} = None")
    after()
    if to.lines == before:
        to.line("pass")
    to.indent -= 1


def _move(to: PythonSource, sources: Iterable[Value], targets: Iterable[Value]) -> None:
    """Assigns all at once; a target without a variable gets one."""
    pairs = [(to.names.get(t) or to.fresh(t), to.text(s))
             for s, t in zip(sources, targets, strict=True)]  # fmt: skip
    pairs = [(target, source) for target, source in pairs if target != source]
    if pairs:
        targets_text, sources_text = map(", ".join, zip(*pairs, strict=True))
        to.line(f"{targets_text} = {sources_text}")


def _scan(to: PythonSource, scan: Instruction) -> None:
    params, (region,) = scan.operation.params, scan.regions
    length, reverse, count = params["length"], params["reverse"], params["num_carry"]
    carried, rows = region.params[:count], region.params[count:]
    _move(to, scan.ins[:count], carried)
    for param, counter in induction.of_scan(scan).items():
        found = counter.range(to.limits(counter.start), length)
        if found is not None:
            to.known_limits[param] = found
    order = f"range({length - 1}, -1, -1)" if reverse else f"range({length})"
    stacks = [
        (to.fresh(out), out.type, result)
        for out, result in zip(scan.outs[count:], region.results[count:], strict=True)
    ]
    for name, type, _ in stacks:
        make = functools.partial(np.empty, type.shape, type.dtype)
        to.line(f"{name} = {to.given(make)}()")
    at = to.fresh() if stacks or not rows else None
    taken = [
        to.array(source)
        + ("[::-1]" if reverse else "")
        + (".tolist()" if numbers.kind(row.type) else "")
        for source, row in zip(scan.ins[count:], rows, strict=True)
    ]
    variables = [*([at] if at else []), *map(to.fresh, rows)]
    sources = [*([order] if at else []), *taken]
    over = sources[0] if len(sources) == 1 else f"zip({', '.join(sources)})"
    if progress.may_show(length):
        shown = functools.partial(progress.over_rounds, functools.partial(loop_name, scan), length)
        over = f"{to.given(shown)}({over})"
    to.line(f"for {', '.join(variables)} in {over}:")

    def after() -> None:
        to.at = scan
        for name, _, result in stacks:
            to.line(f"{name}[{at}] = {to.text(result)}")
        _move(to, region.results[:count], carried)

    inside_long = to.inside_long
    to.inside_long = inside_long or progress.may_show(length)
    _inside(to, region, after)
    to.inside_long = inside_long
    for out, param in zip(scan.outs, carried, strict=False):
        to.names[out] = to.names[param]


def _while(to: PythonSource, loop: Instruction) -> None:
    condition, body = loop.regions
    skipped = _open_while(to, loop)
    if skipped is not None:
        body = _without(body, skipped)

    def check() -> None:
        to.at = loop
        to.line(f"if not {to.text(condition.results[0])}: break")

    _inside(to, condition, check)
    for param, same in zip(body.params, condition.params, strict=True):
        to.names[param] = to.names[same]
    _limit_compared(to, loop)

    def go_on() -> None:
        to.at = loop
        _move(to, body.results, condition.params)

    inside_long, to.inside_long = to.inside_long, True
    _inside(to, body, go_on)
    to.inside_long = inside_long
    if not inside_long:
        to.at = loop
        to.line("else: continue")
        to.line("break")
        to.indent -= 1
    for out, param in zip(loop.outs, condition.params, strict=True):
        to.names[out] = to.names[param]


def _open_while(to: PythonSource, loop: Instruction) -> int | None:
    """Writes the lines that begin a while loop. If they count, the number of what they count."""
    condition, body = loop.regions
    if to.inside_long:
        _move(to, loop.ins, condition.params)
        to.line("while True:")
        return None
    trips = induction.of_while(loop)
    total = [] if trips is None else ["int({1}) - int({0})".format(*map(to.text, trips))]
    name = functools.partial(loop_name, loop)
    counters = induction.of_loop(loop.ins, body)
    counter = next((param for param, each in counters.items() if each.step == 1), None)
    shown: Callable[..., Iterable[Iterable[object]]]
    if counter is None:
        position, shown, arguments = None, functools.partial(progress.rounds, name), total
    else:
        position = body.params.index(counter)
        limits = ranges.of_dtype(counter.type.dtype)
        shown = functools.partial(progress.numbered_rounds, name, *limits)
        arguments = [to.text(counters[counter].start), *total]
    _move(to, loop.ins, condition.params)
    # Two loops in one: a round costs less than with one over an iterator of batches. To count in
    # the inner one costs less than an addition.
    batch = to.fresh()
    to.line(f"for {batch} in {to.given(shown)}({', '.join(arguments)}):")
    to.indent += 1
    counted = "_" if position is None else to.names[condition.params[position]]
    to.line(f"for {counted} in {batch}:")
    return position


def _without(body: Region, position: int) -> Region:
    """The body without the addition that makes a counter of it, which the loop itself counts."""
    result, results = body.results[position], list(body.results)
    results[position] = body.params[position]
    (addition,) = [i for i in body.body if result in i.outs]
    rest = tuple([i for i in body.body if i is not addition])
    kept = dataclasses.replace(body, body=rest, results=tuple(results))
    used = result in kept.results or any(result in i.ins for i in kept.walk()) or any(
        result in region.results for i in kept.walk() for region in i.regions
    )
    return dataclasses.replace(body, results=tuple(results)) if used else kept


def _switch(to: PythonSource, switch: Instruction) -> None:
    """The index is clamped to the branches: the first takes all lower indices, the last all higher
    ones."""
    (index,) = switch.ins
    text, last = to.text(index), len(switch.regions) - 1
    first = f"not {to.conditions[index]}" if index in to.conditions else f"{text} <= 0"
    if last == 0:
        first = "True"
    for out in switch.outs:
        to.fresh(out)
    for position, region in enumerate(switch.regions):
        if position == 0:
            to.line(f"if {first}:")
        else:
            to.line(f"elif {text} == {position}:" if position < last else "else:")

        def after(region: Region = region) -> None:
            to.at = switch
            for out, result in zip(switch.outs, region.results, strict=True):
                to.line(f"{to.names[out]} = {to.text(result)}")

        _inside(to, region, after)
    for position, out in enumerate(switch.outs):
        if numbers.kind(out.type):
            of_each = [to.limits(region.results[position]) for region in switch.regions]
            to.known_limits[out] = functools.reduce(Range.union, of_each)


def _grid(to: PythonSource, grid: Instruction) -> None:
    (region,) = grid.regions
    for size, param in zip(grid.ins, region.params, strict=True):
        to.known_limits[param] = Range(0, max(to.limits(size).high - 1, 0))
    bounds = "".join([f"{to.text(size)}, " for size in grid.ins])
    cells = functools.partial(progress.over_grid, grid.operation.params["name"], number=int)
    over = f"{to.given(cells)}(({bounds}))"
    variables = [to.fresh(param) for param in region.params]
    to.line(f"for {', '.join(variables)}, in {over}:" if variables else f"for _ in {over}:")
    first = to.lines + 1
    inside_long = to.inside_long
    fewest = math.prod([max(to.limits(size).low, 0) for size in grid.ins])
    to.inside_long = inside_long or progress.may_show(0, fewest)
    _inside(to, region, lambda: None)
    to.inside_long = inside_long
    to.grid(grid, first, variables)


def _limit_compared(to: PythonSource, loop: Instruction) -> None:
    """The limits in the body of what grows from its start as long as it is below a bound."""
    condition, body = loop.regions
    going = next((i for i in condition.body if condition.results[0] in i.outs), None)
    if going is None or going.name != "lt" or going.ins[0] not in condition.params:
        return
    param = body.params[condition.params.index(going.ins[0])]
    counter = induction.of_loop(loop.ins, body).get(param)
    if counter is not None and counter.step >= 0:
        low, high = to.limits(counter.start).low, to.limits(going.ins[1]).high - 1
        if low <= high and high + counter.step <= ranges.of_dtype(param.type.dtype).high:
            to.known_limits[param] = Range(low, high)


_STRUCTURED: dict[str, Callable[[PythonSource, Instruction], None]] = {
    "scan": _scan,
    "while": _while,
    "switch": _switch,
    "grid": _grid,
}
