"""What one run of a function does, kernel by kernel: the watch of a recorder."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pallas_shim import dispatch
from pallas_shim.evaluator.machine.operations import AWAIT, SIGNAL
from pallas_shim.evaluator.program import Instruction, RefType, Value
from pallas_shim.evaluator.watching import Cell, Kernel, Parts, Watch, address
from pallas_shim.recording import operands
from pallas_shim.recording.lines import Line, Lines, place_of
from pallas_shim.recording.operands import OperandMemory, Ref
from pallas_shim.view import data, measures

if TYPE_CHECKING:
    from pallas_shim.recording import Recorder

# What is recorded of one run of a kernel. The page of such a run is below 5 MB.
MOST_CELLS = 1 << 14
_MOST_ACCESSES = 200_000
_MOST_EVENTS = 4_000

_ADDS = frozenset({"semaphore_add", SIGNAL})
_TAKES = frozenset({"semaphore_subtract", "semaphore_take", "take_count"})


class Enough(Exception):
    """So many cells are recorded that the rest isn't."""


@dataclasses.dataclass(eq=False)
class _Run:
    """One program's run of a kernel, while it lasts."""

    kernel: Kernel
    program: int
    grid: tuple[int, ...]
    refs: list[Ref]
    steps: list[int] = dataclasses.field(default_factory=list)
    patterns: dict[tuple[Any, ...], int] = dataclasses.field(default_factory=dict)
    pattern_of_cell: list[int] = dataclasses.field(default_factory=list)
    touched: dict[tuple[Any, ...], list[Any]] = dataclasses.field(default_factory=dict)
    copied: Counter[int] = dataclasses.field(default_factory=Counter)
    complete: bool = True  # all accesses of the current cell were recorded
    end: int = 0
    times: int = 1
    recording: bool = True


def _guarded(method: Callable[..., None]) -> Callable[..., None]:
    """A bug in what is recorded must not cost the user the run. The page tells of it."""

    @functools.wraps(method)
    def run(self: FunctionWatch, *args: Any) -> None:
        if self.failure is not None:
            return
        try:
            method(self, *args)
        except Enough:
            raise
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"

    return run


class FunctionWatch(Watch):
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
        self.failure: str | None = None
        self.kernels: dict[Kernel, list[_Run]] = {}
        self.events: list[tuple[_Run, data.Event, Line | None, int]] = []
        self._names: dict[Value, str] = {}
        self._here: dict[int, _Run] = {}
        self._memory: dict[_Run, list[OperandMemory]] = {}
        self._semaphores: dict[int, tuple[str, str]] = {}  # name and program
        self._flying: dict[int, list[data.Event]] = {}
        self._waiting: dict[int, int] = {}
        self._last: dict[int, dict[str, Any]] = {}
        self._clock = 0
        self._accesses = 0
        self._left_out = 0
        self._lines: dict[int, tuple[Any, Line | None]] = {}
        self._parts = Parts()

    # -- cells ------------------------------------------------------------------------------

    def named(self, names: dict[Value, str]) -> None:
        self._names = names

    @_guarded
    def cell(self, cell: Cell) -> None:
        self._clock += 1
        runs = self.kernels.setdefault(cell.kernel, [])
        run = next((run for run in runs if run.program == cell.program), None)
        if run is None:
            run = _Run(cell.kernel, cell.program, cell.sizes, operands.refs_of(cell))
            runs.append(run)
        elif not any(cell.indices):
            run.times += 1
            run.recording = False  # a kernel in a loop: its first run is shown
        elif run.recording:
            self._close(run)
        if run.recording and (len(run.steps) >= MOST_CELLS or self.recorder.cells_left <= 0):
            run.recording = False
            if self.may_stop:
                raise Enough
        self._here[cell.program] = run
        if not run.recording:
            return
        self.recorder.cells_left -= 1
        run.steps.append(self._clock)
        self._memory[run] = self._place(run, cell)

    def cell_ended(self, program: int) -> None:
        self._here.pop(program, None)

    @_guarded
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

    def _place(self, run: _Run, cell: Cell) -> list[OperandMemory]:
        """Notes the starts of a cell's blocks, and finds the memory of all refs."""
        call = cell.kernel.call
        found: list[OperandMemory] = []
        for position, (ref, array) in enumerate(zip(run.refs, cell.refs, strict=False)):
            offset = (0,) * len(ref.shape)
            at = position - call.num_prefetch
            if ref.block is not None:
                buffer = cell.buffers[at]
                asked, clamped = operands.starts_of(cell.starts[at], ref.block, buffer.shape)
                ref.starts.append(asked)
                before = ref.block.before
                shift = tuple(-pad for pad in before) + offset[len(before) :]
                operands.add_memory(found, buffer, position, shift)
                if not np.may_share_memory(array, buffer):  # checked memory, where it is a copy
                    whole = array.reshape(operands.with_squeezed(array.shape, call.blocks[at].dims))
                    operands.add_memory(found, whole, position, clamped)
            else:
                operands.add_memory(found, array, position, offset)
            if ref.space.startswith("semaphore"):
                self._name_semaphores(run, ref.name, array)
        for memory_of in self._memory.get(run, ()):
            if run.refs[memory_of.ref].role == "scoped":
                found.append(memory_of)
        return sorted(found, key=lambda m: m.low)

    def _name_semaphores(self, run: _Run, name: str, array: np.ndarray) -> None:
        if array.size > 4096:
            return
        base = address(array)
        for index in np.ndindex(array.shape):
            place = base + sum(i * s for i, s in zip(index, array.strides, strict=True))
            text = name + (f"[{', '.join(map(str, index))}]" if index else "")
            self._semaphores[place] = text, _program_name(run)

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

    @_guarded
    def before(self, instruction: Instruction, program: int, ins: Sequence[Any]) -> None:
        run = self._here.get(program)
        if run is None or not run.recording:
            return
        self._clock += 1
        self._waiting[program] = self._clock

    @_guarded
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
            run.refs.append(Ref(
                name, "scoped", array.shape, array.dtype, type.space, None, False,
                measures.HeatMap(array.shape),
            ))  # fmt: skip
        if type.space.startswith("semaphore"):
            self._name_semaphores(run, name, array)
        known = [m for m in self._memory[run] if m.ref != position]
        operands.add_memory(known, array, position, (0,) * array.ndim)
        self._memory[run] = sorted(known, key=lambda m: m.low)

    def _touched(
        self, run: _Run, instruction: Instruction, position: int, kind: str, ins: Sequence[Any]
    ) -> None:
        if self._accesses >= _MOST_ACCESSES:
            run.complete = False
            return
        part = self._parts.part(instruction, position, ins)
        owner = self._owner(run, part)
        line = self._line(instruction.source)
        last = self._last.setdefault(run.program, {})
        last[kind] = (instruction.source, owner, part)
        last.pop("counted", None)
        if owner is None:
            return  # another program's memory, or the kernel closes over it
        self._accesses += 1
        ref = run.refs[owner.ref]
        spans = operands.spans(part, owner)
        ref.heat.add(kind, tuple((s.start, s.stop, s.step) for s in spans))
        start = ref.starts[-1] if ref.starts else (0,) * len(spans)
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

    def _owner(self, run: _Run, part: np.ndarray) -> OperandMemory | None:
        known = self._memory.get(run, [])
        place = address(part)
        at = bisect.bisect_right(known, place, key=lambda m: m.low) - 1
        if at >= 0 and known[at].low <= place < known[at].high:
            return known[at]
        return None

    def _line(self, source: Any) -> Line | None:
        known = self._lines.get(id(source))
        if known is None:
            known = self._lines[id(source)] = (source, place_of(source))
        return known[1]

    # -- semaphores -------------------------------------------------------------------------

    def _counted(self, run: _Run, instruction: Instruction, ins: Sequence[Any]) -> None:
        """Notes a signal, a wait, or a copy that an addition to a DMA's semaphore tells of."""
        semaphore = self._parts.part(instruction, 0, ins)
        count = int(np.asarray(ins[1]).reshape(-1)[0])
        place = address(semaphore)
        name = self._names.get(instruction.ins[0], "a semaphore")
        if instruction.ins[0] in self._names:
            self._semaphores.setdefault(place, (name, _program_name(run)))
        line = self._line(instruction.source)
        cell = len(run.steps) - 1
        if len(self.events) >= _MOST_EVENTS:
            self._left_out += 1
            return
        of_copies = instruction.ins[0].ref.space == "semaphore_dma"
        if instruction.name in _ADDS and of_copies:
            event = self._copied(run, instruction, name, cell)
            self._flying.setdefault(place, []).append(event)
        elif instruction.name in _ADDS:
            event = data.Event("signal", 0, cell, name, self._clock, self._clock, f"adds {count}")
        else:
            begun = self._waiting.pop(run.program, self._clock)
            event = data.Event("wait", 0, cell, name, begun, self._clock, f"takes {count}")
            flying = self._flying.get(place)
            if flying:
                landed = flying.pop(0)
                landed.end, landed.awaited = self._clock, True
        self.events.append((run, event, line, place))

    def _copied(self, run: _Run, instruction: Instruction, name: str, cell: int) -> data.Event:
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

    def _described(self, run: _Run, owner: OperandMemory | None, part: np.ndarray) -> str:
        if owner is None:
            return "memory of another program"
        ref = run.refs[owner.ref]
        spans = operands.spans(part, owner)
        if all((s.start, s.stop) == (0, dim) for s, dim in zip(spans, ref.shape, strict=True)):
            return ref.name
        return f"{ref.name}[{', '.join(f'{s.start}:{s.stop}' for s in spans)}]"

    # -- the result -------------------------------------------------------------------------

    def result(self) -> Iterator[data.RecordedKernel]:
        for kernel, runs in self.kernels.items():
            yield self._kernel(kernel, sorted(runs, key=lambda run: run.program))

    def _kernel(self, kernel: Kernel, runs: Sequence[_Run]) -> data.RecordedKernel:
        call = kernel.call
        lines = Lines(call.source)
        positions = {run: n for n, run in enumerate(runs)}
        events = []
        for run, event, line, place in self.events:
            if run in positions:
                # Another program may have named its semaphore later.
                found = self._semaphores.get(place, (event.semaphore, _program_name(run)))
                event.semaphore, event.owner = found
                event.run, event.line = positions[run], lines.position(line)
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
        return data.RecordedKernel(
            call.name, self.name, call.source, axes, lines.lines, made, events,
            list(self._notes_of(made)), self.calls,
        )  # fmt: skip

    def _notes_of(self, runs: Sequence[data.RecordedRun]) -> Iterator[str]:
        if self.failure is not None:
            yield f"The recording broke off, which is a bug in pallas_shim: {self.failure}"
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

    def _made(self, run: _Run, lines: Lines) -> data.RecordedRun:
        shown = [operands.made(ref) for ref in run.refs]
        cells = math.prod(run.grid)
        moved = {"in": [0] * len(run.steps), "out": [0] * len(run.steps)}
        for ref, operand in zip(run.refs, shown, strict=True):
            if not operand.piped or ref.block is None:
                continue
            sizes = [
                measures.block_bytes(ref.shape, operand.block or (), start, operand.itemsize)
                for start in operand.blocks
            ]
            if ref.role == "input":  # an output is never fetched, aliased or not
                _add_to(moved["in"], measures.fetched(operand.block_of_cell, sizes))
            else:
                _add_to(moved["out"], measures.written_back(operand.block_of_cell, sizes))
        patterns = [
            [
                data.LineAccess(lines.position(line), ref, kind, count, nbytes, low, high)
                for line, ref, kind, count, nbytes, low, high in pattern
            ]
            for pattern in run.patterns
        ]
        return data.RecordedRun(
            _program_name(run),
            run.grid, cells, len(run.steps), shown, patterns, run.pattern_of_cell,
            moved["in"], moved["out"], [run.copied[n] for n in range(len(run.steps))],
            run.steps, run.end, run.times,
        )  # fmt: skip


def _program_name(run: _Run) -> str:
    names = run.kernel.programs
    return names[run.program] if run.program < len(names) else ""


def _add_to(total: list[int], more: Sequence[int]) -> None:
    total[:] = [a + b for a, b in zip(total, more, strict=True)]


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
