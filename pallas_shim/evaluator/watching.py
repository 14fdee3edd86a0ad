"""Watched runs: probes in a program tell a `Watch` what the program does while it runs.

Only views and the debugger ask for this. Lowering notes each kernel and puts a probe at the start
of each cell; `probed` puts more around instructions. A probe is an instruction with an effect, so
a watched program isn't optimised. Its values are those of any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.machine.operations import PROGRAMS
from pallas_shim.evaluator.op_types import PATH
from pallas_shim.evaluator.program import (
    Effects,
    Instruction,
    Operation,
    Program,
    Region,
    Value,
    make_instruction,
)
from pallas_shim.jax_compat.pallas import PallasCall

if TYPE_CHECKING:  # lower is in a higher layer
    from pallas_shim.evaluator.lower import Lowering

_SEEN = Effects(io=True)


@dataclasses.dataclass(eq=False)
class Kernel:
    """A kernel as it was lowered. One that JAX calls at two places of a function is two.

    ``names`` are the user's names of its refs: scalar prefetch, inputs, outputs, scratch. They may
    be fewer. ``shapes`` are the arrays' that the blocks are cut from. ``programs`` names the
    programs that run it, or is empty if there is one.
    """

    call: PallasCall
    names: Sequence[str]
    shapes: Sequence[tuple[int, ...]]
    spaces: Sequence[str]
    programs: Sequence[str] = ()

    def name(self, position: int) -> str:
        """The user's name of the ref at a position."""
        return self.names[position] if position < len(self.names) else f"ref {position}"


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Cell:
    """A cell as it starts.

    ``program`` is the number of the program that runs it. ``sizes`` are the grid's. ``refs`` are
    the NumPy arrays of the kernel's refs, blocks as this cell sees them; ``buffers`` the whole
    arrays that the blocks are cut from, as they are padded. ``starts`` has for each block what its
    index map returned.
    """

    kernel: Kernel
    program: int
    indices: tuple[int, ...]
    sizes: tuple[int, ...]
    refs: Sequence[np.ndarray]
    buffers: Sequence[np.ndarray]
    starts: Sequence[tuple[int, ...]]


class Watch:
    """Is told of the events of a run. It must not change any array that it gets.

    ``enters``: whether `entered` is to be called.
    """

    enters = False

    def named(self, names: dict[Value, str]) -> None:
        """The user's names of refs. More come while the function is lowered."""

    def bound(self, values: Mapping[Any, Value], body: Sequence[Instruction]) -> None:
        """What the variables of a jaxpr of the user's became where it was lowered to these
        instructions. The jaxprs inside it come first. One that is called twice is lowered twice."""

    def cell(self, cell: Cell) -> None:
        """A cell starts."""

    def cell_ended(self, program: int) -> None:
        """A program's cell has ended. What runs before the next one isn't the kernel's own code,
        but the index maps'."""

    def left(self, kernel: Kernel, program: int, buffers: Sequence[np.ndarray]) -> None:
        """A kernel has ended. Its buffers hold their final contents."""

    def entered(self, region: Region, program: int, values: Sequence[Any]) -> None:
        """A region begins another time, with these values of its parameters."""

    def wants(self, instruction: Instruction) -> Collection[str]:
        """Which of "before" and "after" is to be called at each run of an instruction."""
        return ()

    def before(self, instruction: Instruction, program: int, ins: Sequence[Any]) -> None:
        """An instruction is about to run."""

    def after(
        self, instruction: Instruction, program: int, ins: Sequence[Any], outs: Sequence[Any]
    ) -> None:
        """An instruction has run."""


# -- probes that lowering emits ----------------------------------------------------------------


def emit_cell(
    lowering: Lowering,
    watch: Watch,
    kernel: Kernel,
    indices: Sequence[Value],
    sizes: Sequence[Value],
    refs: Sequence[Value],
    buffers: Sequence[Value],
    starts: Sequence[Sequence[Value]],
) -> None:
    """Emits the probe at the start of a cell."""
    levels = lowering.machine.levels
    kernel.programs = levels[-1].names if levels else ()
    groups = [indices, sizes, refs, buffers, *starts]
    ends = np.cumsum([len(group) for group in groups]).tolist()

    def tell(number: Any, *values: Any) -> tuple[()]:
        parts = [values[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
        at, extents, seen, whole, *firsts = parts
        watch.cell(Cell(
            kernel, int(number), _ints(at), _ints(extents), seen, whole, list(map(_ints, firsts))
        ))  # fmt: skip
        return ()

    operands = [_number(lowering), *[value for group in groups for value in group]]
    lowering.memory("probe", operands, [], tell, _SEEN)


def emit_cell_end(lowering: Lowering, watch: Watch) -> None:
    """Emits the probe at the end of a cell."""

    def tell(number: Any) -> tuple[()]:
        watch.cell_ended(int(number))
        return ()

    lowering.memory("probe", [_number(lowering)], [], tell, _SEEN)


def emit_left(lowering: Lowering, watch: Watch, kernel: Kernel, buffers: Sequence[Value]) -> None:
    """Emits the probe at the end of a kernel."""

    def tell(number: Any, *arrays: Any) -> tuple[()]:
        watch.left(kernel, int(number), arrays)
        return ()

    lowering.memory("probe", [_number(lowering), *buffers], [], tell, _SEEN)


def _ints(values: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(np.asarray(value).reshape(())) for value in values)


def _number(lowering: Lowering) -> Value:
    levels = lowering.machine.levels
    return levels[-1].number if levels else lowering.const(np.int32(0))


# -- probes around instructions ----------------------------------------------------------------


def probed(program: Program, watch: Watch) -> Program:
    """The program with the probes that the watch wants.

    A load whose value nobody uses has none after it. Each store of JAX's is also such a load.
    """
    used = set(program.top.uses())
    return Program(program.name, _probed(program.top, watch, None, used))


def _probed(
    region: Region, watch: Watch, number: Value | None, used: Collection[Value]
) -> Region:
    body: list[Instruction] = []
    for instruction in region.body:
        operation, ins, outs, regions, source = instruction
        if regions:
            inner = [
                _probed(r, watch, r.params[0] if operation.name == PROGRAMS else number, used)
                for r in regions
            ]
            instruction = instruction._replace(regions=tuple(inner))
        wanted = () if operation.name == "probe" else watch.wants(instruction)
        if "before" in wanted:
            body.append(_before(instruction, watch, number))
        body.append(instruction)
        dropped = operation.name == "get" and outs[0] not in used
        if "after" in wanted and not dropped:
            body.append(_after(instruction, watch, number))
    if watch.enters:
        body.insert(0, _entered(region, watch, number))
    return Region(region.params, tuple(body), region.results)


def _entered(region: Region, watch: Watch, number: Value | None) -> Instruction:
    count = len(region.params)

    def tell(*values: Any) -> tuple[()]:
        watch.entered(region, _program(values, number), values[:count])
        return ()

    return _probe(region.params, number, tell, None)


def _before(instruction: Instruction, watch: Watch, number: Value | None) -> Instruction:
    count = len(instruction.ins)

    def tell(*values: Any) -> tuple[()]:
        watch.before(instruction, _program(values, number), values[:count])
        return ()

    return _probe(instruction.ins, number, tell, instruction.source)


def _after(instruction: Instruction, watch: Watch, number: Value | None) -> Instruction:
    count, both = len(instruction.ins), (*instruction.ins, *instruction.outs)

    def tell(*values: Any) -> tuple[()]:
        program = _program(values, number)
        watch.after(instruction, program, values[:count], values[count : len(both)])
        return ()

    return _probe(both, number, tell, instruction.source)


def _program(values: Sequence[Any], number: Value | None) -> int:
    return 0 if number is None else int(values[-1])


def _probe(
    values: Sequence[Value], number: Value | None, tell: Callable[..., tuple[()]], source: Any
) -> Instruction:
    ins = (*values, *(() if number is None else (number,)))
    types = tuple(value.type for value in ins)
    operation = Operation("probe", {}, types, (), tell, _SEEN, multiple=True)
    return make_instruction((operation, ins, (), (), source))


# -- what instructions touch -------------------------------------------------------------------

# The number of an access's operands before its path's leaves, where it isn't one.
_BEFORE_LEAVES = {"store": 2, "masked_swap": 3, "semaphore_add": 2, "semaphore_subtract": 2,
                  "semaphore_take": 2, "signal": 2, "await": 2}  # fmt: skip


class Parts:
    """Finds the memory that an instruction touches."""

    def __init__(self) -> None:
        self._viewers: dict[tuple[int, int], tuple[Instruction, _Viewer | None]] = {}

    def part(self, instruction: Instruction, position: int, ins: Sequence[Any]) -> np.ndarray:
        """The part of an operand that an instruction reads or writes, as a view.

        It is the whole operand, unless a path leads to less, and NumPy has a view of that.
        """
        whole: np.ndarray = ins[position]
        known = self._viewers.get((id(instruction), position))
        if known is None:
            known = (instruction, _viewer(instruction, position))
            self._viewers[id(instruction), position] = known
        if known[1] is None:
            return whole
        view, leaves = known[1]
        return view(whole, *ins[leaves])


_Viewer = tuple[Callable[..., np.ndarray], slice]  # and where its leaves are among the operands


def _viewer(instruction: Instruction, position: int) -> _Viewer | None:
    """The view of the part of an operand. None: all of it is touched, or the part isn't known."""
    params = instruction.operation.params
    if instruction.name == "dma":
        path, count = params["paths"][position], params["num_leaves"]
        leaves = slice(2, 2 + count) if position == 0 else slice(2 + count, None)
    elif PATH in params and position == 0:
        path, leaves = params[PATH], slice(_BEFORE_LEAVES.get(instruction.name, 1), None)
    else:
        return None
    ref = instruction.ins[position].ref
    view = memory.direct_viewer(ref.shape, ref.dtype, path)
    return None if view is None or view is memory.same else (view, leaves)


def address(array: np.ndarray) -> int:
    """Where an array's first element lies."""
    return int(np.asarray(array).__array_interface__["data"][0])
