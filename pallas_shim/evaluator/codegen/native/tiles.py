"""Writes the product of two matrices of integers, tile by tile.

The right matrix is packed, some of its columns at a time: words of up to four terms stand beside
one another, column by column. A tile of the result stays in registers. Its rows are numbers of the
left matrix, a word of which is multiplied with a vector of such words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np

from pallas_shim.evaluator.codegen.native.groups import nest
from pallas_shim.evaluator.codegen.native.places import ALIGNMENT
from pallas_shim.evaluator.codegen.native.source import Source, type_of

# So many rows are multiplied before all columns are packed again. They stay in a near cache, as do
# so many bytes of packed columns.
_BLOCK, _PACKED = 256, 1 << 18
# Rows so many bytes apart, or a multiple, drive one another out of the nearest cache.
_ALIAS = 2048
BYTES = np.dtype(np.uint8)
# What turns a signed byte into an unsigned one that is 128 more, and back.
BIAS = 0x80


class Form(NamedTuple):
    """How terms are multiplied.

    word: the type of a word; each: the terms in it; lanes: the words in a vector; rows, vectors:
    those of a tile; multiplied: writes a vector of sums, of (source, sums, words of the left
    matrix, of the right one); bias: by how much the right matrix's numbers are changed, which the
    sum of a row of the left one times this makes good.
    """

    word: str
    each: int
    lanes: int
    rows: int
    vectors: int
    multiplied: Callable[[Source, str, str, str], str]
    bias: int = 0

    @property
    def vector(self) -> str:
        return f"<{self.lanes} x {self.word}>"

    @property
    def dtype(self) -> np.dtype:
        """That of a word."""
        return np.dtype(f"i{self.nbytes}")

    @property
    def nbytes(self) -> int:
        """Those of a word."""
        return int(self.word[1:]) // 8

    @property
    def bits(self) -> int:
        """Those of a term."""
        return 8 * self.nbytes // self.each


class Matrix(NamedTuple):
    """A matrix in memory, one for each batch: (rows, terms) or (columns, terms). Strides count
    bytes."""

    dtype: np.dtype
    lines: int
    line: int  # the stride from a row, or a column, to the next
    term: int  # that from a term to the next
    batch: tuple[int, ...]  # the strides from a batch to the next
    base: str
    offset: str = "0"


class Product:
    """Writes one product, as a function of the addresses of both matrices, of the result, and of
    room that it needs."""

    to: Source

    def __init__(
        self, form: Form, left: Matrix, right: Matrix, terms: int, out: np.dtype,
        sizes: tuple[int, ...],
    ):  # fmt: skip
        """``sizes``: those of the batch."""
        self.form, self.left, self.right, self.terms = form, left, right, terms
        self.out, self.sizes = out, sizes
        self.words = -(-terms // form.each)  # of a row
        self.row = self.words * form.nbytes  # the bytes of a packed row
        if self.row % _ALIAS == 0:
            self.row += ALIGNMENT
        # A left matrix that has whole words already is read where it is.
        self.is_packed = not (
            left.term == left.dtype.itemsize
            and terms % form.each == 0
            and 8 * left.dtype.itemsize == form.bits
            and (left.line % _ALIAS or right.lines < _BLOCK)
        )
        block = min(left.lines, _BLOCK)
        panel = self.words * form.nbytes * form.lanes * form.vectors
        panels = right.lines // (form.lanes * form.vectors)
        at_once = min(panels, max(1, _PACKED // panel))
        # Panels that are packed together: all of a row's bytes in a line of the cache are used.
        self.together = next((n for n in range(at_once, 0, -1) if panels % n == 0), 0)
        # The room is for packed columns, packed rows, and what the sums of the rows start with.
        self.rows_at = panel * max(1, self.together)
        self.starts_at = self.rows_at + (block * self.row if self.is_packed else 0)
        self.room = self.starts_at + (4 * block if form.bias else 0)

    def write(self, to: Source) -> None:
        self.to = to
        with nest(to, self.sizes) as at:
            self._batch(at)

    def _batch(self, at: Sequence[str]) -> None:
        to, size, sizes = self.to, self.out.itemsize, self.sizes
        left, right = (
            matrix._replace(offset=self._plus("0", at, matrix.batch))
            for matrix in (self.left, self.right)
        )
        rows, columns = left.lines, right.lines
        steps = [math.prod(sizes[d + 1 :]) * rows * columns * size for d in range(len(sizes))]
        out = self._plus("0", at, steps)
        whole, rest = divmod(rows, _BLOCK)
        if whole:
            with to.loop(str(whole)) as number:
                self._block(left, right, out, to.times(number, _BLOCK), _BLOCK)
        if rest:
            self._block(left, right, out, str(whole * _BLOCK), rest)

    def _plus(self, offset: str, at: Sequence[str], steps: Sequence[int]) -> str:
        for number, step in zip(at, steps, strict=True):
            offset = self.to.plus(offset, self.to.times(number, step))
        return offset

    def _block(self, left: Matrix, right: Matrix, out: str, first: str, rows: int) -> None:
        """The product of some rows, from ``first`` on."""
        to, size, columns = self.to, self.out.itemsize, right.lines
        left = left._replace(
            offset=to.plus(left.offset, to.times(first, left.line)), lines=rows
        )
        out = to.plus(out, to.times(first, columns * size))
        if self.is_packed:
            self._pack(left, 1, rows, self.rows_at, self.form.nbytes, self.row, 0)
            left = left._replace(base="%room", offset=str(self.rows_at), line=self.row)
        if self.form.bias:
            self._sum_rows(left)
        width = self.form.lanes * self.form.vectors
        whole, rest = divmod(columns, width)
        if whole:
            with to.loop(str(whole // self.together)) as number:
                at = to.times(number, width * self.together)
                self._panels(left, right, out, at, self.together, width)
        if rest:
            self._panels(left, right, out, str(whole * width), 1, rest)

    def _sum_rows(self, left: Matrix) -> None:
        """What the sums of each row start with."""
        to = self.to
        extend = "zext" if left.dtype.kind == "u" else "sext"
        with to.loop(str(left.lines)) as row:
            total = to.variable("i32", "0")
            offset = to.plus(left.offset, to.times(row, left.line))
            with to.loop(str(self.words * self.form.nbytes)) as number:
                byte = to.load(BYTES, left.base, to.plus(offset, number))
                wide = to.let(f"{extend} i8 {byte} to i32")
                to.set(total, "i32", to.let(f"add i32 {to.read(total, 'i32')}, {wide}"))
            start = to.let(f"mul i32 {to.read(total, 'i32')}, {self.form.bias}")
            at = to.plus(str(self.starts_at), to.times(row, 4))
            to.store(np.dtype(np.int32), start, "%room", at)

    def _pack(
        self, matrix: Matrix, panels: int, lines: int, room: int, word: int, line: int,
        bias: int,
    ) -> None:  # fmt: skip
        """Puts a matrix's terms together to words. ``lines``: how many a panel has; ``room``: where
        the words go; ``word``, ``line``: the steps from a word, and from a line, to the next."""
        to, each = self.to, self.form.each
        whole, rest = divmod(self.terms, each)
        with to.independent_rounds() as mark:

            def copy(number: str, panel: str, at: str, terms: int) -> None:
                source = to.plus(to.times(panel, lines), at)
                offset = to.plus(matrix.offset, to.times(source, matrix.line))
                offset = to.plus(offset, to.times(number, matrix.term * each))
                made = self._word(matrix, offset, terms, bias)
                target = to.plus(to.times(panel, self.words * word), to.times(number, word))
                target = to.plus(to.plus(target, to.times(at, line)), str(room))
                to.store(self.form.dtype, made, "%room", target)

            def copies(first: int, words: int, terms: int) -> None:
                """The loops over words, panels and lines: neighbours in memory one after
                another."""
                sizes, at = (words, panels, lines), [str(first), "0", "0"]
                is_by_lines = matrix.line == matrix.dtype.itemsize
                with ExitStack() as stack:
                    for loop in (0, 1, 2) if is_by_lines else (1, 2, 0):
                        if sizes[loop] > 1:
                            at[loop] = stack.enter_context(to.loop(str(sizes[loop]), mark))
                    copy(at[0], at[1], at[2], terms)

            if whole:
                copies(0, whole, each)
            if rest:
                copies(whole, 1, rest)

    def _word(self, matrix: Matrix, offset: str, terms: int, bias: int) -> str:
        """A word of a line's terms."""
        to, form, dtype = self.to, self.form, matrix.dtype
        kind, size = form.word, dtype.itemsize
        if terms == form.each and matrix.term == size and 8 * size == form.bits:
            at = to.let(f"getelementptr inbounds i8, ptr {matrix.base}, i64 {offset}")
            made = to.let(f"load {kind}, ptr {at}, align {size}{to.access}")
        else:
            made = ""
            for number in range(terms):
                where = to.plus(offset, str(number * matrix.term))
                term = self._resized(to.load(dtype, matrix.base, where), dtype)
                if form.each > 1:
                    term = to.let(f"and {kind} {term}, {(1 << form.bits) - 1}")
                if number:
                    term = to.let(f"shl {kind} {term}, {number * form.bits}")
                made = to.let(f"or {kind} {made}, {term}") if made else term
        if bias:
            pattern = sum(BIAS << number * 8 for number in range(4))
            made = to.let(f"xor {kind} {made}, {pattern}")
        return made

    def _resized(self, register: str, dtype: np.dtype) -> str:
        """An element as a number of a word's size."""
        kind, word = type_of(dtype), self.form.word
        if kind == word:
            return register
        if int(kind[1:]) > int(word[1:]):
            return self.to.let(f"trunc {kind} {register} to {word}")
        extend = "sext" if dtype.kind == "i" else "zext"
        return self.to.let(f"{extend} {kind} {register} to {word}")

    def _panels(
        self, left: Matrix, right: Matrix, out: str, first: str, panels: int, columns: int
    ) -> None:
        """The product with some panels, of so many columns each, from the column ``first`` on."""
        to, form = self.to, self.form
        step = -(-columns // form.lanes) * form.lanes * form.nbytes
        right = right._replace(offset=to.plus(right.offset, to.times(first, right.line)))
        self._pack(right, panels, columns, 0, step, form.nbytes, form.bias)
        out = to.plus(out, to.times(first, self.out.itemsize))
        whole, rest = divmod(left.lines, form.rows)
        with to.loop(str(panels)) as panel:
            packed = to.times(panel, self.words * step)
            here = to.plus(out, to.times(panel, columns * self.out.itemsize))
            if whole:
                with to.loop(str(whole)) as number:
                    first = to.times(number, form.rows)
                    self._tile(left, packed, here, first, form.rows, columns)
            if rest:
                self._tile(left, packed, here, str(whole * form.rows), rest, columns)

    def _tile(
        self, left: Matrix, packed: str, out: str, first: str, rows: int, columns: int
    ) -> None:
        to, form = self.to, self.form
        vector, vectors = form.vector, -(-columns // form.lanes)
        offset = to.plus(left.offset, to.times(first, left.line))
        sums: list[list[str]] = []
        for row in range(rows):
            start = "zeroinitializer"
            if form.bias:
                at = to.plus(str(self.starts_at), to.times(to.plus(first, str(row)), 4))
                start = self._splat(to.load(np.dtype(np.int32), "%room", at))
            sums.append([to.variable(vector, start) for _ in range(vectors)])
        step = form.lanes * form.nbytes
        with to.loop(str(self.words)) as number:
            here = to.plus(packed, to.times(number, vectors * step))
            words = [
                self._load(vector, "%room", to.plus(here, str(n * step)), form.nbytes)
                for n in range(vectors)
            ]
            at = to.plus(offset, to.times(number, form.nbytes))
            for row, of_row in enumerate(sums):
                here = to.plus(at, str(row * left.line))
                size = form.nbytes if self.is_packed else left.dtype.itemsize
                word = self._splat(self._load(form.word, left.base, here, size))
                for total, other in zip(of_row, words, strict=True):
                    made = form.multiplied(to, to.read(total, vector), word, other)
                    to.set(total, vector, made)
        for row, of_row in enumerate(sums):
            target = to.plus(out, to.times(to.plus(first, str(row)), self._out_line))
            for n, total in enumerate(of_row):
                count = min(form.lanes, columns - n * form.lanes)
                where = to.plus(target, str(n * form.lanes * self.out.itemsize))
                self._store(to.read(total, vector), where, count)

    @property
    def _out_line(self) -> int:
        return self.right.lines * self.out.itemsize

    def _load(self, kind: str, base: str, offset: str, align: int) -> str:
        at = self.to.let(f"getelementptr inbounds i8, ptr {base}, i64 {offset}")
        return self.to.let(f"load {kind}, ptr {at}, align {align}")

    def _splat(self, word: str) -> str:
        vector, lanes = self.form.vector, self.form.lanes
        one = self.to.let(f"insertelement {vector} poison, {self.form.word} {word}, i64 0")
        return self.to.let(
            f"shufflevector {vector} {one}, {vector} poison, <{lanes} x i32> zeroinitializer"
        )

    def _store(self, sums: str, offset: str, count: int) -> None:
        """Stores the first ``count`` of a vector of sums, in the result's type."""
        to, form, out = self.to, self.form, self.out
        kind = type_of(out)
        vector = f"<{form.lanes} x {kind}>"
        if kind != form.word:
            how = "trunc" if out.itemsize < form.nbytes else "sext"
            sums = to.let(f"{how} {form.vector} {sums} to {vector}")
        at = to.let(f"getelementptr inbounds i8, ptr %out, i64 {offset}")
        if count == form.lanes:
            to.line(f"store {vector} {sums}, ptr {at}, align {out.itemsize}")
            return
        whole = to.variable(vector)
        to.set(whole, vector, sums)
        to.declared.add("declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
        size = count * out.itemsize
        to.line(f"call void @llvm.memcpy.p0.p0.i64(ptr {at}, ptr {whole}, i64 {size}, i1 false)")
