"""Writes loops and branches as Python's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import numpy as np

from pallas_shim.evaluator import progress
from pallas_shim.evaluator.analysis import induction, ranges
from pallas_shim.evaluator.analysis.ranges import Range
from pallas_shim.evaluator.codegen import numbers
from pallas_shim.evaluator.codegen.instructions import Instructions
from pallas_shim.evaluator.codegen.source import Emitted
from pallas_shim.evaluator.program import Instruction, Region, Value


class Loops(Instructions):
    def function(self, loop: Instruction) -> Emitted:
        """The loop as a function."""
        self.at = loop
        self.structured(loop)
        return self.compiled(loop)

    def structured(self, instruction: Instruction) -> None:
        write = {"scan": self._scan, "while": self._while, "switch": self._switch,
                 "grid": self._grid}[instruction.name]  # fmt: skip
        write(instruction)
        self.at = instruction

    def _inside(self, region: Region, after: Callable[[], None]) -> None:
        """A region as a block of its own, and the lines that ``after`` adds to it."""
        self.indent += 1
        before = len(self._body)
        self.region(region)
        after()
        if len(self._body) == before:
            self.line("pass")
        self.indent -= 1

    def _move(self, sources: Iterable[Value], targets: Iterable[Value]) -> None:
        """Assigns all at once; a target without a variable gets one."""
        pairs = [(self.names.get(t) or self.fresh(t), self.text(s))
                 for s, t in zip(sources, targets, strict=True)]  # fmt: skip
        pairs = [(target, source) for target, source in pairs if target != source]
        if pairs:
            targets_text, sources_text = map(", ".join, zip(*pairs, strict=True))
            self.line(f"{targets_text} = {sources_text}")

    def _scan(self, scan: Instruction) -> None:
        params, (region,) = scan.operation.params, scan.regions
        length, reverse, count = params["length"], params["reverse"], params["num_carry"]
        carried, rows = region.params[:count], region.params[count:]
        self._move(scan.ins[:count], carried)
        for param, counter in induction.of_scan(scan).items():
            found = counter.range(self.limits(counter.start), length)
            if found is not None:
                self.known_limits[param] = found
        order = f"range({length - 1}, -1, -1)" if reverse else f"range({length})"
        stacks = [
            (self.fresh(out), out.type, result)
            for out, result in zip(scan.outs[count:], region.results[count:], strict=True)
        ]
        for name, type, _ in stacks:
            make = functools.partial(np.empty, type.shape, type.dtype)
            self.line(f"{name} = {self.given(make)}()")
        at = self.fresh() if stacks or not rows else None
        taken = [
            self.array(source)
            + ("[::-1]" if reverse else "")
            + (".tolist()" if numbers.kind(row.type) else "")
            for source, row in zip(scan.ins[count:], rows, strict=True)
        ]
        variables = [*([at] if at else []), *map(self.fresh, rows)]
        sources = [*([order] if at else []), *taken]
        over = sources[0] if len(sources) == 1 else f"zip({', '.join(sources)})"
        self.line(f"for {', '.join(variables)} in {over}:")

        def after() -> None:
            self.at = scan
            for name, _, result in stacks:
                self.line(f"{name}[{at}] = {self.text(result)}")
            self._move(region.results[:count], carried)

        self._inside(region, after)
        for out, param in zip(scan.outs, carried, strict=False):
            self.names[out] = self.names[param]

    def _while(self, loop: Instruction) -> None:
        condition, body = loop.regions
        self._move(loop.ins, condition.params)
        self.line("while True:")

        def check() -> None:
            self.at = loop
            self.line(f"if not {self.text(condition.results[0])}: break")

        self._inside(condition, check)
        for param, same in zip(body.params, condition.params, strict=True):
            self.names[param] = self.names[same]
        self._limit_compared(loop)

        def go_on() -> None:
            self.at = loop
            self._move(body.results, condition.params)

        self._inside(body, go_on)
        for out, param in zip(loop.outs, condition.params, strict=True):
            self.names[out] = self.names[param]

    def _switch(self, switch: Instruction) -> None:
        """The index is clamped to the branches: the first takes all lower indices, the last all
        higher ones."""
        (index,) = switch.ins
        text, last = self.text(index), len(switch.regions) - 1
        first = f"not {self.conditions[index]}" if index in self.conditions else f"{text} <= 0"
        if last == 0:
            first = "True"
        for out in switch.outs:
            self.fresh(out)
        for position, region in enumerate(switch.regions):
            if position == 0:
                self.line(f"if {first}:")
            else:
                self.line(f"elif {text} == {position}:" if position < last else "else:")

            def after(region: Region = region) -> None:
                self.at = switch
                for out, result in zip(switch.outs, region.results, strict=True):
                    self.line(f"{self.names[out]} = {self.text(result)}")

            self._inside(region, after)
        for position, out in enumerate(switch.outs):
            if numbers.kind(out.type):
                of_each = [self.limits(region.results[position]) for region in switch.regions]
                self.known_limits[out] = functools.reduce(Range.union, of_each)

    def _grid(self, grid: Instruction) -> None:
        (region,) = grid.regions
        for size, param in zip(grid.ins, region.params, strict=True):
            self.known_limits[param] = Range(0, max(self.limits(size).high - 1, 0))
        bounds = "".join([f"{self.text(size)}, " for size in grid.ins])
        cells = functools.partial(progress.over_grid, grid.operation.params["name"], number=int)
        over = f"{self.given(cells)}(({bounds}))"
        variables = [self.fresh(param) for param in region.params]
        self.line(f"for {', '.join(variables)}, in {over}:" if variables else f"for _ in {over}:")
        self._inside(region, lambda: None)

    def _limit_compared(self, loop: Instruction) -> None:
        """The limits in the body of what grows from its start as long as it is below a bound."""
        condition, body = loop.regions
        going = next((i for i in condition.body if condition.results[0] in i.outs), None)
        if going is None or going.name != "lt" or going.ins[0] not in condition.params:
            return
        param = body.params[condition.params.index(going.ins[0])]
        counter = induction.of_loop(loop.ins, body).get(param)
        if counter is not None and counter.step >= 0:
            low, high = self.limits(counter.start).low, self.limits(going.ins[1]).high - 1
            if low <= high and high + counter.step <= ranges.of_dtype(param.type.dtype).high:
                self.known_limits[param] = Range(low, high)
