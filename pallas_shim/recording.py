"""Records what kernels do, for `view`.

The recorder is an observer of `dispatch`. The first run of each function goes through a watched
program, which isn't optimised; later runs go through the optimised one. If a run has more cells
than are shown, it is cut short and repeated by the optimised program.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import datetime
import functools
import importlib
import inspect
import linecache
import math
import os
import platform
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

import pallas_shim
from pallas_shim import dispatch, jax_compat
from pallas_shim.evaluator import blocks, compiler, memory
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.machine.operations import AWAIT, SIGNAL
from pallas_shim.evaluator.op_types import PATH
from pallas_shim.evaluator.program import Instruction, RefType, Value
from pallas_shim.evaluator.watching import Cell, Kernel
from pallas_shim.jax_compat.callbacks import CALLBACK_PRIMITIVES
from pallas_shim.view import data, measures

# What is recorded of one run of a kernel, and of a script. A page of this size is below 5 MB.
_MOST_CELLS = 1 << 14
_MOST_CELLS_OF_ALL = 1 << 15
_MOST_ACCESSES = 400_000
_MOST_EVENTS = 4_000
_MOST_KERNELS = 40
_MOST_LINES = 400

_ADDS = frozenset({"semaphore_add", SIGNAL})
_TAKES = frozenset({"semaphore_subtract", "semaphore_take", "take_count"})


class _Enough(Exception):
    """So many cells are recorded that the rest isn't."""


@contextlib.contextmanager
def record(title: str = "a recording") -> Iterator[data.Trace]:
    """Records the kernels that run inside the with-statement, and fills the trace when it ends.

    The shim has to be on. A function that JAX has compiled before isn't seen.
    """
    trace = data.Trace(title, "", {}, [], [])
    recorder = Recorder()
    dispatch.observe(recorder)
    try:
        yield trace
    finally:
        dispatch.observe(None)
        recorder.fill(trace)


class Recorder:
    """Records the first run of each program that `dispatch` plans. See `dispatch.Observer`."""

    def __init__(self) -> None:
        self._functions: list[_Function] = []
        self._notes: list[str] = []
        self.cells_left = _MOST_CELLS_OF_ALL
        self._lock = threading.Lock()

    def planned(self, executable: Executable, function: dispatch.Function) -> Executable:
        if sum(len(f.kernels) for f in self._functions) >= _MOST_KERNELS:
            self._note(f"kernels after the first {_MOST_KERNELS} are left out")
            return executable
        watch = _Function(function, self)
        try:
            watched = compiler.compile_watched(
                function.jaxpr, watch, name=function.name, axes=function.axes,
                on_mesh=function.on is not None,
            )  # fmt: skip
        except Exception as error:  # a view must not cost the user the call
            self._note(f"{function.name} is left out: {type(error).__name__}: {error}")
            return executable
        self._functions.append(watch)
        return _Recorded(executable, watched, watch)

    def ran(self, *_: Any, **__: Any) -> None:
        """What a run gives isn't looked at here."""

    def _note(self, text: str) -> None:
        with self._lock:
            if text not in self._notes:
                self._notes.append(text)

    def fill(self, trace: data.Trace) -> None:
        """Puts what was recorded into a trace."""
        trace.made = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        trace.versions = {
            "pallas_shim": pallas_shim.__version__,
            "JAX": importlib.import_module("jax").__version__,
            "NumPy": np.__version__,
            "Python": platform.python_version(),
        }
        trace.kernels += [kernel for f in self._functions for kernel in f.result()]
        trace.notes += self._notes
        for function in self._functions:
            seen = {kernel.call.name for kernel in function.kernels}
            trace.notes += [
                f"the kernel {info.name} of {function.name} is left out: "
                + ("it never ran" if not function.calls else "it has cores of its own, not a grid")
                for info in function.infos if info.name not in seen
            ]  # fmt: skip


class _Recorded(Executable):
    """An executable whose first call is recorded."""

    def __init__(self, plain: Executable, watched: Executable, watch: _Function) -> None:
        self.program = plain.program
        self._plain, self._watched, self._watch = plain, watched, watch
        self._first = threading.Lock()
        called = {i.name for i in plain.program.top.walk()} & set(CALLBACK_PRIMITIVES)
        watch.may_stop = not called  # a second run would show its callbacks to the user again

    def __call__(self, *args: np.ndarray) -> list[np.ndarray]:
        self._watch.calls += 1
        if not self._first.acquire(blocking=False):
            return self._plain(*args)
        try:
            return self._watched(*args)
        except _Enough:
            return self._plain(*args)
        finally:
            self._watch.end()


# -- what one function does -----------------------------------------------------------------------


class _Block(NamedTuple):
    """How an operand is cut: the block's size and the scale of its index along each dimension, and
    the padding in front of the array."""

    sizes: tuple[int, ...]
    scales: tuple[int, ...]
    before: tuple[int, ...]


@dataclasses.dataclass(eq=False)
class _Ref:
    """An operand of one run of a kernel. ``starts`` are those of each cell's block as its index
    map has them; ``at`` is where the current cell's block is."""

    name: str
    role: str
    shape: tuple[int, ...]
    dtype: np.dtype
    space: str
    block: _Block | None
    piped: bool
    heat: measures.HeatMap
    starts: list[tuple[int, ...]] = dataclasses.field(default_factory=list)
    at: tuple[int, ...] = ()
    contents: np.ndarray | None = None


@dataclasses.dataclass(eq=False)
class _Run:
    """One program's run of a kernel, while it lasts."""

    kernel: Kernel
    program: int
    grid: tuple[int, ...]
    refs: list[_Ref]
    steps: list[int] = dataclasses.field(default_factory=list)
    patterns: dict[tuple[Any, ...], int] = dataclasses.field(default_factory=dict)
    pattern_of_cell: list[int] = dataclasses.field(default_factory=list)
    touched: dict[tuple[Any, ...], list[Any]] = dataclasses.field(default_factory=dict)
    copied: Counter[int] = dataclasses.field(default_factory=Counter)
    complete: bool = True  # all accesses of the current cell were recorded
    end: int = 0
    times: int = 1
    recording: bool = True


class _Memory(NamedTuple):
    """Memory that an operand has, or a block of it: ``offset`` are the indices of its first
    element."""

    low: int
    high: int
    array: np.ndarray
    ref: int
    offset: tuple[int, ...]


class _Copy(NamedTuple):
    event: data.Event
    count: int


class _Function:
    """Watches one run of a function. See `watching.Watch`.

    ``here`` has the run that each program is in. ``memory`` lists what each run's operands lie in,
    sorted by address.
    """

    def __init__(self, function: dispatch.Function, recorder: Recorder) -> None:
        self.name = function.name
        self.infos = function.kernels
        self.recorder = recorder
        self.calls = 0
        self.may_stop = True
        self.kernels: dict[Kernel, list[_Run]] = {}
        self.events: list[tuple[_Run, data.Event]] = []
        self._names: dict[Value, str] = {}
        self._here: dict[int, _Run] = {}
        self._memory: dict[_Run, list[_Memory]] = {}
        self._semaphores: dict[int, str] = {}
        self._flying: dict[int, list[data.Event]] = {}
        self._waiting: dict[int, tuple[int, str]] = {}
        self._last: dict[int, dict[str, Any]] = {}
        self._clock = 0
        self._accesses = 0
        self._left_out = 0
        self._lines: dict[int, tuple[Any, tuple[str, int] | None]] = {}
        self._viewers: dict[int, tuple[Instruction, Any]] = {}

    # -- cells ------------------------------------------------------------------------------

    def named(self, names: dict[Value, str]) -> None:
        self._names = names

    def between(self, program: int) -> None:
        self._here.pop(program, None)  # what index maps read isn't the kernel's doing

    def cell(self, cell: Cell) -> None:
        self._clock += 1
        runs = self.kernels.setdefault(cell.kernel, [])
        run = next((run for run in runs if run.program == cell.program), None)
        if run is None:
            run = _Run(cell.kernel, cell.program, cell.sizes, _refs(cell))
            runs.append(run)
        elif not any(cell.indices):
            run.times += 1
            run.recording = False  # a kernel in a loop: its first run is shown
        elif run.recording:
            self._close(run)
        if run.recording and (
            len(run.steps) >= _MOST_CELLS or self.recorder.cells_left <= 0
        ):
            run.recording = False
            if self.may_stop:
                raise _Enough
        self._here[cell.program] = run
        if not run.recording:
            return
        self.recorder.cells_left -= 1
        run.steps.append(self._clock)
        self._memory[run] = self._place(run, cell)

    def left(self, kernel: Kernel, program: int, buffers: Sequence[np.ndarray]) -> None:
        for run in self.kernels.get(kernel, ()):
            if run.kernel is not kernel or not (run.program == program or kernel.call.cores):
                continue
            self._here.pop(run.program, None)
            if not run.recording or run.end:
                continue
            self._close(run)
            run.end = self._clock
            run.recording = False
            first = kernel.call.num_prefetch
            for ref, buffer in zip(run.refs[first:], buffers, strict=False):
                assert ref.block is not None
                inner = tuple(
                    slice(before, before + size)
                    for before, size in zip(ref.block.before, ref.shape, strict=False)
                )
                ref.contents = np.array(buffer[inner])

    def end(self) -> None:
        """The function has run, or failed."""
        for runs in self.kernels.values():
            for run in runs:
                if run.recording:
                    self._close(run)
                    run.recording = False
                run.end = run.end or self._clock
        self._here.clear()
        self._memory.clear()
        self._last.clear()

    def _place(self, run: _Run, cell: Cell) -> list[_Memory]:
        """Notes the starts of a cell's blocks, and finds the memory of all refs."""
        call = cell.kernel.call
        found: list[_Memory] = []
        for position, (ref, array) in enumerate(zip(run.refs, cell.refs, strict=False)):
            offset = (0,) * len(ref.shape)
            at = position - call.num_prefetch
            if ref.block is not None:
                buffer = cell.buffers[at]
                asked, clamped = _starts(cell.starts[at], ref.block, buffer.shape)
                ref.starts.append(asked)
                ref.at = clamped
                before = ref.block.before
                shift = tuple(-pad for pad in before) + offset[len(before) :]
                _add(found, buffer, position, shift)
                if not np.may_share_memory(array, buffer):  # checked memory, where it is a copy
                    whole = array.reshape(_with_squeezed(array.shape, call.blocks[at].dims))
                    _add(found, whole, position, clamped)
            else:
                _add(found, array, position, offset)
            if ref.space.startswith("semaphore"):
                self._name_semaphores(ref.name, array)
        for memory_of in self._memory.get(run, ()):
            if run.refs[memory_of.ref].role == "scoped":
                found.append(memory_of)
        return sorted(found, key=lambda m: m.low)

    def _name_semaphores(self, name: str, array: np.ndarray) -> None:
        if array.size > 4096:
            return
        base = _address(array)
        for index in np.ndindex(array.shape):
            place = base + sum(i * s for i, s in zip(index, array.strides, strict=True))
            text = name + (f"[{', '.join(map(str, index))}]" if index else "")
            self._semaphores[place] = text

    def _close(self, run: _Run) -> None:
        """Ends the current cell of a run."""
        if len(run.pattern_of_cell) == len(run.steps):
            return
        pattern = -1
        if run.complete:
            key = tuple((*what, *map(_hashable, how)) for what, how in run.touched.items())
            pattern = run.patterns.setdefault(key, len(run.patterns))
        run.pattern_of_cell.append(pattern)
        run.touched = {}

    # -- accesses ---------------------------------------------------------------------------

    def wants(self, instruction: Instruction) -> Collection[str]:
        operation = instruction.operation
        if instruction.name == AWAIT:
            return ("before", "after")
        if instruction.name in ("buffer", "contents", "rows_of_programs", "leftover"):
            return ()
        effects = operation.effects
        of_refs = any(type(v.type) is RefType for v in (*instruction.ins, *instruction.outs))
        if of_refs and (effects.reads or effects.writes or effects.allocates):
            return ("after",)
        return ()

    def before(self, instruction: Instruction, program: int, ins: Sequence[Any]) -> None:
        run = self._here.get(program)
        if run is None or not run.recording:
            return
        self._clock += 1
        self._waiting[program] = (self._clock, "")

    def after(
        self, instruction: Instruction, program: int, ins: Sequence[Any], outs: Sequence[Any]
    ) -> None:
        run = self._here.get(program)
        if run is None or not run.recording:
            return
        effects, name = instruction.operation.effects, instruction.name
        if effects.allocates:
            self._allocated(run, instruction, outs)
            return
        self._clock += 1
        if name == AWAIT or name in _ADDS or name in _TAKES:
            self._counted(run, instruction, ins)
            return
        for kind, positions in (("reads", effects.reads), ("writes", effects.writes)):
            for position in positions:
                if isinstance(ins[position], np.ndarray):
                    self._touched(run, instruction, position, kind, ins)

    def _allocated(self, run: _Run, instruction: Instruction, outs: Sequence[Any]) -> None:
        (out,), (array,) = instruction.outs, outs
        type = out.type
        if not isinstance(type, RefType) or not isinstance(array, np.ndarray):
            return
        name = self._names.get(out, "scoped memory")
        position = next(
            (n for n, ref in enumerate(run.refs)
             if ref.role == "scoped" and (ref.name, ref.shape) == (name, array.shape)),
            len(run.refs),
        )  # fmt: skip
        if position == len(run.refs):
            run.refs.append(_Ref(
                name, "scoped", array.shape, array.dtype, type.space, None, False,
                measures.HeatMap(array.shape),
            ))  # fmt: skip
        if type.space.startswith("semaphore"):
            self._name_semaphores(name, array)
        known = [m for m in self._memory[run] if m.ref != position]
        _add(known, array, position, (0,) * array.ndim)
        self._memory[run] = sorted(known, key=lambda m: m.low)

    def _touched(
        self, run: _Run, instruction: Instruction, position: int, kind: str, ins: Sequence[Any]
    ) -> None:
        if self._accesses >= _MOST_ACCESSES:
            run.complete = False
            return
        part = self._part(instruction, position, ins)
        owner = self._owner(run, part)
        line = self._line(instruction.source)
        last = self._last.setdefault(run.program, {})
        last[kind] = (instruction.source, owner, part)
        last.pop("counted", None)
        if owner is None:
            return  # another program's memory, or the kernel closes over it
        self._accesses += 1
        ref = run.refs[owner.ref]
        spans = _spans(part, owner)
        ref.heat.add(kind, tuple((s.start, s.stop, s.step) for s in spans))
        start = ref.at or (0,) * len(spans)
        low = [s.start - b for s, b in zip(spans, start, strict=True)]
        high = [s.stop - b for s, b in zip(spans, start, strict=True)]
        known = run.touched.get((line, owner.ref, kind))
        if known is None:
            run.touched[line, owner.ref, kind] = [1, part.nbytes, low, high]
        else:
            known[0] += 1
            known[1] += part.nbytes
            known[2] = list(map(min, known[2], low))
            known[3] = list(map(max, known[3], high))

    def _part(self, instruction: Instruction, position: int, ins: Sequence[Any]) -> np.ndarray:
        """The part of an operand that an instruction reads or writes: all of it, unless a path
        leads to less, and NumPy has a view of that."""
        whole = ins[position]
        path = instruction.operation.params.get(PATH)
        if path is None or position != 0:
            return whole
        known = self._viewers.get(id(instruction))
        if known is None:
            ref = instruction.ins[0].ref
            view = memory.direct_viewer(ref.shape, ref.dtype, path)
            leaves = len(ins) - sum(1 for _ in _fixed_operands(instruction.name))
            known = self._viewers[id(instruction)] = (instruction, (view, leaves))
        view, leaves = known[1]
        if view is None:
            return whole
        first = sum(1 for _ in _fixed_operands(instruction.name))
        return view(whole, *ins[first : first + leaves])

    def _owner(self, run: _Run, part: np.ndarray) -> _Memory | None:
        known = self._memory.get(run, [])
        address = _address(part)
        at = bisect.bisect_right(known, address, key=lambda m: m.low) - 1
        if at >= 0 and known[at].low <= address < known[at].high:
            return known[at]
        return None

    def _line(self, source: Any) -> tuple[str, int] | None:
        known = self._lines.get(id(source))
        if known is None:
            known = self._lines[id(source)] = (source, _file_and_line(source))
        return known[1]

    # -- semaphores -------------------------------------------------------------------------

    def _counted(self, run: _Run, instruction: Instruction, ins: Sequence[Any]) -> None:
        """Notes a signal, a wait, or a copy that an addition to a DMA's semaphore tells of."""
        semaphore, count = ins[0], int(np.asarray(ins[1]).reshape(-1)[0])
        path = instruction.operation.params.get(PATH)
        if path is not None:
            type = instruction.ins[0].ref
            view = memory.direct_viewer(type.shape, type.dtype, path)
            if view is not None:
                leaves = ins[2:]
                number = instruction.operation.params.get("num_leaves", len(leaves))
                semaphore = view(semaphore, *leaves[:number])
        place = _address(semaphore)
        name = self._semaphores.get(place) or self._names.get(instruction.ins[0], "a semaphore")
        line = self._line(instruction.source)
        cell = len(run.steps) - 1
        if len(self.events) >= _MOST_EVENTS:
            self._left_out += 1
            return
        of_copies = instruction.ins[0].ref.space == "semaphore_dma"
        if instruction.name in _ADDS and of_copies:
            event = self._copied(run, instruction, name, cell, line)
            self._flying.setdefault(place, []).append(event)
        elif instruction.name in _ADDS:
            event = data.Event("signal", 0, cell, name, self._clock, self._clock, f"adds {count}")
        else:
            begun, _ = self._waiting.pop(run.program, (self._clock, ""))
            event = data.Event("wait", 0, cell, name, begun, self._clock, f"takes {count}")
            flying = self._flying.get(place)
            if flying:
                landed = flying.pop(0)
                landed.end, landed.awaited = self._clock, True
        event.line = line  # type: ignore[assignment]  # made a position at the end
        self.events.append((run, event))

    def _copied(
        self, run: _Run, instruction: Instruction, name: str, cell: int, line: Any
    ) -> data.Event:
        last = self._last.setdefault(run.program, {})
        texts, nbytes = [], 0
        for kind in ("reads", "writes"):
            source, owner, part = last.get(kind, (None, None, None))
            if source is not instruction.source or part is None:
                texts.append("?")
                continue
            nbytes = part.nbytes
            texts.append(self._described(run, owner, part))
        if "counted" not in last:  # a remote copy has two semaphores
            run.copied[cell] += nbytes
        last["counted"] = None
        text = f"{texts[0]} → {texts[1]}"
        return data.Event(
            "copy", 0, cell, name, self._clock, self._clock, text, nbytes, awaited=False
        )

    def _described(self, run: _Run, owner: _Memory | None, part: np.ndarray) -> str:
        if owner is None:
            return "memory of another program"
        ref = run.refs[owner.ref]
        spans = _spans(part, owner)
        if all((s.start, s.stop) == (0, dim) for s, dim in zip(spans, ref.shape, strict=True)):
            return ref.name
        return f"{ref.name}[{', '.join(f'{s.start}:{s.stop}' for s in spans)}]"

    # -- the result -------------------------------------------------------------------------

    def result(self) -> Iterator[data.Kernel]:
        for kernel, runs in self.kernels.items():
            yield self._kernel(kernel, runs)

    def _kernel(self, kernel: Kernel, runs: Sequence[_Run]) -> data.Kernel:
        call = kernel.call
        lines = _Lines(call.source)
        positions = {run: n for n, run in enumerate(runs)}
        events = []
        for run, event in self.events:
            if run in positions:
                event.run, event.line = positions[run], lines.position(event.line)
                if event.kind == "copy" and not event.awaited:
                    event.end = run.end
                events.append(event)
        axes = tuple(
            "vmap" if axis in call.vmapped_dims
            else str(call.axis_names[axis]) if axis < len(call.axis_names)
            else f"axis {axis}"
            for axis in range(len(call.grid))
        )  # fmt: skip
        made = [self._made(run, lines) for run in runs]
        return data.Kernel(
            call.name, self.name, call.source, axes, lines.lines, made, events,
            list(self._notes_of(made)), self.calls,
        )  # fmt: skip

    def _notes_of(self, runs: Sequence[data.Run]) -> Iterator[str]:
        first = runs[0]
        if first.recorded < first.cells:
            yield (
                f"The first {first.recorded:,} of {first.cells:,} cells are shown. Coverage, heat "
                "and bytes are theirs only."
            )
        missing = sum(pattern < 0 for run in runs for pattern in run.pattern_of_cell)
        if missing:
            yield (
                f"The accesses of {missing:,} cells are left out, after the first "
                f"{_MOST_ACCESSES:,} accesses."
            )
        if first.times > 1:
            yield f"The kernel ran {first.times:,} times in a call. The first run is shown."
        if self.calls > 1:
            yield f"Its function was called {self.calls:,} times. The first call is shown."
        if self._left_out:
            yield f"{self._left_out:,} events are left out, after the first {_MOST_EVENTS:,}."

    def _made(self, run: _Run, lines: _Lines) -> data.Run:
        operands = [_operand(ref) for ref in run.refs]
        cells = math.prod(run.grid)
        moved = {"in": [0] * len(run.steps), "out": [0] * len(run.steps)}
        for ref, operand in zip(run.refs, operands, strict=True):
            if not operand.piped or ref.block is None:
                continue
            sizes = [
                measures.block_bytes(ref.shape, operand.block or (), start, operand.itemsize)
                for start in operand.blocks
            ]
            if "input" in ref.role:
                _add_to(moved["in"], measures.fetched(operand.block_of_cell, sizes))
            if "output" in ref.role:
                _add_to(moved["out"], measures.written_back(operand.block_of_cell, sizes))
        programs = run.kernel.programs
        patterns = [
            [
                data.Access(lines.position(line), ref, kind, count, nbytes, low, high)
                for line, ref, kind, count, nbytes, low, high in pattern
            ]
            for pattern in run.patterns
        ]
        return data.Run(
            programs[run.program] if run.program < len(programs) else "",
            run.grid, cells, len(run.steps), operands, patterns, run.pattern_of_cell,
            moved["in"], moved["out"], [run.copied[n] for n in range(len(run.steps))],
            run.steps, run.end, run.times,
        )  # fmt: skip


def _add_to(total: list[int], more: Sequence[int]) -> None:
    total[:] = [a + b for a, b in zip(total, more, strict=True)]


def _fixed_operands(name: str) -> range:
    """The operands of an access before its path's leaves."""
    return range({"store": 2, "masked_swap": 3}.get(name, 1))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# -- operands -------------------------------------------------------------------------------------


def _refs(cell: Cell) -> list[_Ref]:
    kernel, call = cell.kernel, cell.kernel.call
    refs = []
    aliased = {out for _, out in call.aliases}
    for position, array in enumerate(cell.refs):
        at = position - call.num_prefetch
        block, shape, piped = None, array.shape, False
        space = kernel.spaces[position] if position < len(kernel.spaces) else "?"
        if at < 0:
            role = "prefetch"
        elif at < len(call.blocks):
            cut = call.blocks[at]
            is_output = at >= call.num_inputs
            role = "output" if is_output else "input"
            if is_output and at - call.num_inputs in aliased:
                role = "input and output"
            shape = tuple(kernel.shapes[at])
            rest = shape[len(cut.dims):]
            block = _Block(
                (*(dim.size for dim in cut.dims), *rest),
                tuple(dim.size if dim.kind == "blocked" else 1 for dim in cut.dims),
                tuple(dim.padding[0] for dim in cut.dims),
            )
            piped = not cut.in_hbm
        else:
            role = "scratch"
        refs.append(_Ref(
            kernel.name(position), role, shape, array.dtype, space, block, piped,
            measures.HeatMap(shape),
        ))  # fmt: skip
    return refs


def _operand(ref: _Ref) -> data.Operand:
    distinct = list(dict.fromkeys(ref.starts))
    number = {start: n for n, start in enumerate(distinct)}
    order = [number[start] for start in ref.starts]
    block = ref.block.sizes if ref.block is not None else None
    whole = block == ref.shape
    semaphore = ref.space.startswith("semaphore")
    return data.Operand(
        ref.name, ref.role, ref.shape, "semaphore" if semaphore else ref.dtype.name,
        ref.dtype.itemsize, ref.space, block, distinct, order, ref.piped,
        measures.coverage(ref.shape, block, distinct, order) if block and not whole else None,
        None if semaphore else ref.heat.result(ref.contents),
    )  # fmt: skip


def _starts(
    found: Sequence[int], block: _Block, buffer: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where a block starts in its array: as the index map has it, and as the run moves it inside."""
    asked, clamped = [], []
    for start, scale, pad, size, dim in zip(
        found, block.scales, block.before, block.sizes, buffer, strict=False
    ):
        first = int(blocks.from_the_start(np.int64(start), scale, dim))
        asked.append(first - pad)
        clamped.append(max(0, min(first, dim - size)) - pad)
    rest = [0] * (len(buffer) - len(asked))
    return tuple(asked + rest), tuple(clamped + rest)


def _with_squeezed(shape: Sequence[int], dims: Sequence[Any]) -> list[int]:
    sizes = iter(shape)
    return [1 if dim.kind == "squeezed" else next(sizes) for dim in dims] + list(sizes)


# -- memory ---------------------------------------------------------------------------------------


def _address(array: np.ndarray) -> int:
    return int(np.asarray(array).__array_interface__["data"][0])


def _add(found: list[_Memory], array: np.ndarray, ref: int, offset: tuple[int, ...]) -> None:
    if array.nbytes and array.flags.c_contiguous:
        low = _address(array)
        found.append(_Memory(low, low + array.nbytes, array, ref, offset))


def _spans(part: np.ndarray, owner: _Memory) -> list[slice]:
    """The elements of an operand that a part of its memory has, as a slice of each dimension. They
    may be more, if the part was reshaped."""
    whole = owner.array
    size = whole.itemsize
    first = np.unravel_index((_address(part) - owner.low) // size, whole.shape)
    lasts = [0] * whole.ndim
    steps = [1] * whole.ndim
    for count, stride in zip(part.shape, part.strides, strict=True):
        if count <= 1 or not stride:
            continue
        axis = next((a for a, s in enumerate(whole.strides) if whole.shape[a] > 1
                     and s <= abs(stride) and stride % s == 0), whole.ndim - 1)  # fmt: skip
        lasts[axis] += (count - 1) * stride // whole.strides[axis]
        steps[axis] = stride // whole.strides[axis]
    spans = []
    for at, last, step, dim, offset in zip(
        map(int, first), lasts, steps, whole.shape, owner.offset, strict=True
    ):
        low, high = min(at, at + last), max(at, at + last)
        if high >= dim:  # it goes on in the next row
            low, high, step = 0, dim - 1, 1
        spans.append(slice(low + offset, high + 1 + offset, max(abs(step), 1)))
    return spans


# -- source ---------------------------------------------------------------------------------------


def _file_and_line(source: Any) -> tuple[str, int] | None:
    text = jax_compat.user_source(source)
    return None if text is None else _split(text)


def _split(text: str) -> tuple[str, int] | None:
    """The file and line in "file:line" or "file:line (function)"."""
    file, _, rest = text.rpartition(":")
    number = rest.partition(" ")[0]
    return (file, int(number)) if file and number.isdigit() else None


class _Lines:
    """The lines of a kernel's source, and those elsewhere that it runs."""

    def __init__(self, source: str | None) -> None:
        self.lines: list[data.Line] = []
        self._known: dict[tuple[str, int], int] = {}
        defined = None if source is None else _split(source)
        if defined is not None:
            file, first = defined
            rest = linecache.getlines(file)[first - 1 :]
            with contextlib.suppress(Exception):  # the source isn't Python that can be read
                rest = inspect.getblock(rest)
            for number, text in enumerate(rest[:_MOST_LINES], first):
                self._add(file, number, text)

    def position(self, line: tuple[str, int] | None) -> int | None:
        if line is None:
            return None
        if line not in self._known:
            self._add(*line, linecache.getline(*line))
        return self._known[line]

    def _add(self, file: str, number: int, text: str) -> None:
        self._known[file, number] = len(self.lines)
        self.lines.append(data.Line(_shown(file), number, text.rstrip()))


@functools.cache
def _shown(file: str) -> str:
    """A path below the current directory is shown relative to it."""
    near = os.path.relpath(file) if os.path.isabs(file) else file
    return file if near.startswith("..") else near
