"""Writes a group of which NumPy's loops compute parts, or that reduces rows: in pieces, in stages.

A piece is a part of the group's elements that stays in the nearest cache. Its loops compute all
that they can; then NumPy's loops run over the piece, and its rows are reduced; then come the loops
of the next stage. What a later stage uses is kept in the workspace, for one piece.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator.codegen.native.places import Buffer, BufferPlace, Workspace
from pallas_shim.evaluator.codegen.native.rounds import Dim, GroupAccess, Rounds, enter_loops
from pallas_shim.evaluator.codegen.native.source import ALIGNMENT, Source
from pallas_shim.evaluator.program import Value

# The elements of a piece, unless a row has more.
_PIECE = 1 << 10
# A thread's stack has room for values of so many elements.
_OWN = 1 << 13


class LoopOperand(NamedTuple):
    """What a loop of NumPy's or a reduction takes: a value, and how to get an element. ``access``:
    where its rows lie in memory, if they do."""

    value: Value
    read: Callable[[Rounds], str]
    access: GroupAccess | None = None

    @property
    def dtype(self) -> np.dtype:
        return self.value.type.dtype


class LoopCall(NamedTuple):
    """A member that is computed by a function of (source, counts and addresses)."""

    operands: Sequence[LoopOperand]
    write: Callable[..., None]  # (source, count, addresses of the operands, of the result)


class Reduction(NamedTuple):
    """A member with one element for each row, which is computed of the row."""

    operand: LoopOperand
    write: Callable[..., None]  # (source, address of the row, of the result)


class _Saved(NamedTuple):
    """A value of a piece that is kept: for each element, or for each row."""

    buffer: Buffer
    dtype: np.dtype
    is_row: bool


class _StageRounds(Rounds):
    """``position`` and ``row``: which element of the piece it is, and of which of its rows."""

    saved: dict[Value, _Saved]
    position: str
    row: str

    def value(self, value: Value) -> str:
        kept = self.saved.get(value)
        if value not in self._registers and kept is not None:
            at = self.row if kept.is_row else self.position
            self.set(value, self.to.load(kept.dtype, *_at(self.to, kept, at)))
        return super().value(value)


def _at(to: Source, saved: _Saved, number: str) -> tuple[str, str]:
    """The base and the offset of an element."""
    offset = to.plus(str(saved.buffer.start), to.times(number, saved.dtype.itemsize))
    return saved.buffer.base, offset


class _Piece(NamedTuple):
    """The loops around pieces, the loop that is cut into pieces, and those within a piece."""

    outer: list[Dim]
    cut: Dim | None
    each: int  # rounds of the cut loop in a piece
    inner: list[Dim]
    row: int  # the elements of a row

    @property
    def capacity(self) -> int:
        return self.each * math.prod(dim.size for dim in self.inner)


def _piece(group: Any, dims: Sequence[Dim]) -> _Piece:
    outer, inner, count = list(dims), list[Dim](), 1
    last = len(group.shape) - 1
    if group.rows:
        while outer and outer[-1].axis == last:
            inner.insert(0, outer.pop())
            count *= inner[0].size
    row = count
    while outer and count * outer[-1].size <= _PIECE:
        inner.insert(0, outer.pop())
        count *= inner[0].size
    cut = outer.pop() if outer else None
    each = max(1, _PIECE // count) if cut is not None else 1
    return _Piece(outer, cut, each, inner, row)


def write(
    to: Source, workspace: Workspace, group: Any, dims: Sequence[Dim], threads: int
) -> None:
    """Writes the loops of a group, whose dimensions are ``dims``. Up to so many threads share the
    pieces."""
    _Stages(to, workspace, group, _piece(group, dims), threads).write()


class _Stages:
    def __init__(
        self, to: Source, workspace: Workspace, group: Any, piece: _Piece, threads: int
    ) -> None:
        self.to, self.group, self.piece = to, group, piece
        self.workspace, self.threads = workspace, threads
        self.saved: dict[Value, _Saved] = {}
        self.operands: dict[tuple[Value, int], _Saved] = {}  # where those of a loop are
        self.copied: list[tuple[Value, LoopOperand, _Saved]] = []  # those that are written there
        self.runs: dict[Value, int] = {}  # the stage in which a member is computed
        for value in group.members:
            self.runs[value] = max([self.ready(n) for n in group.needs.get(value, ())], default=0)
        self.final = max([self.ready(value) for value in group.members], default=0)
        if piece.capacity > _OWN:
            self.threads = 1

    def ready(self, value: Value) -> int:
        """The first stage whose loops can use a member."""
        group = self.group
        return self.runs[value] + (value in group.loops or value in group.reductions)

    def _save(self) -> None:
        group = self.group
        for value in (*group.loops, *group.reductions):
            self._keep(value)
        uses = [(n, user) for user in group.members for n in group.needs.get(user, ())]
        for value, user in uses:
            # The operands of a reduction are elements, its result isn't.
            in_rows = user in group.rows and user not in group.reductions
            if self.runs[user] > self.runs[value] or (value in group.rows) != in_rows:
                self._keep(value)
        for _, value in (*group.stores, *group.row_stores):
            if value in self.runs and (self.runs[value] < self.final or value in group.rows):
                self._keep(value)
        for value, number, operand in self._operands():
            is_row = value in group.rows and value in group.loops
            kept = self.saved.get(operand.value)
            if kept is not None and kept.is_row == is_row:
                self.operands[value, number] = kept
            elif operand.access is None:
                self.operands[value, number] = self._room(operand.dtype, is_row)
                self.copied.append((value, operand, self.operands[value, number]))

    def _operands(self) -> Iterator[tuple[Value, int, LoopOperand]]:
        for value, call in self.group.loops.items():
            for number, operand in enumerate(call.operands):
                yield value, number, operand
        for value, reduction in self.group.reductions.items():
            yield value, 0, reduction.operand

    def _keep(self, value: Value) -> None:
        if value not in self.saved and value not in self.group.loads:
            self.saved[value] = self._room(value.type.dtype, value in self.group.rows)

    def _room(self, dtype: np.dtype, is_row: bool) -> _Saved:
        piece = self.piece
        count = piece.capacity // piece.row if is_row else piece.capacity
        if self.threads == 1:
            return _Saved(self.workspace.take((count,), dtype), dtype, is_row)
        # Each thread has its own one, on its stack.
        own = self.to.variable(f"[{count * dtype.itemsize} x i8], align {ALIGNMENT}")
        return _Saved(Buffer(own, 0), dtype, is_row)

    # -- what is written ------------------------------------------------------------------------

    def write(self) -> None:
        to, piece = self.to, self.piece
        with ExitStack() as stack:
            at = enter_loops(to, stack, piece.outer, self.threads)
            start, rounds = "0", str(piece.each)
            if piece.cut is not None:
                size, each = piece.cut.size, piece.each
                most = 1 if piece.outer else self.threads
                number = stack.enter_context(to.shared_loop(-(-size // each), most))
                start = to.times(number, each)
                if size % each:
                    rest = to.let(f"sub nsw i64 {size}, {start}")
                    rounds = to.call("i64", "llvm.smin.i64", f"i64 {rest}", f"i64 {each}")
                self._prefetch(at, start)
            self._save()
            for stage in range(self.final + 1):
                self._loops(stage, at, start, rounds, of_rows=True)
                self._loops(stage, at, start, rounds, of_rows=False)
                self._finish(stage, at, start, rounds)
        if self.threads == 1:
            for saved in (*self.saved.values(), *[saved for *_, saved in self.copied]):
                self.workspace.give_back(saved.buffer)

    def _prefetch(self, outer: Sequence[str], start: str) -> None:
        """Has what the next piece reads, and where this one stores, brought into the cache
        meanwhile. A processor foresees that only within a page of memory."""
        to, group, cut = self.to, self.group, self.piece.cut
        assert cut is not None
        dims, nests = [*self.piece.outer, cut], [cut._replace(size=self.piece.each)]
        next_start = to.plus(start, str(self.piece.each))
        fetched = set[BufferPlace]()
        for access, at, writes in (
            *((access, next_start, 0) for access in group.reads),
            *((access, start, 1) for access, _ in group.stores),
        ):
            nbytes = access.place.dtype.itemsize
            for dim in reversed([*nests, *self.piece.inner]):
                if dim.steps.get(access) != nbytes:
                    break  # it isn't all the memory from the first element on
                nbytes *= dim.size
            else:
                if access.place not in fetched:
                    fetched.add(access.place)
                    first = Rounds(to, group, dims, [*outer, at]).address(access)
                    to.prefetch(access.place.buffer.base, first, nbytes, writes)

    def _finish(self, stage: int, at: Sequence[str], start: str, rounds: str) -> None:
        """NumPy's loops and the reductions after a stage's loops."""
        to, group, piece = self.to, self.group, self.piece
        inner = math.prod(dim.size for dim in piece.inner)
        for value, call in group.loops.items():
            if self.runs[value] == stage:
                per_round = inner // piece.row if value in group.rows else inner
                given = [self.operands[value, n] for n in range(len(call.operands))]
                addresses = [self._address(saved) for saved in (*given, self.saved[value])]
                call.write(to, to.times(rounds, per_round), *addresses)
        for value, reduction in group.reductions.items():
            if self.runs[value] != stage:
                continue
            source, target = self.operands.get((value, 0)), self.saved[value]
            if source is None:
                access = reduction.operand.access
                assert access is not None
                with self._nest(at, start, rounds, True, {}, parallel=False) as inside:
                    first = to.let(
                        f"getelementptr inbounds i8, ptr {access.place.buffer.base},"
                        f" i64 {inside.address(access)}"
                    )
                    reduction.write(to, first, self._address(target, inside.row))
                continue
            with to.loop(to.times(rounds, inner // piece.row)) as row:
                first = self._address(source, to.times(row, piece.row))
                reduction.write(to, first, self._address(target, row))

    def _address(self, saved: _Saved, number: str = "0") -> str:
        base, offset = _at(self.to, saved, number)
        return self.to.let(f"getelementptr inbounds i8, ptr {base}, i64 {offset}")

    def _loops(
        self, stage: int, at: Sequence[str], start: str, rounds: str, of_rows: bool
    ) -> None:
        group = self.group
        kept = [
            value for value in self.saved
            if self.runs[value] == stage and (value in group.rows) == of_rows
            and value not in group.loops and value not in group.reductions
        ]  # fmt: skip
        given = [
            (operand, saved)
            for value, operand, saved in self.copied
            if self.runs[value] == stage
            and (value in group.rows and value in group.loops) == of_rows
        ]
        stores = group.row_stores if of_rows else group.stores
        stores = stores if stage == self.final else []
        if not kept and not given and not stores:
            return
        visible = {
            value: saved for value, saved in self.saved.items()
            if self.runs[value] < stage
            or self.runs[value] == stage and not of_rows and value in group.rows
        }  # fmt: skip
        with self._nest(at, start, rounds, of_rows, visible) as inside:
            for value in kept:
                register = inside.value(value)
                saved = self.saved[value]
                to, number = inside.to, inside.row if of_rows else inside.position
                to.store(saved.dtype, register, *_at(to, saved, number))
            for operand, saved in given:
                to, number = inside.to, inside.row if of_rows else inside.position
                to.store(saved.dtype, operand.read(inside), *_at(to, saved, number))
            made = [inside.value(value) for _, value in stores]  # before anything is overwritten
            for (access, _), register in zip(stores, made, strict=True):
                inside.store(access, register)

    @contextmanager
    def _nest(
        self, outer: Sequence[str], start: str, rounds: str, of_rows: bool,
        visible: dict[Value, _Saved], parallel: bool = True,
    ) -> Iterator[_StageRounds]:
        """The loops over the elements of a piece, or over its rows."""
        to, piece, last = self.to, self.piece, len(self.group.shape) - 1
        by_rows = bool(self.group.rows)
        dims, at = list(piece.outer), list(outer)
        row, position = "0", "0"
        with ExitStack() as stack:
            mark = stack.enter_context(to.independent_rounds()) if parallel else ""
            if piece.cut is not None:
                number = stack.enter_context(to.loop(rounds, mark))
                dims.append(piece.cut)
                at.append(to.plus(start, number))
                row = number
            in_row = "0"
            for dim in piece.inner:
                in_a_row = by_rows and dim.axis == last
                if in_a_row and of_rows:
                    continue
                number = stack.enter_context(to.loop(str(dim.size), mark))
                dims.append(dim)
                at.append(number)
                if in_a_row:
                    in_row = to.plus(to.times(in_row, dim.size), number)
                else:
                    row = to.plus(to.times(row, dim.size), number)
            position = to.plus(to.times(row, piece.row), in_row) if by_rows else row
            inside = _StageRounds(to, self.group, dims, at)
            inside.saved, inside.position, inside.row = visible, position, row
            yield inside
