"""Counts what kernels decide and copy while they run in NumPy: their loops, branches and DMAs, by
source line, and what lies in their scalar memory. Only profiles ask for this.

The first run of each function goes through a watched program, which isn't optimised. Functions
whose kernels decide nothing by data are left alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pallas_shim.chip import noting
from pallas_shim.chip.scalar_unit import NOTHING, Executed
from pallas_shim.evaluator import compiler
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.machine.operations import SIGNAL
from pallas_shim.evaluator.program import Instruction, Region
from pallas_shim.evaluator.watching import Cell, Kernel, Parts, Watch
from pallas_shim.jax_compat import export_tpu, jaxprs, pallas
from pallas_shim.jax_compat.callbacks import CALLBACK_PRIMITIVES

_ADDS = frozenset({"semaphore_add", SIGNAL})
_DECIDES = frozenset({"while", "cond", "dma_start"})
# A run that decides more often isn't counted to its end, and then isn't used.
_MOST = 5_000_000
# Rows of two-dimensional scalar memory take whole multiples of so many words.
_ROW = 128


@dataclasses.dataclass
class _Counts:
    """One run of a kernel. ``loops``: the turns of each loop, by line. ``usable``: it was counted
    to its end."""

    scalars: dict[int, list[int]]
    loops: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    branches: dict[str, list[bool]] = dataclasses.field(default_factory=dict)
    copies: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    usable: bool = True


class Counter:
    """An observer of `dispatch` that counts the first run of each kernel."""

    def __init__(self) -> None:
        self._found: dict[Any, _Counts] = {}
        self._lock = threading.Lock()

    def planned(self, executable: Executable, function: Any) -> Executable:
        """See `dispatch.Observer`. ``function``: a `dispatch.Function`."""
        try:
            keys = _keys(function.jaxpr, function.axes)
            if not keys:
                return executable
            watch = _Watch(keys)
            watched = compiler.compile_watched(
                function.jaxpr, watch, name=function.name, axes=function.axes,
                on_mesh=function.on is not None,
            )  # fmt: skip
        except Exception:  # without counts there is less to say, and the call goes on
            return executable
        if {i.name for i in executable.program.top.walk()} & set(CALLBACK_PRIMITIVES):
            return executable  # not optimising it would change what the user sees
        return _Counted(executable, watched, watch, self)

    def ran(self, *_: Any, **__: Any) -> None:
        """What a run gives isn't looked at here."""

    def keep(self, found: Mapping[Any, _Counts]) -> None:
        """Keeps what was counted, unless an earlier run was."""
        with self._lock:
            for key, counts in found.items():
                self._found.setdefault(key, counts)

    def executed(self, key: Any) -> Executed:
        """What the kernel decided, by `noting.key`."""
        counts = self._found.get(key)
        if counts is None or not counts.usable:
            return NOTHING
        return Executed(counts.scalars, counts.branches, counts.loops, counts.copies)


class _Counted(Executable):
    """An executable whose first call is counted."""

    def __init__(
        self, plain: Executable, watched: Executable, watch: _Watch, counter: Counter
    ) -> None:
        self.program = plain.program
        self._plain, self._watched, self._watch, self._counter = plain, watched, watch, counter
        self._first = threading.Lock()

    def run(self, args: Sequence[np.ndarray]) -> list[np.ndarray]:
        if not self._first.acquire(blocking=False):
            return self._plain.run(args)
        results = self._watched.run(args)
        self._counter.keep(self._watch.found)
        return results


def _keys(jaxpr: Any, axes: Mapping[Any, int]) -> dict[int, Any]:
    """The keys of the kernels that data may decide in, by the identity of their jaxprs."""
    found: dict[int, Any] = {}
    for site in export_tpu.sites(jaxpr, axes):
        inner = pallas.kernel_jaxpr(site.equation)
        mapping = site.equation.params.get("grid_mapping")
        prefetched = mapping is not None and mapping.num_index_operands > 0
        if prefetched or jaxprs.primitives(inner) & _DECIDES:
            key = noting.key(site)
            found[id(inner)] = key if found.get(id(inner), key) == key else None
    return {inner: key for inner, key in found.items() if key is not None}


class _Watch(Watch):
    """Counts one run. The first run of each kernel is kept, of one program."""

    enters = True

    def __init__(self, keys: Mapping[int, Any]) -> None:
        self.found: dict[Any, _Counts] = {}
        self._keys = keys
        self._here: _Counts | None = None
        self._bodies: dict[int, tuple[Any, str]] = {}
        self._lines: dict[int, tuple[Any, str | None]] = {}
        self._turns: dict[str, list[int]] = {}
        self._copying: dict[int, Any] = {}
        self._parts = Parts()
        self._left = _MOST

    # -- kernels ----------------------------------------------------------------------------

    def cell(self, cell: Cell) -> None:
        if any(cell.indices):
            return
        self._here = None
        key = self._keys.get(id(cell.kernel.call.jaxpr))
        if key is None or key in self.found:
            return
        self._here = self.found[key] = _Counts(_scalars(cell))
        if len(cell.kernel.programs) > 1:
            self._here.usable = False

    def left(self, kernel: Kernel, program: int, buffers: Sequence[np.ndarray]) -> None:
        self._here = None

    # -- what decides -----------------------------------------------------------------------

    def wants(self, instruction: Instruction) -> Collection[str]:
        if instruction.name == "while":
            line = self._line(instruction.source)
            params = instruction.regions[1].params
            if line is not None:
                self._bodies[id(params)] = (params, line)
            return ("before", "after")
        if instruction.name in ("switch", "dma") or self._reads_for_copy(instruction):
            return ("before",)
        return ()

    def bound(self, values: Mapping[Any, Any], body: Sequence[Instruction]) -> None:
        # A copy to the same core is a load, a store, and an addition to a semaphore.
        for instruction in body:
            if instruction.name in _ADDS and instruction.ins[0].ref.space == "semaphore_dma":
                self._copying[id(instruction.source)] = instruction.source

    def _reads_for_copy(self, instruction: Instruction) -> bool:
        reads = bool(instruction.operation.effects.reads) and instruction.name not in _ADDS
        return reads and id(instruction.source) in self._copying

    def entered(self, region: Region, program: int, values: Sequence[Any]) -> None:
        found = self._bodies.get(id(region.params))
        if self._here is not None and found is not None and self._turns.get(found[1]):
            self._turns[found[1]][-1] += 1
            self._spend()

    def before(self, instruction: Instruction, program: int, ins: Sequence[Any]) -> None:
        here, line = self._here, self._line(instruction.source)
        if here is None or line is None:
            return
        self._spend()
        if instruction.name == "while":
            self._turns.setdefault(line, []).append(0)
        elif instruction.name != "switch":
            times, size = here.copies.get(line, (0, 0))
            part = self._parts.part(instruction, 0, ins)
            here.copies[line] = times + 1, size + part.nbytes
        else:
            runs = _runs(instruction, int(np.asarray(ins[0]).reshape(())))
            if runs is None:  # which one the compiler tests for isn't known
                here.branches[line] = []
            else:
                here.branches.setdefault(line, []).append(runs)

    def after(
        self, instruction: Instruction, program: int, ins: Sequence[Any], outs: Sequence[Any]
    ) -> None:
        line = self._line(instruction.source)
        if self._here is not None and line is not None and self._turns.get(line):
            self._here.loops.setdefault(line, []).append(self._turns[line].pop())

    def _spend(self) -> None:
        self._left -= 1
        if self._left < 0 and self._here is not None:
            self._here.usable = False
            self._here = None

    def _line(self, source: Any) -> str | None:
        known = self._lines.get(id(source))
        if known is None:
            text = jaxprs.user_source(source)
            known = self._lines[id(source)] = (source, text and text.partition(" (")[0])
        return known[1]


def _runs(instruction: Instruction, index: int) -> bool | None:
    """Whether a branch that holds anything is taken; None: several hold something."""
    full = [any(i.name != "probe" for i in r.body) or bool(r.results) for r in instruction.regions]
    return full[min(max(index, 0), len(full) - 1)] if sum(full) == 1 else None


def _scalars(cell: Cell) -> dict[int, list[int]]:
    """The words of the operands in scalar memory, as they lie there."""
    found = {}
    spaces = cell.kernel.spaces
    for position in range(cell.kernel.call.num_prefetch + cell.kernel.call.num_inputs):
        prefetched = position < cell.kernel.call.num_prefetch
        in_smem = position < len(spaces) and "smem" in str(spaces[position])
        if position < len(cell.refs) and (prefetched or in_smem):
            with contextlib.suppress(_Elsewhere):
                found[position] = _words(np.asarray(cell.refs[position]))
    return found


class _Elsewhere(Exception):
    """How an array lies in scalar memory isn't known."""


def _words(array: np.ndarray) -> list[int]:
    if array.dtype.kind not in "iu" or array.dtype.itemsize != 4 or array.ndim > 2:
        raise _Elsewhere
    if array.ndim == 2:
        if array.shape[1] > _ROW:
            raise _Elsewhere
        array = np.pad(array, ((0, 0), (0, _ROW - array.shape[1])))
    return [int(word) for word in array.astype(np.int32).ravel()]
