"""Emission: a loop that turns often becomes one Python function.

A closure for each instruction is made sooner than source is compiled, but where there is a loop,
its rounds pay for that: values are local variables, loops and branches are Python's own, scalar
integers and booleans are Python's numbers, and an element of memory is read and written where it
is used. Whatever has no shorter form is called as the closures would call it.
"""

from __future__ import annotations

import functools
import math
import operator
import os
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator import memory, progress, scalars
from pallas_shim.evaluator import numbers_in_source as numbers
from pallas_shim.evaluator.liveness import last_uses
from pallas_shim.evaluator.memory import Dynamic
from pallas_shim.evaluator.numbers_in_source import Number
from pallas_shim.evaluator.program import PURE, ArrayType, Instruction, Region, Value
from pallas_shim.jax_compat.state import Index, Slice

# In seconds: what a line takes to be compiled; what a round saves for an instruction that is
# written out, and for another one.
_LINE, _WRITTEN_OUT, _CALLED = 2e-5, 4e-7, 1e-7
# How often a loop of unknown length is taken to turn, and a program to be called.
_ROUNDS, _CALLS = 10, 3
# Python has a limit of 20 loops inside one another, and one of 100 levels of indentation.
_DEEPEST = 12

# JAX leaves files of this directory out of the tracebacks that it shows.
_FILE = os.path.join(os.path.dirname(__file__), "<emitted loop>")

# These operands come as the leaves of a path, which any kind of number can be.
_FIRST_LEAF = {"get": 1, "store": 2, "view": 1}


class Emitted(NamedTuple):
    """A loop as a function of the frame, and the instruction that each of its lines is of."""

    run: Callable[[list[Any]], None]
    lines: tuple[Instruction, ...]

    def source_of(self, error: BaseException) -> Instruction:
        """The instruction that an error which ``run`` raised comes from."""
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_frame.f_code is not self.run.__code__:
            traceback = traceback.tb_next
        return self.lines[traceback.tb_lineno - 1 if traceback is not None else 0]


def choice(skip: Collection[str]) -> Callable[[Instruction], bool]:
    """Which loops become functions, where the passes named in ``skip`` are left out."""
    return (lambda loop: False) if "emission" in skip else pays


def pays(loop: Instruction) -> bool:
    """Whether what a loop saves as a function is more than what it takes to make one."""
    lines, saved, _ = _worth(loop)
    return saved * _CALLS > lines * _LINE


def emit(loop: Instruction, slot: Callable[[Value], int]) -> Emitted | None:
    """A scan, while or grid as a function; None if it is too deep for one.

    ``slot`` gives the place in the frame of a value that is defined outside the loop, or is one
    of the loop's own results.
    """
    *_, depth = _worth(loop)
    return None if depth > _DEEPEST else _Emitter(slot).loop(loop)


def _worth(instruction: Instruction) -> tuple[int, float, int]:
    """How many lines an instruction becomes, what these save when they run, and how many loops
    and branches are inside one another."""
    lines, saved, depth = 1, _WRITTEN_OUT if _is_number(instruction) else _CALLED, 0
    for region in instruction.regions:
        for inner in region.body:
            inner_lines, inner_saved, inner_depth = _worth(inner)
            lines += inner_lines
            saved += inner_saved * _rounds(instruction)
            depth = max(depth, inner_depth)
    return lines, saved, depth + bool(instruction.regions)


def _is_number(instruction: Instruction) -> bool:
    """Whether an instruction computes a number, or reads or writes one: most are written out."""
    values = instruction.outs or instruction.ins[1:2]
    return not instruction.regions and len(values) == 1 and numbers.kind(values[0].type) is not None


def _rounds(instruction: Instruction) -> float:
    if instruction.name == "switch":
        return 1 / len(instruction.regions)
    if instruction.name == "scan":
        return instruction.operation.params["length"]
    if instruction.name == "grid":
        known = [int(v.const) for v in instruction.ins if v.const is not None]
        return math.prod(known) if len(known) == len(instruction.ins) else _ROUNDS
    return _ROUNDS


class _Emitter:
    """Writes the source of one function."""

    def __init__(self, slot: Callable[[Value], int]):
        self._slot = slot
        self._body: list[tuple[int, str, Instruction]] = []  # indentation, line, what it is of
        self._loads: list[tuple[int, str, Instruction]] = []
        self._names: dict[Value, str] = {}
        self._limits: dict[Value, tuple[int, int]] = {}
        self._globals: dict[str, Any] = {}
        self._global_names: dict[int, str] = {}
        self._outside: set[Value] = set()  # what is there before the loop begins
        self._buffers: dict[Value, str] = {}  # the memoryviews of memory from outside
        self._count = 0
        self._indent = 1
        self._at: Instruction

    def loop(self, loop: Instruction) -> Emitted:
        self._at = loop
        self.structured(loop)
        for out in loop.outs:
            self.line(f"f[{self._slot(out)}] = {self.array(out)}")
        lines = [*self._loads, *self._body]
        source = "\n".join(["def loop(f):", *[" " * indent + text for indent, text, _ in lines]])
        namespace = dict(self._globals)
        exec(compile(source, _FILE, "exec"), namespace)
        return Emitted(namespace["loop"], (loop, *[owner for _, _, owner in lines]))

    # -- text ------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self._body.append((self._indent, text, self._at))

    def fresh(self, value: Value | None = None) -> str:
        """A new variable, which from now on holds the value."""
        self._count += 1
        name = f"v{self._count}"
        if value is not None:
            self._names[value] = name
        return name

    def known(self, thing: Any) -> str:
        """The name of something that is there before the function is."""
        name = self._global_names.get(id(thing))
        if name is None:
            name = self._global_names[id(thing)] = f"g{len(self._globals)}"
            self._globals[name] = thing
        return name

    # -- values ----------------------------------------------------------------------------------

    def text(self, value: Value) -> str:
        """A value: a variable or a literal, which is a number of Python's if `numbers.kind` says
        so."""
        if value.const is not None:
            if numbers.kind(value.type):
                return repr(value.const.item())
            return self.constant(value)
        name = self._names.get(value)
        if name is None:
            source = f"f[{self._slot(value)}]"
            name = self.fresh(value)
            self._outside.add(value)
            convert = {"integer": "int", "boolean": "bool", None: ""}[numbers.kind(value.type)]
            load = f"{name} = {convert}({source})" if convert else f"{name} = {source}"
            self._loads.append((1, load, self._at))
        return name

    def array(self, value: Value) -> str:
        """A value as NumPy has it."""
        text = self.text(value)
        if numbers.kind(value.type) is None:
            return text
        if value.const is not None:
            return self.constant(value)
        return f"{self.known(value.type.dtype.type)}({text})"

    def constant(self, value: Value) -> str:
        name = self._names.get(value)
        if name is None:
            assert value.const is not None
            # Of rank 0 this gives a scalar, of any other rank the array.
            name = self._names[value] = self.known(value.const[()])
        return name

    def number(self, value: Value) -> Number:
        """A value that is a number of Python's."""
        text = self.text(value)
        if value.const is not None:
            return Number(text, int(value.const), int(value.const))
        return Number(text, *self.limits(value))

    def limits(self, value: Value) -> tuple[int, int]:
        if value.const is not None:
            return int(value.const), int(value.const)
        assert isinstance(value.type, ArrayType)
        return self._limits.get(value) or numbers.limits(value.type.dtype)

    # -- instructions ----------------------------------------------------------------------------

    def region(self, region: Region) -> None:
        dead = last_uses(region.body, region.results)
        for position, instruction in enumerate(region.body):
            self._at = instruction
            self.instruction(instruction)
            for value in dead.get(position, ()):
                self.line(f"{self._names[value]} = None")

    def instruction(self, instruction: Instruction) -> None:
        operation, ins, outs, regions, _ = instruction
        if operation.fn is memory.same:
            self._rename(outs[0], ins[0])
        elif regions:
            self.structured(instruction)
        elif not (self._number(instruction) or self._element(instruction)):
            self._call(instruction)

    def _rename(self, new: Value, old: Value) -> None:
        self._names[new] = self.text(old)
        if numbers.kind(old.type):
            self._limits[new] = self.limits(old)

    def _number(self, instruction: Instruction) -> bool:
        """Writes out arithmetic on scalars; False if it isn't that."""
        operation, ins, outs, _, _ = instruction
        types = [v.type for v in (*ins, *outs)]
        if operation.effects != PURE or len(outs) != 1:
            return False
        if not ins or not all(isinstance(t, ArrayType) and not t.shape for t in types):
            return False
        if all(numbers.kind(t) for t in types[:-1]):
            operands = list(map(self.number, ins))
            found = numbers.expression(operation.name, operation.ins, types[-1], operands)
            if found is not None:
                self._assign(outs[0], found)
                return True
        symbol = _OPERATORS.get(scalars.function(operation))
        if symbol is None or any(map(numbers.kind, types[:-1])):
            return False
        operands_text = [self.text(v) for v in ins]
        self.line(f"{self.fresh(outs[0])} = {symbol.format(*operands_text)}")
        return True

    def _assign(self, out: Value, number: Number) -> None:
        assert isinstance(out.type, ArrayType)
        low, high = numbers.limits(out.type.dtype)
        text = number.text
        if low <= number.low and number.high <= high:
            self._limits[out] = number.low, number.high
            self.line(f"{self.fresh(out)} = {text}")
        elif low == 0:
            self.line(f"{self.fresh(out)} = {numbers.wrapped(text, out.type.dtype)}")
        else:
            name = self.fresh(out)
            back = numbers.wrapped(name, out.type.dtype)
            self.line(f"{name} = {text}")
            self.line(f"if not {low} <= {name} <= {high}: {name} = {back}")

    def _element(self, instruction: Instruction) -> bool:
        """Writes out the access to an element of memory; False if it isn't that."""
        operation, ins, outs, _, _ = instruction
        if operation.name not in ("get", "store"):
            return False
        match operation.params.get("path"):
            case (Index(dims),) if not any(isinstance(dim, Slice) for dim in dims):
                pass
            case _:
                return False
        ref, leaves = ins[0], ins[_FIRST_LEAF[operation.name] :]
        places = [
            self._place(leaves[dim.leaf], size) if isinstance(dim, Dynamic) else str(int(dim))
            for size, dim in zip(ref.ref.shape, dims, strict=True)
        ]
        element = f"[{', '.join(places)}]"
        memory_name = self.text(ref)
        if ref.ref.dtype.kind in "iub" and ref in self._outside:
            element = self._buffer(ref) + element
        elif ref.ref.dtype.kind in "iu" and outs:
            element = f"{memory_name}.item({', '.join(places)})"
        else:
            element = memory_name + element
        if outs:
            self.line(f"{self.fresh(outs[0])} = {element}")
        else:
            self.line(f"{element} = {self.text(ins[1])}")
        return True

    def _place(self, index: Value, size: int) -> str:
        """An index into a dimension, moved inside as XLA does."""
        text, (low, high) = self.text(index), self.limits(index)
        if 0 <= low and high < size:
            return text
        clamped = f"{self.known(memory.clamped)}({text}, {size}, 1)"
        return f"{text} if 0 <= {text} < {size} else {clamped}"

    def _buffer(self, ref: Value) -> str:
        """The memoryview of a ref from outside: its elements are Python's numbers, and sooner had
        than from NumPy."""
        name = self._buffers.get(ref)
        if name is None:
            name = self._buffers[ref] = self.fresh()
            load = f"{name} = {self.known(memoryview)}({self.text(ref)})"
            self._loads.append((1, load, self._at))
        return name

    def _call(self, instruction: Instruction) -> None:
        operation, ins, outs, _, _ = instruction
        fn = scalars.function(operation)
        # A type of NumPy's makes its scalars of Python's numbers, too.
        leaf = 0 if isinstance(fn, type) else _FIRST_LEAF.get(operation.name, len(ins))
        args = ", ".join([*map(self.array, ins[:leaf]), *map(self.text, ins[leaf:])])
        call = f"{self.known(fn)}({args})"
        if not outs:
            self.line(call)
        elif operation.multiple:
            self.line(f"{', '.join(map(self.fresh, outs))}, = {call}")
        else:
            self.line(f"{self.fresh(outs[0])} = {call}")
        for out in outs:
            if numbers.kind(out.type) == "integer":
                self.line(f"{self._names[out]} = int({self._names[out]})")

    # -- loops and branches ----------------------------------------------------------------------

    def structured(self, instruction: Instruction) -> None:
        write = {"scan": self._scan, "while": self._while, "switch": self._switch,
                 "grid": self._grid}[instruction.name]  # fmt: skip
        write(instruction)
        self._at = instruction

    def _inside(self, region: Region, after: Callable[[], None]) -> None:
        """A region as a block of its own, and the lines that ``after`` adds to it."""
        self._indent += 1
        before = len(self._body)
        self.region(region)
        after()
        if len(self._body) == before:
            self.line("pass")
        self._indent -= 1

    def _move(self, sources: Iterable[Value], targets: Iterable[Value]) -> None:
        """Assigns all at once; a target without a variable gets one."""
        pairs = [(self._names.get(t) or self.fresh(t), self.text(s))
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
        for start, param, result in zip(scan.ins, carried, region.results, strict=False):
            self._limit_counter(region, start, param, result, length - 1)
        order = f"range({length - 1}, -1, -1)" if reverse else f"range({length})"
        stacks = [
            (self.fresh(out), out.type, result)
            for out, result in zip(scan.outs[count:], region.results[count:], strict=True)
        ]
        for name, type, _ in stacks:
            make = functools.partial(np.empty, type.shape, type.dtype)
            self.line(f"{name} = {self.known(make)}()")
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
            self._at = scan
            for name, _, result in stacks:
                self.line(f"{name}[{at}] = {self.text(result)}")
            self._move(region.results[:count], carried)

        self._inside(region, after)
        for out, param in zip(scan.outs, carried, strict=False):
            self._names[out] = self._names[param]

    def _while(self, loop: Instruction) -> None:
        condition, body = loop.regions
        self._move(loop.ins, condition.params)
        self.line("while True:")

        def check() -> None:
            self._at = loop
            self.line(f"if not {self.text(condition.results[0])}: break")

        self._inside(condition, check)
        for param, same in zip(body.params, condition.params, strict=True):
            self._names[param] = self._names[same]
        self._limit_compared(loop)

        def go_on() -> None:
            self._at = loop
            self._move(body.results, condition.params)

        self._inside(body, go_on)
        for out, param in zip(loop.outs, condition.params, strict=True):
            self._names[out] = self._names[param]

    def _switch(self, switch: Instruction) -> None:
        """The index is clamped to the branches, of which the first and the last have the rest."""
        (index,) = switch.ins
        text, last = self.text(index), len(switch.regions) - 1
        for out in switch.outs:
            self.fresh(out)
        for position, region in enumerate(switch.regions):
            if position == 0:
                self.line(f"if {text} <= 0:" if last else "if True:")
            else:
                self.line(f"elif {text} == {position}:" if position < last else "else:")

            def after(region: Region = region) -> None:
                self._at = switch
                for out, result in zip(switch.outs, region.results, strict=True):
                    self.line(f"{self._names[out]} = {self.text(result)}")

            self._inside(region, after)
        for position, out in enumerate(switch.outs):
            if numbers.kind(out.type):
                of_each = [self.limits(region.results[position]) for region in switch.regions]
                lows, highs = zip(*of_each, strict=True)
                self._limits[out] = min(lows), max(highs)

    def _grid(self, grid: Instruction) -> None:
        (region,) = grid.regions
        for size, param in zip(grid.ins, region.params, strict=True):
            self._limits[param] = 0, max(self.limits(size)[1] - 1, 0)
        bounds = "".join([f"{self.text(size)}, " for size in grid.ins])
        cells = functools.partial(progress.over_grid, grid.operation.params["name"], number=int)
        over = f"{self.known(cells)}(({bounds}))"
        variables = [self.fresh(param) for param in region.params]
        self.line(f"for {', '.join(variables)}, in {over}:" if variables else f"for _ in {over}:")
        self._inside(region, lambda: None)

    # -- limits of what loops carry --------------------------------------------------------------

    def _limit_counter(
        self, region: Region, start: Value, param: Value, result: Value, turns: int
    ) -> None:
        """The limits of what a loop carries from its start, ``turns`` times, by known steps."""
        step = _step(region, param, result)
        if step is not None and numbers.kind(start.type):
            low, high = self.limits(start)
            most = max(turns, 0) * step
            first, last = numbers.limits(param.type.dtype)
            low, high = low + min(most, 0), high + max(most, 0)
            if first <= low and high <= last:
                self._limits[param] = low, high

    def _limit_compared(self, loop: Instruction) -> None:
        """The limits in the body of what grows from its start as long as it is below a bound."""
        condition, body = loop.regions
        going = next((i for i in condition.body if condition.results[0] in i.outs), None)
        if going is None or going.name != "lt" or going.ins[0] not in condition.params:
            return
        position = condition.params.index(going.ins[0])
        param, start = body.params[position], loop.ins[position]
        step = _step(body, param, body.results[position])
        if step is not None and step >= 0 and numbers.kind(param.type) == "integer":
            low, _ = self.limits(start)
            high = self.limits(going.ins[1])[1] - 1
            if low <= high and high + step <= numbers.limits(param.type.dtype)[1]:
                self._limits[param] = low, high


def _step(region: Region, param: Value, result: Value) -> int | None:
    """By how much a round of a loop changes what it carries, if that is known."""
    if result is param:
        return 0
    for i in region.body:
        if result in i.outs and i.name == "add" and param in i.ins and len(i.ins) == 2:
            (other,) = [v for v in i.ins if v is not param] or [param]
            if other.const is not None and numbers.kind(other.type) == "integer":
                return int(other.const)
    return None


# How what `scalars` has for floats is written.
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
