"""The source of the function being written: its lines, and the names of values in it."""

from __future__ import annotations

import itertools
import linecache
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pallas_shim.evaluator.analysis import ranges
from pallas_shim.evaluator.analysis.ranges import Range
from pallas_shim.evaluator.codegen import numbers
from pallas_shim.evaluator.codegen.numbers import Number
from pallas_shim.evaluator.frames import blame, note_cell
from pallas_shim.evaluator.program import ArrayType, Instruction, Value

# The file name of the source. Tools that look for files skip names in such brackets. JAX omits code
# in HOME from its tracebacks.
HOME = "<pallas_shim"
_numbers = itertools.count(1)


class Emitted(NamedTuple):
    """A loop as a function of the frame, the instruction that each of its lines is of, its source,
    and the grids in it."""

    run: Callable[[list[Any]], None]
    lines: tuple[Instruction, ...]
    source: str
    grids: tuple[EmittedGrid, ...]

    def blame(self, error: BaseException) -> None:
        """Adds notes to an error that ``run`` raised: its instruction, and the cell of the grid."""
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_frame.f_code is not self.run.__code__:
            traceback = traceback.tb_next
        if traceback is None:
            blame(error, self.lines[0])
            return
        line, values = traceback.tb_lineno, traceback.tb_frame.f_locals
        blame(error, self.lines[line - 1])
        for grid in self.grids:
            begun = all(name in values for name in grid.indices)
            if begun and grid.first <= line <= grid.last:
                note_cell(error, grid.instruction, [values[name] for name in grid.indices])


class EmittedGrid(NamedTuple):
    """The lines of a grid's cells, counted from 1, and the variables of its indices."""

    instruction: Instruction
    first: int
    last: int
    indices: tuple[str, ...]


class PythonSource:
    """A value is a variable, a literal, or a global of the function: constants, and the functions
    that it calls. One from outside the loop is loaded from the frame at the start."""

    def __init__(self, slot: Callable[[Value], int]):
        self._slot = slot
        self._body: list[tuple[int, str, Instruction]] = []  # indentation, line, what it is of
        self._loads: list[tuple[int, str, Instruction]] = []
        self._globals: dict[str, Any] = {}
        self._global_names: dict[int, str] = {}
        self._count = 0
        self._outside: set[Value] = set()  # what is there before the loop begins
        self._grids: list[EmittedGrid] = []  # the inner ones first
        self._buffers: dict[Value, str] = {}  # the memoryviews of memory from outside
        self.names: dict[Value, str] = {}
        self.known_limits: dict[Value, Range] = {}
        self.conditions: dict[Value, str] = {}  # the booleans that integers were made of
        self.indent = 1
        self.inside_long = False  # a loop whose progress may be shown, so that inner ones' isn't
        self.at: Instruction  # what lines are of

    def compiled(self, loop: Instruction, known: dict[str, types.CodeType]) -> Emitted:
        """The function, whose lines have been written. ``known``: the code of such functions, by
        their source; new code is added."""
        for out in loop.outs:
            self.line(f"f[{self._slot(out)}] = {self.array(out)}")
        lines = [*self._loads, *self._body]
        source = "\n".join(["def loop(f):", *[" " * indent + text for indent, text, _ in lines]])
        file = f"{HOME}/loop {next(_numbers)}>"
        code = known.get(source)
        if code is None:
            consts = compile(source, file, "exec").co_consts
            code = known[source] = next(c for c in consts if isinstance(c, types.CodeType))
        run = types.FunctionType(code.replace(co_filename=file), dict(self._globals), "loop")
        # Tracebacks and debuggers show the lines, as long as the function is there.
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        weakref.finalize(run, linecache.cache.pop, file, None).atexit = False
        before = len(self._loads) + 1  # the lines in front of the body
        grids = [g._replace(first=g.first + before, last=g.last + before) for g in self._grids]
        owners = (loop, *[owner for _, _, owner in lines])
        return Emitted(run, owners, source, tuple(grids))

    @property
    def lines(self) -> int:
        """The number of lines so far."""
        return len(self._body)

    def grid(self, instruction: Instruction, first: int, indices: Sequence[str]) -> None:
        """Notes that the body's lines from ``first`` on, counted from 1, are a grid's cells."""
        self._grids.append(EmittedGrid(instruction, first, self.lines, tuple(indices)))

    def line(self, text: str) -> None:
        self._body.append((self.indent, text, self.at))

    def fresh(self, value: Value | None = None) -> str:
        """A new variable, which from now on holds the value."""
        self._count += 1
        name = f"v{self._count}"
        if value is not None:
            self.names[value] = name
        return name

    def given(self, thing: Any) -> str:
        """The name of something that is there before the function is."""
        name = self._global_names.get(id(thing))
        if name is None:
            name = self._global_names[id(thing)] = f"g{len(self._globals)}"
            self._globals[name] = thing
        return name

    def text(self, value: Value) -> str:
        """A value: a variable or a literal, which is a number of Python's if `numbers.kind` says
        so."""
        if value.const is not None:
            if numbers.kind(value.type):
                return repr(value.const.item())
            return self.constant(value)
        name = self.names.get(value)
        if name is None:
            source = f"f[{self._slot(value)}]"
            name = self.fresh(value)
            self._outside.add(value)
            convert = {"integer": "int", "boolean": "bool", None: ""}[numbers.kind(value.type)]
            load = f"{name} = {convert}({source})" if convert else f"{name} = {source}"
            self._loads.append((1, load, self.at))
        return name

    def array(self, value: Value) -> str:
        """A value as NumPy has it."""
        text = self.text(value)
        if numbers.kind(value.type) is None:
            return text
        if value.const is not None:
            return self.constant(value)
        return f"{self.given(value.type.dtype.type)}({text})"

    def constant(self, value: Value) -> str:
        name = self.names.get(value)
        if name is None:
            assert value.const is not None
            # This gives a scalar for rank 0, and the array for any other rank.
            name = self.names[value] = self.given(value.const[()])
        return name

    def number(self, value: Value) -> Number:
        """A value that is a number of Python's."""
        text = self.text(value)
        if value.const is not None:
            return Number(text, int(value.const), int(value.const))
        return Number(text, *self.limits(value))

    def limits(self, value: Value) -> Range:
        if value.const is not None:
            return Range(int(value.const), int(value.const))
        assert isinstance(value.type, ArrayType)
        return self.known_limits.get(value) or ranges.of_dtype(value.type.dtype)

    def buffer(self, ref: Value) -> str | None:
        """The memoryview of a ref from outside, whose elements are Python's numbers, and are sooner
        had than from NumPy."""
        text = self.text(ref)
        if ref not in self._outside:
            return None
        name = self._buffers.get(ref)
        if name is None:
            name = self._buffers[ref] = self.fresh()
            load = f"{name} = {self.given(memoryview)}({text})"
            self._loads.append((1, load, self.at))
        return name
