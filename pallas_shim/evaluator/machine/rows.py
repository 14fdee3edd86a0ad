"""Memory that several programs reach: a row for each of them.

A program is lowered as if it were alone: it allocates its own memory, and names a ref of another
program by its own ref. After all programs are lowered, each allocation that others reach becomes
one row of memory that is made before the programs start. Another program's ref becomes the same
views of that program's row. So the passes see one buffer, and all these refs are views of it. Each
wait gets as operands the memory that others may change while it lasts, so that the passes know
that the wait reads and writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator import memory
from pallas_shim.evaluator.analysis import alias
from pallas_shim.evaluator.machine import faults, order
from pallas_shim.evaluator.machine.operations import (
    AWAIT,
    LEFTOVER,
    MEET,
    PASS_BY,
    PROGRAMS,
    REMOTE,
    SIGNAL,
    TURN,
)
from pallas_shim.evaluator.program import (
    PURE,
    Effects,
    Instruction,
    Operation,
    RefType,
    Region,
    Value,
    make_instruction,
)

if TYPE_CHECKING:
    from pallas_shim.evaluator.lower import Lowering


class _Home(NamedTuple):
    """Where memory is allocated.

    ``depth``: the number of program levels around the allocation. ``number``: the program's number
    at the innermost of them. ``names``: the names of all programs there.
    """

    depth: int
    number: Value | None
    names: Sequence[str]


_OUTSIDE = _Home(0, None, ())


def share(lowering: Lowering, programs: Instruction) -> list[Instruction]:
    """Rewrites an instruction of the outermost level, so that its programs share memory."""
    return _Rows(lowering).instructions(programs)


class _Rows:
    """Finds the shared memory and rewrites the programs.

    ``made`` maps each ref to the instruction that makes it, and ``home`` to the place of its
    allocation. ``rows`` maps each shared allocation to its list of rows, one for each program.
    ``uses`` has the instructions that use a ref, each with the operand's position.
    ``received``: the shared memory to which others only copy.
    """

    def __init__(self, lowering: Lowering) -> None:
        self.lowering = lowering
        self.made: dict[Value, Instruction] = {}
        self.home: dict[Value, _Home] = {}
        self.rows: dict[Value, Value] = {}
        self.uses: dict[Value, list[tuple[Instruction, int]]] = {}
        self.received: set[Value] = set()

    def instructions(self, programs: Instruction) -> list[Instruction]:
        self._note(programs, _OUTSIDE)
        self.received = set(filter(self._is_only_received, self.rows))
        first = [self._allocate(root) for root in self.rows]
        region = Region((), (programs,), ())
        return [*first, *self._region(region, _OUTSIDE, False, tuple(self.rows.values())).body]

    # -- what there is ------------------------------------------------------------------------

    def _note(self, instruction: Instruction, home: _Home) -> None:
        for out in instruction.outs:
            if isinstance(out.type, RefType):
                self.made[out] = instruction
                self.home[out] = home
        for position, value in enumerate(instruction.ins):
            if isinstance(value.type, RefType):
                self.uses.setdefault(value, []).append((instruction, position))
        if instruction.name == REMOTE:
            root = self.root(instruction.ins[0])
            if self.home.get(root, _OUTSIDE).depth and root not in self.rows:
                self.rows[root] = Value(root.ref._replace(shape=(1, *root.ref.shape)))
        for region, inner in self._inner(instruction, home):
            for each in region.body:
                self._note(each, inner)

    def _is_only_received(self, root: Value) -> bool:
        """Whether all that happens to memory is that other programs copy to the whole of it, and
        that it is a result. Then it needs its first contents only if nobody does copy."""
        if self.made[root].ins:
            return False
        for use, position in self.uses.get(root, ()):
            if use.name == REMOTE and position == 0:
                if not all(
                    copy.name == "dma" and at == 1 and not copy.operation.params["paths"][1]
                    for copy, at in self.uses.get(use.outs[0], ())
                ):
                    return False
            elif use.name != "contents":
                return False
        return True

    def _inner(self, instruction: Instruction, home: _Home) -> Iterable[tuple[Region, _Home]]:
        for region in instruction.regions:
            if instruction.name == PROGRAMS:
                names = instruction.operation.params["names"]
                yield region, _Home(home.depth + 1, region.params[0], names)
            else:
                yield region, home

    def chain(self, ref: Value) -> list[Instruction]:
        """The views that lead from a ref's root to the ref, the last view first."""
        views = []
        while (making := self.made.get(ref)) is not None:
            if not making.ins or not isinstance(making.ins[0].type, RefType):
                break
            views.append(making)
            ref = making.ins[0]
        return views

    def root(self, ref: Value) -> Value:
        views = self.chain(ref)
        return views[-1].ins[0] if views else ref

    def _allocate(self, root: Value) -> Instruction:
        """Makes the rows. If the program fills the memory itself, they are left uninitialised."""
        home, (shape, dtype, space, _) = self.home[root], root.ref
        count = len(home.names)
        fill = memory.initial(space, dtype, self.lowering.checked)
        filled_later = bool(self.made[root].ins) or root in self.received

        def row() -> np.ndarray:
            array = memory.aligned(shape, dtype)
            if not filled_later:
                array[...] = fill
            return array

        def make() -> _Made:
            return _Made(count, row, fill)

        out = self.rows[root]
        operation = Operation("rows_of_programs", {"count": count}, (), (out.type,), make,
                              Effects(allocates=True))  # fmt: skip
        return make_instruction((operation, (), (out,), (), self.made[root].source))

    # -- what becomes of it -------------------------------------------------------------------

    def _region(
        self, region: Region, home: _Home, in_loop: bool, seen: tuple[Value, ...]
    ) -> Region:
        """``seen``: the memory that others may change while an instruction here waits."""
        body: list[Instruction] = []
        for instruction in region.body:
            change = self._CHANGES.get(instruction.name)
            root = instruction.outs[0] if len(instruction.outs) == 1 else None
            if root in self.rows:
                body.append(self._row_of_own(instruction))
            elif change is not None:
                body += change(self, instruction, home, seen)
            elif instruction.name == "contents" and self.root(instruction.ins[0]) in self.received:
                body.append(self._received(instruction, in_loop))
            elif instruction.name == "contents" and in_loop:
                body.append(self._contents(instruction))
            elif instruction.regions:
                is_programs = instruction.name == PROGRAMS
                loops = not is_programs and (in_loop or instruction.name != "switch")
                inner = [
                    self._region(r, h, loops, self._closed_over(r, seen) if is_programs else seen)
                    for r, h in self._inner(instruction, home)
                ]
                body.append(instruction._replace(regions=tuple(inner)))
            else:
                body.append(instruction)
        return Region(region.params, tuple(body), region.results)

    def _closed_over(self, region: Region, seen: tuple[Value, ...]) -> tuple[Value, ...]:
        """Adds memory from outside that the programs write to. All of them share it."""
        own = {out for instruction in region.walk() for out in instruction.outs}
        roots = dict.fromkeys(
            self.root(value) for value in region.uses() if isinstance(value.type, RefType)
        )
        found = [root for root in roots if root not in own and root not in self.rows]
        written = alias.written(region.body, found)
        return tuple(dict.fromkeys((*seen, *[root for root in found if root in written])))

    def _row_of_own(self, instruction: Instruction) -> Instruction:
        """Replaces an allocation by the program's own row, filled with its contents, if any."""
        operation, ins, (out,), _, source = instruction
        home, rows = self.home[out], self.rows[out]
        assert home.number is not None
        if not ins:
            return _row(rows, home.number, out, source)
        fill = operation.fn
        assert fill is not None

        def filled(rows: Any, number: Any, *operands: Any) -> Any:
            row = rows[number]
            row[...] = fill(*operands)
            return row

        operands = (rows, home.number, *ins)
        made = Operation(
            "filled_row", {}, _types(operands), (out.type,), filled,
            Effects(writes=(0,), io=True), view=True,
        )  # fmt: skip
        return make_instruction((made, operands, (out,), (), source))

    def _remote(self, instruction: Instruction, home: _Home, seen: Any) -> list[Instruction]:
        """Replaces another program's ref by the same views of that program's row."""
        _, (ref, *numbers), (out,), _, source = instruction
        root = self.root(ref)
        if root not in self.rows:  # memory that all programs share
            operation = Operation("view", {}, (ref.type,), (out.type,), memory.same, view=True)
            return [make_instruction((operation, (ref,), (out,), (), source))]
        views = self.chain(ref)
        number = numbers[self.home[root].depth - 1]
        last = Value(root.type) if views else out
        make_row = _row_to_fill if root in self.received else _row
        body = [make_row(self.rows[root], number, last, source)]
        for view in reversed(views):
            made = out if view is views[0] else Value(view.outs[0].type)
            ins = (last, *view.ins[1:])
            body.append(make_instruction((view.operation, ins, (made,), (), source)))
            last = made
        return body

    def _await(self, instruction: Instruction, home: _Home, seen: Any) -> list[Instruction]:
        operation, ins, outs, _, source = instruction
        root = self.root(ins[0])
        reached = root in self.rows or self.home.get(root, _OUTSIDE).depth < home.depth
        if reached or self.lowering.machine.timed:
            return [_seeing(instruction, seen, writes=True)]
        # No other program reaches this semaphore. A missing count will never come.
        params, number = operation.params, home.number
        assert number is not None
        view = memory.viewer(ins[0].ref.shape, ins[0].ref.dtype, params["path"])
        names, name, decrement = home.names, params["semaphore"], params["decrement"]

        def take(ref: Any, count: Any, number: Any, *leaves: Any) -> Any:
            at = view(ref, *leaves)
            if at[()] < count:
                raise faults.own_deadlock(
                    names[number], name, int(at[()]), int(count), jax_compat.user_source(source)
                )
            if decrement:
                np.subtract(at, count, out=at, casting="unsafe")
            return ()

        operands = (*ins[:2], number, *ins[2:])
        made = Operation(
            "take_count", {}, _types(operands), (), take, Effects((0,), (0,), io=True),
            multiple=True,
        )  # fmt: skip
        return [make_instruction((made, operands, (), (), source))]

    def _signal(self, instruction: Instruction, home: _Home, seen: Any) -> list[Instruction]:
        return [_seeing(instruction, seen, writes=False)]

    def _meet(self, instruction: Instruction, home: _Home, seen: Any) -> list[Instruction]:
        return [_seeing(instruction, seen, writes=True)]

    def _leftover(self, instruction: Instruction, home: _Home, seen: Any) -> list[Instruction]:
        """Checks semaphores when no program changes them any more.

        Semaphores that others reach are checked when all programs have ended the kernel.
        """
        operation, ins, _, _, source = instruction
        params, number = operation.params, home.number
        assert number is not None
        own = [ref for ref in ins if ref not in self.rows]
        reached = []
        if params["at_end"]:
            reached = [ref for ref in (*ins, *params["elsewhere"]) if ref in self.rows]
        texts = [self.lowering.names.get(ref, "a semaphore") for ref in (*own, *reached)]
        if not texts:
            return []
        count, names = len(own), home.names
        kernel, where = params["kernel"], params["where"]

        def look(number: Any, *semaphores: Any) -> Any:
            for at, (text, semaphore) in enumerate(zip(texts, semaphores, strict=True)):
                counts = semaphore if at < count else semaphore[number]
                if counts.any():
                    watch = order.current().watch
                    if watch is not None:
                        watch.left(kernel, where or None, text, names[number], counts)
                    faults.warn_of_leftover(kernel, text, names[number], counts, where)
                    counts[...] = 0
            return ()

        operands = (number, *own, *[self.rows[ref] for ref in reached])
        positions = tuple(range(1, len(operands)))
        made = Operation(
            LEFTOVER, {}, _types(operands), (), look, Effects(positions, positions, io=True),
            multiple=True,
        )  # fmt: skip
        return [make_instruction((made, operands, (), (), source))]

    def _received(self, instruction: Instruction, in_loop: bool) -> Instruction:
        """A result that others have copied here, or that is filled now because nobody has."""
        operation, (ref,), outs, _, source = instruction
        root, contents = self.root(ref), operation.fn
        number = self.home[root].number
        assert contents is not None and number is not None

        def received(rows: Any, number: Any) -> Any:
            array = contents(rows.filled(number))
            return np.array(array) if in_loop else array

        operands = (self.rows[root], number)
        made = Operation(
            "received", {}, _types(operands), operation.outs, received, operation.effects,
            view=not in_loop,
        )  # fmt: skip
        return make_instruction((made, operands, outs, (), source))

    def _contents(self, instruction: Instruction) -> Instruction:
        """Copies a result out of shared memory, since the next iteration overwrites that memory."""
        operation, ins, outs, _, source = instruction
        if self.root(ins[0]) not in self.rows:
            return instruction
        contents = operation.fn
        assert contents is not None
        made = Operation(
            operation.name, operation.params, operation.ins, operation.outs,
            lambda buffer: np.array(contents(buffer)), operation.effects,
        )  # fmt: skip
        return make_instruction((made, ins, outs, (), source))

    _CHANGES: dict[str, Callable[..., list[Instruction]]] = {
        REMOTE: _remote,
        AWAIT: _await,
        SIGNAL: _signal,
        MEET: _meet,
        PASS_BY: _meet,
        TURN: _meet,
        LEFTOVER: _leftover,
    }


class _Made:
    """The rows of one allocation. Each is made when it is first reached.

    ``written``: the numbers of the rows that need no first contents any more.
    """

    __slots__ = ("make", "rows", "fill", "written")

    def __init__(self, count: int, make: Callable[[], np.ndarray], fill: Any) -> None:
        self.make = make
        self.fill = fill
        self.rows: list[np.ndarray | None] = [None] * count
        self.written: set[int] = set()

    def filled(self, number: Any) -> np.ndarray:
        """A row, with its first contents if nobody has written to it."""
        row = self[number]
        if int(number) not in self.written:
            row[...] = self.fill
            self.written.add(int(number))
        return row

    def __getitem__(self, number: int) -> np.ndarray:
        row = self.rows[number]
        if row is None:
            row = self.rows[number] = self.make()
        return row


def _row(rows: Value, number: Value, out: Value, source: Any) -> Instruction:
    operands = (rows, number)
    operation = Operation(
        "row_of_program", {}, _types(operands), (out.type,), _pick, PURE, view=True
    )
    return make_instruction((operation, operands, (out,), (), source))


def _row_to_fill(rows: Value, number: Value, out: Value, source: Any) -> Instruction:
    """A row that the next instruction fills. The effect keeps it before that one."""
    operands = (rows, number)
    operation = Operation(
        "row_to_fill", {}, _types(operands), (out.type,), _pick_to_fill, Effects(io=True),
        view=True,
    )  # fmt: skip
    return make_instruction((operation, operands, (out,), (), source))


def _pick(rows: Any, number: Any) -> Any:
    return rows[number]


def _pick_to_fill(rows: Any, number: Any) -> Any:
    rows.written.add(int(number))
    return rows[number]


def _seeing(instruction: Instruction, seen: Sequence[Value], writes: bool) -> Instruction:
    """The instruction with more operands, all of which it reads, and writes if ``writes``."""
    operation, ins, outs, _, source = instruction
    effects, fn = operation.effects, operation.fn
    more = tuple(range(len(ins), len(ins) + len(seen)))
    ins = (*ins, *seen)
    made = Operation(
        operation.name, operation.params, _types(ins), operation.outs, fn,
        Effects((*effects.reads, *more), (*effects.writes, *(more if writes else ())), io=True),
        multiple=operation.multiple,
    )  # fmt: skip
    return make_instruction((made, ins, outs, (), source))


def _types(values: Sequence[Value]) -> tuple[Any, ...]:
    return tuple([value.type for value in values])
