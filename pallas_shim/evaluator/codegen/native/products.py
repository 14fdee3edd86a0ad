"""Products of integers, which have the same bits in any order, since their sums wrap.

Processors multiply bytes, or halves of words, and add up some neighbours in one instruction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator.codegen.native.machine import features
from pallas_shim.evaluator.codegen.native.places import Buffer, BufferPlace, contiguous
from pallas_shim.evaluator.codegen.native.source import NotNative, Source, type_of
from pallas_shim.evaluator.codegen.native.tiles import BIAS, BYTES, Form, Matrix, Product
from pallas_shim.evaluator.program import ArrayType, Instruction, Value


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
        bias = BIAS if unsigned_left else -BIAS

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
    left, left_at = _matrix(to, x, left_terms, batches[0], copies, "%left")
    right, right_at = _matrix(to, y, right_terms, batches[1], copies, "%right")
    made = to.room(out) if out.type.shape else _scalar_room(to, out)
    writer = Product(way, left, right, terms, out.type.dtype, out.type.shape[: len(batches[0])])
    room = to.workspace.take((writer.room,), BYTES)
    text: Source = to.to
    # Equal products are one function, and LLVM takes less time for many functions than for one.
    key = (x.type.dtype, y.type.dtype, out.type.dtype, terms, writer.sizes, left, right)
    params = "ptr %left, ptr %right, ptr noalias %out, ptr noalias %room"
    name = text.function(key, params, writer.write)
    at = (left_at, right_at, (made.buffer.base, made.offset), (room.base, str(room.start)))
    given = [text.let(f"getelementptr i8, ptr {base}, i64 {offset}") for base, offset in at]
    text.line(f"call i32 @{name}({', '.join(f'ptr {pointer}' for pointer in given)})")
    for buffer in (room, *copies):
        to.workspace.give_back(buffer)
    if not out.type.shape:
        to.registers[out] = text.load(made.dtype, made.buffer.base, made.offset)
        to.workspace.give_back(made.buffer)
    elif not to.left[out]:
        to.release(made.buffer)
    for value in (x, y):
        to.used(value)


def _scalar_room(to: Any, out: Value) -> BufferPlace:
    return contiguous(to.workspace.take((), out.type.dtype), (), out.type.dtype)


def _matrix(
    to: Any, value: Value, terms: Sequence[int], batch: Sequence[int], copies: list[Buffer],
    base: str,
) -> tuple[Matrix, tuple[str, str]]:  # fmt: skip
    """A value as a matrix at ``base``, and where that is. It is copied if its dimensions don't lie
    evenly: then the copy is among ``copies``."""
    place = to.place(value)
    to.before_reading(place.buffer)
    lines = [d for d in range(len(place.shape)) if d not in terms and d not in batch]
    of_lines, of_terms = _merged(place, lines), _merged(place, terms)
    if of_lines is None or of_terms is None:
        order = (*batch, *lines, *terms)
        shape = tuple(place.shape[d] for d in order)
        seen = Value(ArrayType(shape, place.dtype))
        strides = tuple(place.strides[d] for d in order)
        to.places[seen] = BufferPlace(place.buffer, place.offset, strides, shape, place.dtype)
        place = contiguous(to.workspace.take(shape, place.dtype), shape, place.dtype)
        to.store(place, seen)
        to.flush_all()
        copies.append(place.buffer)
        batch, count = range(len(batch)), math.prod(shape[len(batch) + len(lines) :])
        size = place.dtype.itemsize
        of_lines = math.prod(shape[len(batch) : len(batch) + len(lines)]), count * size
        of_terms = count, size
    # One matrix may be for all batches.
    steps = tuple(place.strides[d] if place.shape[d] > 1 else 0 for d in batch)
    dtype = BYTES if place.dtype.kind == "b" else place.dtype
    where = place.buffer.base, place.offset
    return Matrix(dtype, of_lines[0], of_lines[1], of_terms[1], steps, base), where


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
