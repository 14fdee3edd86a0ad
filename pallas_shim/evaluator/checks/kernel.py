"""The checks of one kernel: its blocks, its memory, its cells, what it leaves behind."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pallas_shim.evaluator.analysis.cell_tables import table_of, tables
from pallas_shim.evaluator.checks import blocks, global_memory, prune
from pallas_shim.evaluator.checks.cuts import Cut, Shared, Visits, cut_of
from pallas_shim.evaluator.checks.lowering import OBJECT, Aspect, Checker, Memory, enter_cell
from pallas_shim.evaluator.checks.outputs import check_result
from pallas_shim.evaluator.checks.races import History
from pallas_shim.evaluator.checks.run import AccessSite, Activation
from pallas_shim.evaluator.checks.shadow import DEFINED, NEVER, OTHER_CELL, Shadow, Window
from pallas_shim.evaluator.findings import Finding
from pallas_shim.evaluator.program import Array, Effects, Instruction, Region, Value
from pallas_shim.jax_compat.pallas import Block, PallasCall

if TYPE_CHECKING:  # lower is in a higher layer
    from pallas_shim.evaluator.lower import Lowering

# The blocks of larger grids are looked at while the kernel runs.
_MOST_CELLS = 1 << 20
# The kind of an instruction without effect, in a program whose values may not be the user's.
AS_ON_A_TPU = "as on a TPU"
# An array may lie in these memory spaces already, and then isn't copied to a buffer.
_NOT_COPIED = ("vmem", "smem")


class _Operand(NamedTuple):
    """An input or output that is cut into blocks. ``site`` stands for its block specification.
    ``visits``: where its blocks are, None if only the run knows."""

    position: int
    site: AccessSite
    cut: Cut
    memory: Memory
    visits: Visits | None


class KernelChecks:
    """The checks of a pallas_call while it is lowered.

    Use: `begin_cell`, `blocks` and `end_cell` in turn while the cell is lowered; then `finish`,
    which gives the cells without checks that nothing needs; then `enter`, before the cells are
    added to the program; after them `end`, and `output` for each result, and `leave`. Where cores
    share the grid as programs, each of them has these up to `end`, and `enter_programs` comes
    before all.
    """

    def __init__(
        self,
        checker: Checker,
        call: PallasCall,
        names: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        sizes: Sequence[Value],
        in_programs: bool,
        unused: Collection[int],
    ) -> None:
        """``in_programs``: cores that wait for one another share the grid, each as a program.
        ``unused``: the results that nothing uses."""
        self.checker = checker
        self.lowering: Lowering = checker.lowering
        self.call = call
        self.names = names
        self.shapes = shapes
        self.sizes = sizes
        self.activation = Value(OBJECT)
        self._in_programs = in_programs
        self._unused = {call.num_inputs + position for position in unused}
        self._of_all = Value(OBJECT) if in_programs else self.activation
        self._outer = checker.activation, checker.kernel
        checker.activation, checker.kernel = self.activation, call.name
        # Axes of size 1 hold no two cells.
        self._parallel = [
            (call.on_gpu or parallel) and (size.const is None or int(size.const) > 1)
            for parallel, size in zip(call.parallel, sizes, strict=True)
        ]
        # Cores that wait for one another are programs, each with a state of its own.
        self._on_cores = call.cores is not None and call.cores.waits_for_others
        self._body: list[Instruction] = []
        self._start = 0
        self._made: list[tuple[Aspect, Callable[[], Any]]] = []
        self._common: list[tuple[Aspect, Callable[[], Any]]] = []  # to all programs
        self._of_each: dict[Aspect, Aspect] = {}  # the shadows of all programs, by the own one
        self._outputs: dict[int, Memory] = {}
        self._always_written: set[int] = set()
        self._operands: dict[int, _Operand] = {}
        self._scratch: list[Value] = []
        self._static: list[Callable[[Activation], Finding]] = []
        self._shared: dict[int, list[Shared]] = {}  # blocks of outputs, if known before

    # -- one cell -------------------------------------------------------------------------------

    def begin_cell(self, indices: Sequence[Value], prefetch: Sequence[Value]) -> None:
        """Before the index maps run."""
        for at, ref in enumerate(prefetch):
            self._follow(ref, self._name(at - self.call.num_prefetch, None), DEFINED)
        sizes = [1 << 20 if s.const is None else int(s.const) for s in self.sizes]
        parallel = [axis for axis, is_parallel in enumerate(self._parallel) if is_parallel]
        self._body, self._start = self.lowering.body, len(self.lowering.body)
        self.checker.emit("cell", [self.activation, *indices], enter_cell(sizes, parallel))

    def blocks(
        self,
        indices: Sequence[Value],
        starts: Sequence[Sequence[Value]],
        body: Sequence[Instruction],
        prefetch: Sequence[Value],
        refs: Sequence[Value],
        scratch: Sequence[Value],
    ) -> None:
        """Before the kernel's own code. ``body`` computes the ``starts`` of the blocks, which are
        in ``refs``."""
        read = {value for instruction in body for value in instruction.ins}
        for ref in prefetch:
            self.checker.memory[ref].decides = ref in read
        known = self._tables(indices, body)
        for position, (block, of_block) in enumerate(zip(self.call.blocks, starts, strict=True)):
            self._block(position, block, of_block, refs[position], known)
        self._scratch = list(scratch)
        turn = [index for index, p in zip(indices, self._parallel, strict=True) if p]
        if self._in_programs:  # the kernel has to know which cells are its core's
            turn = []
        for at, ref in enumerate(scratch):
            memory = self._follow(ref, self._name(len(self.call.blocks) + at, None), NEVER)
            if turn and memory.codes is not None and self.checker.checks("races"):
                self.checker.emit("turn", [memory.codes.value, *turn], _turn, memory.codes)

    def end_cell(self, refs: Sequence[Value], body: Sequence[Instruction]) -> None:
        """After the kernel's own code, which is ``body``."""
        self._always_written = {
            position for position, ref in enumerate(refs) if ref in self.checker.defined
        }
        self.checker.defined.difference_update(refs)
        self.checker.defined.difference_update(self._scratch)
        used = {
            value
            for instruction in Region((), tuple(body), ()).walk()
            if instruction.name not in prune.OURS
            for value in instruction.ins
        }
        if self.checker.checks("blocks"):
            self._aliases([ref in used for ref in refs])
        if self._on_cores:
            with self.lowering.block() as first:
                self._define()
            self._body[self._start : self._start] = first

    def keeps_scalars(self) -> None:
        """Notes that cells see what earlier ones wrote to scalar prefetch, as on a TPU, though the
        interpreter that the user asked for shows each the original."""
        self.checker.emit(AS_ON_A_TPU, [], _nothing)

    def _name(self, at: int, block: Block | None) -> str:
        at += self.call.num_prefetch
        if at < len(self.names):
            return self.names[at]
        return "a ref" if block is None else block.origin

    def _follow(self, ref: Value, name: str, code: int) -> Memory:
        """Follows memory that is there before the first cell."""
        memory = self.checker.memory[ref] = Memory(name)
        if not ref.ref.key_ndim:
            self._made += self.checker.aspects(memory, ref.ref, code)
        if code == DEFINED:
            memory.codes = None
        return memory

    def _block(
        self, position: int, block: Block, starts: Sequence[Value], ref: Value, known: Any
    ) -> None:
        name = self._name(position, block)
        self.lowering.names.setdefault(ref, name)
        is_output = position >= self.call.num_inputs
        if ref.ref.space.startswith("semaphore"):
            return  # the caller's, which may have started copies on it
        if block.in_hbm:
            self._in_hbm(position, ref, name, is_output)
            return
        cut = cut_of(block, self.shapes[position])
        visits = None if known is None else self._visits(cut, starts, known)
        site = AccessSite(self.checker.next_number(), name, "has a block of", self.lowering.source)
        memory = self._follow(ref, name, DEFINED)
        self._operands[position] = _Operand(position, site, cut, memory, visits)
        if ref.ref.key_ndim:
            return
        if self.call.on_gpu:
            self._on_gpu(self._operands[position], starts, ref)
            return
        if self.checker.checks("bounds"):
            self._bounds(self._operands[position], starts)
        if is_output and any(self._parallel) and self.checker.checks("races"):
            self._one_turn_each(self._operands[position])
        # Where blocks divide the array, those that aren't inside are wholly outside.
        inside = visits is not None and visits.are_inside() or cut.divides()
        in_place = self._partner(position) is not None and ref.ref.space in _NOT_COPIED
        in_place = in_place and ref.ref.shape == self.shapes[position]
        if self.checker.follows_codes and (is_output and not in_place or not inside):
            shape = ref.ref.shape
            codes = memory.codes = Aspect()
            reloads = block.is_reloaded
            self._made.append((codes, lambda: Window(shape, cut, is_output, reloads)))
            if is_output and self._in_programs:
                self._of_each[codes] = Aspect(codes)
            ins = [self.activation, codes.value, *starts]
            owned = visits is None and is_output and any(self._parallel)
            owned = owned and not self._in_programs
            if owned and self.checker.checks("races"):
                codes.needed = True
            self.checker.emit("block", ins, blocks.move(cut, site, owned), codes)
            if is_output:
                self._outputs[position] = memory

    def _in_hbm(self, position: int, ref: Value, name: str, is_output: bool) -> None:
        """An operand that the kernel sees whole. An output that shares its array with an input is
        the same memory."""
        memory = self.checker.memory.get(ref)
        partner = self._partner(position)
        if is_output and partner is not None and partner in self._whole:
            memory = self._whole[partner]
        if memory is None or memory not in self._whole.values():
            code = DEFINED if not is_output or partner is not None else NEVER
            before = len(self._made)
            memory = self._follow(ref, name, code)
            if self._in_programs:  # all of them have this memory, and the run's clocks find races
                self._common += self._made[before:]
                del self._made[before:]
            written = is_output or self._partner(position) is not None
            races = self.checker.checks("races") and not self._in_programs
            if any(self._parallel) and races and written:
                history, shape = Aspect(), ref.ref.shape
                memory.history = history
                self._made.append((history, lambda: History(shape)))
        self.checker.memory[ref] = memory
        self._whole[position] = memory
        if is_output:
            self._outputs[position] = memory

    def _on_gpu(self, operand: _Operand, starts: Sequence[Value], ref: Value) -> None:
        """A block on a GPU: a part of its array, which it shares with an alias."""
        position, cut, memory = operand.position, operand.cut, operand.memory
        partner = self._partner(position)
        is_output = position >= self.call.num_inputs
        rest = self.shapes[position][len(cut.shape) :]
        memory.sticks_out = operand.visits is None or not operand.visits.are_inside()
        if partner in self._arrays:
            assert partner is not None
            codes, history = self._arrays[partner]
        else:
            codes, history = Aspect(), Aspect()
            code = NEVER if is_output and partner is None else DEFINED
            self._made.append((codes, lambda: global_memory.shadow(cut, rest, code)))
            shape = global_memory.padded(cut, rest)
            self._made.append((history, lambda: History(shape)))
        self._arrays[position] = codes, history
        stores = memory.sticks_out and self.checker.checks("bounds")
        if (is_output or memory.sticks_out) and self.checker.follows_codes or stores:
            memory.codes = Aspect(codes)
            make = global_memory.block_shadow(cut)
            ins = [codes.value, *starts]
            self.checker.define(memory.codes.value, "block", make, memory.codes, ins)
            if is_output and self.checker.follows_codes:
                self._outputs[position] = self._gpu_output(memory, codes)
        visits = operand.visits
        apart = visits is not None and not visits.two_turns(self._parallel)
        if any(self._parallel) and self.checker.checks("races"):
            if not apart or partner is not None:
                memory.history = Aspect(history)
                of_block = global_memory.block_history(cut)
                ins = [history.value, *starts]
                self.checker.define(memory.history.value, "block", of_block, memory.history, ins)

    def _gpu_output(self, memory: Memory, codes: Aspect) -> Memory:
        """The array of an output, as it is after all cells."""
        array = Memory(memory.name)
        array.codes = codes
        return array

    @functools.cached_property
    def _arrays(self) -> dict[int, tuple[Aspect, Aspect]]:
        """The codes and the history of the arrays of operands on a GPU."""
        return {}

    @functools.cached_property
    def _whole(self) -> dict[int, Memory]:
        """The memory of operands that the kernel sees whole."""
        return {}

    def _partner(self, position: int) -> int | None:
        """The operand that shares its array with another."""
        for given, out in self.call.aliases:
            pair = given - self.call.num_prefetch, self.call.num_inputs + out
            if position in pair and pair[0] >= 0:
                return pair[0] + pair[1] - position
        return None

    # -- blocks ---------------------------------------------------------------------------------

    def _tables(self, indices: Sequence[Value], body: Sequence[Instruction]) -> Any:
        """The tables of scalars in the index maps, over all cells. None if they aren't known."""
        if any(size.const is None for size in self.sizes):
            return None
        if not 0 < math.prod(self._bounds_of_grid()) <= _MOST_CELLS:
            return None
        region = Region(tuple(indices), tuple(body), ())
        return tables(self._bounds_of_grid(), region, {}, {})

    def _bounds_of_grid(self) -> tuple[int, ...]:
        return tuple(int(size.const) for size in self.sizes if size.const is not None)

    def _visits(self, cut: Cut, starts: Sequence[Value], known: Any) -> Visits | None:
        bounds = self._bounds_of_grid()
        columns = []
        for start, scale in zip(starts, cut.scales, strict=True):
            table = table_of(start, known, len(bounds))
            if table is None:
                return None
            full = np.broadcast_to(table.astype(np.int64) * scale, bounds)
            columns.append(full.reshape(-1))
        places = np.stack(columns, -1) if columns else np.zeros((math.prod(bounds), 0), np.int64)
        return Visits(cut, bounds, places)

    def _bounds(self, operand: _Operand, starts: Sequence[Value]) -> None:
        """The check that no block lies wholly outside its array."""
        cut, site, visits = operand.cut, operand.site, operand.visits
        if visits is None:
            fn = blocks.check_inside(cut, site)
            self.checker.emit("bounds", [self.activation, *starts], fn)
            return
        found = visits.first_outside()
        if found is not None:
            self._static.append(functools.partial(blocks.outside, site, cut, *found))

    def _one_turn_each(self, operand: _Operand) -> None:
        """The check that no two cells that may run at the same time have the same block."""
        if operand.visits is None:
            return  # the window looks
        found = operand.visits.two_turns(self._parallel)
        if found:
            self._shared[operand.position] = found

    def _aliases(self, used: Sequence[bool]) -> None:
        """The check that no input's block is loaded before an output's block in its place is
        written."""
        if self.call.order is not None and any(self.call.order.permutations):
            return  # a cell isn't followed by the next one of the grid
        for position, operand in self._operands.items():
            partner = self._operands.get(self._partner(position) or -1)
            if partner is None or position >= self.call.num_inputs or not used[position]:
                continue
            if self.call.blocks[position].buffers == 1 or self.call.on_gpu:
                continue
            if operand.visits is None or partner.visits is None:
                continue
            found = operand.visits.loaded_too_early(partner.visits)
            if found is not None:
                self._static.append(
                    functools.partial(blocks.too_early, operand.site, partner.site, *found)
                )

    # -- the whole kernel -----------------------------------------------------------------------

    def finish(self, cells: Sequence[Instruction]) -> list[Instruction]:
        """The cells, without the checks that are proven or that nothing needs."""
        for position, memory in self._outputs.items():
            if memory.codes is None or position in self._unused:
                continue
            operand = self._operands.get(position)
            covered = operand is None or operand.visits is not None and operand.visits.cover()
            reached = operand is not None and operand.memory.reached or memory.reached
            if position not in self._always_written or not covered or reached:
                memory.codes.needed = True
        cells = prune.unneeded(prune.proven(cells))
        return cells if prune.has_checks(cells) else prune.without_cell(cells)

    def enter(self) -> None:
        """Emits what has to be there before the first cell."""
        if not self._on_cores:
            self._define()

    def enter_programs(self) -> None:
        """Emits what has to be there before the first program."""
        self.checker.define_activation(self._of_all, self.call.name, self.call.source)
        for of_all in self._of_each.values():
            if of_all.needed:
                self.checker.define(of_all.value, "states", dict, of_all)
        self._define_states(self._common)
        self._report_static()

    def _define(self) -> None:
        self.checker.define_activation(self.activation, self.call.name, self.call.source)
        self._define_states(self._made)
        if not self._in_programs:
            self._report_static()

    def _define_states(self, made: Sequence[tuple[Aspect, Callable[[], Any]]]) -> None:
        for aspect, make in made:
            of_all = self._of_each.get(aspect)
            if not (aspect.needed or self._on_cores):
                continue
            if of_all is None:
                self.checker.define(aspect.value, "state", make, aspect)
                continue
            ins = [of_all.value, self.lowering.machine.levels[-1].number]
            self.checker.define(aspect.value, "state", _noting(make), aspect, ins)

    def _report_static(self) -> None:
        """Emits the findings that are known before the kernel runs."""
        if self._static:
            static = tuple(self._static)

            def report(activation: Activation) -> tuple[()]:
                for make in static:
                    activation.run.report(make(activation))
                return ()

            self.checker.emit("blocks", [self._of_all], report)

    def end(self) -> None:
        """Emits, after the last cell, the checks of what is left on semaphores."""
        if self._on_cores:
            return
        self.checker.left([
            ref
            for ref in self._scratch
            if (memory := self.checker.memory.get(ref)) is not None
            and memory.semaphores is not None
            and memory.semaphores.needed
        ])  # fmt: skip

    def output(self, position: int, value: Value) -> Value:
        """Emits the checks of a result, and returns the result as the program uses it."""
        if self.call.num_inputs + position in self._unused:
            return value
        value = self._written_once(self.call.num_inputs + position, value)
        memory = self._outputs.get(self.call.num_inputs + position)
        if memory is None or memory.codes is None or not memory.codes.needed or self._on_cores:
            return value
        site = AccessSite(self.checker.next_number(), memory.name, "leaves", self.lowering.source)
        initial = NEVER if self._partner(self.call.num_inputs + position) is None else DEFINED
        shadows = self._of_each.get(memory.codes, memory.codes)
        return check_result(self.checker, self._of_all, shadows, site, initial, value)

    def _written_once(self, position: int, value: Value) -> Value:
        """Emits the check that blocks that several cells wrote at the same time don't matter."""
        operand, known = self._operands.get(position), self._shared.get(position, [])
        if operand is None:
            return value
        codes, cut, site = operand.memory.codes, operand.cut, operand.site
        owned = codes is not None and operand.visits is None and any(self._parallel)
        owned = owned and not self._in_programs
        if not known and not (owned and self.checker.checks("races")) or self.call.on_gpu:
            return value
        if known:

            def note(activation: Activation) -> tuple[()]:
                finding = blocks.shared(site, cut, known[0], activation)
                activation.run.candidates.setdefault(site.number, finding)
                return ()

            self.checker.emit("blocks", [self._of_all], note)
        if self.checker.asked.disturbing and not value.type.key_ndim and not self._on_cores:
            ins = [self._of_all] if codes is None or not owned else [self._of_all, codes.value]
            disturb = blocks.disturb_shared(site, cut, [block.starts for block in known])
            (value,) = self.lowering.memory(
                "disturb", [value, *ins], [value.type], disturb, Effects(io=True), view=True
            )
        return value

    def leave(self) -> None:
        """After all results."""
        self.checker.activation, self.checker.kernel = self._outer


def _nothing() -> tuple[()]:
    return ()


def _noting(make: Callable[[], Any]) -> Callable[..., Any]:
    """Makes the state of a program, and notes it among those of all."""

    def run(of_all: dict[int, Any], number: Array) -> Any:
        state = of_all[int(number)] = make()
        return state

    return run


def _turn(shadow: Shadow, *place: Array) -> tuple[()]:
    turn = tuple(map(int, place))
    if turn != shadow.turn:
        if shadow.turn is not None:
            shadow.undefine(OTHER_CELL)
        shadow.turn = turn
    return ()
