"""Products of matrices of integers. Sums that wrap have the same bits in any order.

The right matrix is packed, some of its columns at a time: words of up to four terms stand beside
one another, column by column. A tile of the result stays in registers. Its rows are numbers of the
left matrix, a word of which is multiplied with a vector of such words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator.codegen.native.groups import nest
from pallas_shim.evaluator.codegen.native.machine import features
from pallas_shim.evaluator.codegen.native.places import ALIGNMENT, Buffer, BufferPlace, contiguous
from pallas_shim.evaluator.codegen.native.source import NotNative, Source, type_of
from pallas_shim.evaluator.program import ArrayType, Instruction, Value

# So many rows are multiplied before all columns are packed again. They stay in a near cache, as do
# so many bytes of packed columns.
_BLOCK, _PACKED = 256, 1 << 18
# Rows so many bytes apart, or a multiple, drive one another out of the nearest cache.
_ALIAS = 2048
_BYTES = np.dtype(np.uint8)
# What turns a signed byte into an unsigned one that is 128 more, and back.
_BIAS = 0x80


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


def form(left: np.dtype, right: np.dtype, out: np.dtype, terms: int) -> Form:
    """The fastest way that this processor has.

    Raises:
      NotNative: these aren't integers.
    """
    if out.kind not in "iu" or any(dtype.kind not in "biu" for dtype in (left, right)):
        raise NotNative(f"dot_general of {left.name} and {right.name}")
    known = features()
    is_wide = "avx512bw" in known
    bits = 512 if is_wide else 256 if "avx2" in known else 128
    rows = 8 if is_wide or "sse2" not in known else 4  # there are 32 registers, or 16
    bound = terms << 8 * (left.itemsize + right.itemsize)
    if "sse2" in known and (out.itemsize <= 4 or bound < 1 << 31):
        has_dots = ("avx512vnni" if is_wide else "avxvnni") in known
        if left.itemsize == right.itemsize == 1 and has_dots:
            return _of_bytes(left, right, bits, rows)
        if _fits_half(left) and _fits_half(right):
            multiplied = _halves(bits, has_dots)
            return Form("i32", 2, bits // 32, rows, 2, multiplied)
    word = "i32" if out.itemsize <= 4 else "i64"
    return Form(word, 1, bits // int(word[1:]), rows, 2, _plain(word, bits))


def _fits_half(dtype: np.dtype) -> bool:
    return dtype.itemsize == 1 or dtype == np.int16


def _of_bytes(left: np.dtype, right: np.dtype, bits: int, rows: int) -> Form:
    """By an instruction that multiplies unsigned bytes with signed ones."""
    lanes = bits // 32
    vector = f"<{lanes} x i32>"
    unsigned_left = left.kind == "u"
    bias = 0
    if unsigned_left == (right.kind == "u"):
        bias = _BIAS if unsigned_left else -_BIAS

    def multiplied(to: Source, sums: str, x: str, y: str) -> str:
        unsigned, signed = (x, y) if unsigned_left else (y, x)
        operands = [f"{vector} {words}" for words in (sums, unsigned, signed)]
        return _vector_call(to, vector, f"llvm.x86.avx512.vpdpbusd.{bits}", *operands)

    return Form("i32", 4, lanes, rows, 2, multiplied, bias)


def _halves(bits: int, has_dots: bool) -> Callable[[Source, str, str, str], str]:
    lanes = bits // 32
    vector, halves = f"<{lanes} x i32>", f"<{2 * lanes} x i16>"
    name = {128: "sse2.pmadd.wd", 256: "avx2.pmadd.wd", 512: "avx512.pmaddw.d.512"}[bits]

    def multiplied(to: Source, sums: str, x: str, y: str) -> str:
        if has_dots:
            operands = [f"{vector} {words}" for words in (sums, x, y)]
            return _vector_call(to, vector, f"llvm.x86.avx512.vpdpwssd.{bits}", *operands)
        cast = [f"{halves} {to.let(f'bitcast {vector} {words} to {halves}')}" for words in (x, y)]
        return to.let(f"add {vector} {sums}, {_vector_call(to, vector, f'llvm.x86.{name}', *cast)}")

    return multiplied


def _plain(word: str, bits: int) -> Callable[[Source, str, str, str], str]:
    vector = f"<{bits // int(word[1:])} x {word}>"

    def multiplied(to: Source, sums: str, x: str, y: str) -> str:
        return to.let(f"add {vector} {sums}, {to.let(f'mul {vector} {x}, {y}')}")

    return multiplied


def _vector_call(to: Source, kind: str, name: str, *operands: str) -> str:
    types = ", ".join(operand[: operand.index(">") + 1] for operand in operands)
    to.declared.add(f"declare {kind} @{name}({types})")
    return to.let(f"call {kind} @{name}({', '.join(operands)})")


class _Matrix(NamedTuple):
    """A matrix in memory, one for each batch: (rows, terms) or (columns, terms). Strides count
    bytes."""

    buffer: Buffer
    offset: str
    dtype: np.dtype
    lines: int
    line: int  # the stride from a row, or a column, to the next
    term: int  # that from a term to the next
    batch: tuple[int, ...]  # the strides from a batch to the next


def dot_general(to: Any, instruction: Instruction) -> None:
    """Writes a product.

    Raises:
      NotNative: it isn't one of integers.
    """
    operation, (x, y), (out,), *_ = instruction
    (left_terms, right_terms), batches = operation.params["dimension_numbers"]
    terms = math.prod(x.type.shape[d] for d in left_terms)
    way = form(x.type.dtype, y.type.dtype, out.type.dtype, terms)
    type_of(x.type.dtype), type_of(y.type.dtype)
    if not (terms and math.prod(out.type.shape)):
        raise NotNative("dot_general without elements")
    copies: list[Buffer] = []
    left = _matrix(to, x, left_terms, batches[0], copies)
    right = _matrix(to, y, right_terms, batches[1], copies)
    made = to.room(out) if out.type.shape else _scalar_room(to, out)
    sizes = out.type.shape[: len(batches[0])]
    writer = _Writer(to, way, left, right, terms, made)
    with nest(to.to, sizes) as at:
        writer.batch(at, sizes)
    writer.end()
    for buffer in copies:
        to.workspace.give_back(buffer)
    if not out.type.shape:
        to.registers[out] = to.to.load(made.dtype, made.buffer.base, made.offset)
        to.workspace.give_back(made.buffer)
    elif not to.left[out]:
        to.release(made.buffer)
    for value in (x, y):
        to.used(value)


def _scalar_room(to: Any, out: Value) -> BufferPlace:
    return contiguous(to.workspace.take((), out.type.dtype), (), out.type.dtype)


def _matrix(
    to: Any, value: Value, terms: Sequence[int], batch: Sequence[int], copies: list[Buffer]
) -> _Matrix:
    """A value as a matrix. It is copied if its dimensions don't lie evenly: then the copy is among
    ``copies``."""
    place = to.place(value)
    to.before_reading(place.buffer)
    lines = [d for d in range(len(place.shape)) if d not in terms and d not in batch]
    found = _merged(place, lines), _merged(place, terms)
    if None in found:
        order = (*batch, *lines, *terms)
        shape = tuple(place.shape[d] for d in order)
        seen = Value(ArrayType(shape, place.dtype))
        strides = tuple(place.strides[d] for d in order)
        to.places[seen] = BufferPlace(place.buffer, place.offset, strides, shape, place.dtype)
        place = contiguous(to.workspace.take(shape, place.dtype), shape, place.dtype)
        to.store(place, seen)
        to.flush_all()
        copies.append(place.buffer)
        batch = range(len(batch))
        lines = range(len(batch), len(batch) + len(lines))
        found = _merged(place, lines), _merged(place, range(len(batch) + len(lines), len(shape)))
    (count, line), (_, term) = found
    # One matrix may be for all batches.
    steps = tuple(place.strides[d] if place.shape[d] > 1 else 0 for d in batch)
    dtype = _BYTES if place.dtype.kind == "b" else place.dtype
    return _Matrix(place.buffer, place.offset, dtype, count, line, term, steps)


def _merged(place: BufferPlace, dims: Sequence[int]) -> tuple[int, int] | None:
    """The number and the stride of the elements along dimensions, None if it isn't one stride."""
    count, stride = 1, 0
    for d in reversed(dims):
        size = place.shape[d]
        if size != 1:
            if count == 1:
                stride = place.strides[d]
            elif place.strides[d] != stride * count:
                return None
            count *= size
    return count, stride


class _Writer:
    """Writes one product."""

    def __init__(
        self, to: Any, form: Form, left: _Matrix, right: _Matrix, terms: int, out: BufferPlace
    ):
        self.to: Source = to.to
        self.form, self.left, self.right, self.terms, self.out = form, left, right, terms, out
        self.words = -(-terms // form.each)  # of a row
        self.row = self.words * form.nbytes  # the bytes of a packed row
        if self.row % _ALIAS == 0:
            self.row += ALIGNMENT
        self.workspace = to.workspace
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
        self.room = {
            "left": self._take(block * self.row if self.is_packed else 0),
            "right": self._take(panel * max(1, self.together)),
            "start": self._take(4 * block if form.bias else 0),
        }

    def _take(self, size: int) -> Buffer | None:
        return self.workspace.take((size,), _BYTES) if size else None

    def end(self) -> None:
        for buffer in self.room.values():
            if buffer is not None:
                self.workspace.give_back(buffer)

    def batch(self, at: Sequence[str], sizes: Sequence[int]) -> None:
        to, size = self.to, self.out.dtype.itemsize
        left, right = (
            matrix._replace(offset=self._plus(matrix.offset, at, matrix.batch))
            for matrix in (self.left, self.right)
        )
        rows, columns = left.lines, right.lines
        steps = [math.prod(sizes[d + 1 :]) * rows * columns * size for d in range(len(sizes))]
        out = self._plus(self.out.offset, at, steps)
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

    def _block(self, left: _Matrix, right: _Matrix, out: str, first: str, rows: int) -> None:
        """The product of some rows, from ``first`` on."""
        to, size, columns = self.to, self.out.dtype.itemsize, right.lines
        left = left._replace(
            offset=to.plus(left.offset, to.times(first, left.line)), lines=rows
        )
        out = to.plus(out, to.times(first, columns * size))
        room = self.room["left"]
        if room is not None:
            self._pack(left, 1, rows, room, self.form.nbytes, self.row, 0)
            left = left._replace(buffer=room, offset=str(room.start), line=self.row)
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

    def _sum_rows(self, left: _Matrix) -> None:
        """What the sums of each row start with."""
        to, room = self.to, self.room["start"]
        assert room is not None
        extend = "zext" if left.dtype.kind == "u" else "sext"
        with to.loop(str(left.lines)) as row:
            total = to.variable("i32", "0")
            offset = to.plus(left.offset, to.times(row, left.line))
            with to.loop(str(self.words * self.form.nbytes)) as number:
                byte = to.load(_BYTES, left.buffer.base, to.plus(offset, number))
                wide = to.let(f"{extend} i8 {byte} to i32")
                to.set(total, "i32", to.let(f"add i32 {to.read(total, 'i32')}, {wide}"))
            start = to.let(f"mul i32 {to.read(total, 'i32')}, {self.form.bias}")
            to.store(np.dtype(np.int32), start, room.base, self._in(room, to.times(row, 4)))

    def _in(self, room: Buffer, offset: str) -> str:
        return self.to.plus(str(room.start), offset)

    def _pack(
        self, matrix: _Matrix, panels: int, lines: int, room: Buffer, word: int, line: int,
        bias: int,
    ) -> None:  # fmt: skip
        """Puts a matrix's terms together to words. ``lines``: how many a panel has; ``word``,
        ``line``: the steps from a word, and from a line, to the next."""
        to, each = self.to, self.form.each
        whole, rest = divmod(self.terms, each)
        with to.independent_rounds() as mark:

            def copy(number: str, panel: str, at: str, terms: int) -> None:
                source = to.plus(to.times(panel, lines), at)
                offset = to.plus(matrix.offset, to.times(source, matrix.line))
                offset = to.plus(offset, to.times(number, matrix.term * each))
                made = self._word(matrix, offset, terms, bias)
                target = to.plus(to.times(panel, self.words * word), to.times(number, word))
                target = to.plus(target, to.times(at, line))
                to.store(self.form.dtype, made, room.base, self._in(room, target))

            def copies(terms: int, *order: int) -> None:
                """The loops over words, panels and lines, in an order."""
                sizes = (whole, panels, lines) if terms == each else (1, panels, lines)
                at = [str(whole) if terms < each else "0", "0", "0"]
                with ExitStack() as stack:
                    for loop in order:
                        if sizes[loop] > 1:
                            at[loop] = stack.enter_context(to.loop(str(sizes[loop]), mark))
                    copy(*at, terms)

            # Neighbours in memory are read one after another.
            order = (0, 1, 2) if matrix.line == matrix.dtype.itemsize else (1, 2, 0)
            if whole:
                copies(each, *order)
            if rest:
                copies(rest, *order)

    def _word(self, matrix: _Matrix, offset: str, terms: int, bias: int) -> str:
        """A word of a line's terms."""
        to, form, dtype = self.to, self.form, matrix.dtype
        kind, size = form.word, dtype.itemsize
        if terms == form.each and matrix.term == size and 8 * size == form.bits:
            at = to.let(f"getelementptr inbounds i8, ptr {matrix.buffer.base}, i64 {offset}")
            made = to.let(f"load {kind}, ptr {at}, align {size}{to.access}")
        else:
            made = ""
            for number in range(terms):
                where = to.plus(offset, str(number * matrix.term))
                term = self._resized(to.load(dtype, matrix.buffer.base, where), dtype)
                if form.each > 1:
                    term = to.let(f"and {kind} {term}, {(1 << form.bits) - 1}")
                if number:
                    term = to.let(f"shl {kind} {term}, {number * form.bits}")
                made = to.let(f"or {kind} {made}, {term}") if made else term
        if bias:
            pattern = sum(_BIAS << number * 8 for number in range(4))
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
        self, left: _Matrix, right: _Matrix, out: str, first: str, panels: int, columns: int
    ) -> None:
        """The product with some panels, of so many columns each, from the column ``first`` on."""
        to, form, room = self.to, self.form, self.room["right"]
        assert room is not None
        step = -(-columns // form.lanes) * form.lanes * form.nbytes
        right = right._replace(offset=to.plus(right.offset, to.times(first, right.line)))
        self._pack(right, panels, columns, room, step, form.nbytes, form.bias)
        out = to.plus(out, to.times(first, self.out.dtype.itemsize))
        whole, rest = divmod(left.lines, form.rows)
        with to.loop(str(panels)) as panel:
            packed = self._in(room, to.times(panel, self.words * step))
            here = to.plus(out, to.times(panel, columns * self.out.dtype.itemsize))
            if whole:
                with to.loop(str(whole)) as number:
                    first = to.times(number, form.rows)
                    self._tile(left, packed, here, first, form.rows, columns)
            if rest:
                self._tile(left, packed, here, str(whole * form.rows), rest, columns)

    def _tile(
        self, left: _Matrix, packed: str, out: str, first: str, rows: int, columns: int
    ) -> None:
        to, form, room = self.to, self.form, self.room["right"]
        assert room is not None
        vector, vectors = form.vector, -(-columns // form.lanes)
        offset = to.plus(left.offset, to.times(first, left.line))
        sums: list[list[str]] = []
        for row in range(rows):
            start = "zeroinitializer"
            starts = self.room["start"]
            if starts is not None:
                at = self._in(starts, to.times(to.plus(first, str(row)), 4))
                start = self._splat(to.load(np.dtype(np.int32), starts.base, at))
            sums.append([to.variable(vector, start) for _ in range(vectors)])
        step = form.lanes * form.nbytes
        with to.loop(str(self.words)) as number:
            here = to.plus(packed, to.times(number, vectors * step))
            words = [
                self._load(vector, room.base, to.plus(here, str(n * step)), step)
                for n in range(vectors)
            ]
            at = to.plus(offset, to.times(number, form.nbytes))
            for row, of_row in enumerate(sums):
                here = to.plus(at, str(row * left.line))
                size = form.nbytes if self.is_packed else left.dtype.itemsize
                word = self._splat(self._load(form.word, left.buffer.base, here, size))
                for total, other in zip(of_row, words, strict=True):
                    made = form.multiplied(to, to.read(total, vector), word, other)
                    to.set(total, vector, made)
        for row, of_row in enumerate(sums):
            target = to.plus(out, to.times(to.plus(first, str(row)), self._out_line))
            for n, total in enumerate(of_row):
                count = min(form.lanes, columns - n * form.lanes)
                where = to.plus(target, str(n * form.lanes * self.out.dtype.itemsize))
                self._store(to.read(total, vector), where, count)

    @property
    def _out_line(self) -> int:
        return self.right.lines * self.out.dtype.itemsize

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
        kind = type_of(out.dtype)
        vector = f"<{form.lanes} x {kind}>"
        if kind != form.word:
            how = "trunc" if out.dtype.itemsize < form.nbytes else "sext"
            sums = to.let(f"{how} {form.vector} {sums} to {vector}")
        at = to.let(f"getelementptr inbounds i8, ptr {out.buffer.base}, i64 {offset}")
        if count == form.lanes:
            to.line(f"store {vector} {sums}, ptr {at}, align {out.dtype.itemsize}")
            return
        whole = to.variable(vector)
        to.set(whole, vector, sums)
        to.declared.add("declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
        size = count * out.dtype.itemsize
        to.line(f"call void @llvm.memcpy.p0.p0.i64(ptr {at}, ptr {whole}, i64 {size}, i1 false)")
