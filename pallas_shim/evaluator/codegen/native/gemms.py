"""Sums of products of matrices of floats, by calls of BLAS's own function.

NumPy calls the same function for such a product, so the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator import blas, products
from pallas_shim.evaluator.codegen.native.places import BufferPlace, contiguous, dummy, viewed
from pallas_shim.evaluator.codegen.native.source import NotNative, Source, literal, type_of
from pallas_shim.evaluator.program import ArrayType, Instruction, Value

# How the matrices of a stack lie, and their addresses; rows, terms and columns of a product.
Members = list[tuple[blas.MatrixPlace, str]]
Sizes = tuple[int, int, int]


def sum_of_products(to: Any, instruction: Instruction) -> None:
    """Writes a sum of products that goes to a ref, and that BLAS's threads share.

    Raises:
      NotNative: it isn't one, or BLAS can't add it up where its matrices lie.
    """
    operation, ins, outs, *_ = instruction
    params, numbers = operation.params, operation.params["dimension_numbers"]
    if outs or params["path"] or to.shared is not None:
        raise NotNative("a sum of products that isn't one of all cells, where a ref is")
    ref, *operands = ins
    dtype, matrices = ref.type.dtype, operands[params["starts"] :]
    lhs, rhs = matrices[0].type.shape, matrices[1].type.shape
    stacks = products.stacks(lhs, rhs, numbers)
    joined = products.join(*stacks)
    if any(x.type.dtype != dtype for x in matrices) or not joined.is_shared:
        raise NotNative("a sum of products that Python prepares")
    if not blas.can_add(dtype):
        raise NotNative("a sum of products without OpenBLAS")
    orders, joins = products.orders(len(lhs), len(rhs), numbers), (joined.left, joined.right)

    def join(n: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: joins[n % 2](x.transpose(orders[n % 2]).reshape(stacks[n % 2]))

    places = [to.place(x) for x in matrices]
    target = to.place(ref)
    whole = _view(to.to, target, joined.within)
    sums = list(_members(to.to, whole))
    members = [
        list(_members(to.to, _view(to.to, place, join(n)))) for n, place in enumerate(places)
    ]
    pairs = list(zip(members[::2], members[1::2], strict=True))
    start = operands[0] if params["starts"] else None
    started = target if start is None else to.place(start)
    if any(z.order != blas.BY_ROWS for z, _ in sums):
        raise NotNative("a sum of products that doesn't lie row by row")
    if any(place.buffer is target.buffer for place in places) or (
        started.buffer is target.buffer and started != target
    ):
        raise NotNative("a sum of products over its operands")
    # For a matrix by its transpose NumPy calls another function.
    rows, _, columns = joined.sizes
    both = [xy for lefts, rights in pairs for xy in zip(lefts, rights, strict=True)]
    if rows == columns and any(x.order != y.order and x.step == y.step for (x, _), (y, _) in both):
        raise NotNative("a product that may be of a matrix by its transpose")
    if start is not None:
        to.store(target, start)
    for place in places:
        to.before_reading(place.buffer)
    to.before_writing(target.buffer)
    if blas.adds_exactly(dtype, joined.sizes[1]):
        for n, (lefts, rights) in enumerate(pairs):
            _multiply(to.to, dtype, joined.sizes, lefts, rights, sums, n > 0 or start is not None)
        _update(to, whole, (), _flushed(dtype))
    else:
        _add_apart(to, joined.sizes, pairs, whole, start is not None)
    for x in matrices:
        to.used(x)
    to.used_by(whole.shape, ref)


def _add_apart(
    to: Any, sizes: Sizes, pairs: Sequence[tuple[Members, Members]], whole: BufferPlace,
    keeps: bool,
) -> None:  # fmt: skip
    """Writes products to memory of their own, and their sum with what is at a place if that is
    kept, or with zeros."""
    room = contiguous(to.workspace.take(whole.shape, whole.dtype), whole.shape, whole.dtype)
    room.buffer.users += 1
    sums, apart = (list(_members(to.to, place)) for place in (whole, room))
    zero = literal(whole.dtype.type(0))
    number = type_of(whole.dtype)

    def add_to_zero(to: Source, xs: Sequence[str]) -> list[str]:
        sum_ = to.let(f"fadd {number} {zero}, {xs[0]}")
        return [to.let(f"fadd {number} {sum_}, {x}") for x in xs[1:]] or [sum_]

    def add(to: Source, xs: Sequence[str]) -> list[str]:
        return [to.let(f"fadd {number} {xs[0]}, {xs[1]}")]

    write = add
    if not keeps:  # the first product lies where the sum will
        _multiply(to.to, whole.dtype, sizes, *pairs[0], sums, False)
        pairs, write = pairs[1:], add_to_zero
        if not pairs:
            _update(to, whole, (), add_to_zero)
    for lefts, rights in pairs:
        _multiply(to.to, whole.dtype, sizes, lefts, rights, apart, False)
        _update(to, whole, (room,), write)
        to.flush_all()
        write = add
    to.release(room.buffer)


def _multiply(
    to: Source, dtype: np.dtype, sizes: Sizes, lefts: Members, rights: Members, sums: Members,
    keeps: bool,
) -> None:  # fmt: skip
    """Writes calls of BLAS, which add products to what is there if that is kept, or to zeros."""
    rows, terms, columns = sizes
    for (x, at_x), (y, at_y), (z, at_z) in zip(lefts, rights, sums, strict=True):
        function, index = blas.gemm(dtype)
        number, integer = type_of(dtype), f"i{8 * index}"
        given = [
            f"i32 {blas.ROW_MAJOR}", f"i32 {x.order}", f"i32 {y.order}",
            *[f"{integer} {size}" for size in (rows, columns, terms)],
            f"{number} {literal(dtype.type(1))}",
            f"ptr {at_x}", f"{integer} {x.step}", f"ptr {at_y}", f"{integer} {y.step}",
            f"{number} {literal(dtype.type(keeps))}", f"ptr {at_z}", f"{integer} {z.step}",
        ]  # fmt: skip
        to.line(f"call void {to.fixed(function)}({', '.join(given)})")
        to.poll()


def _update(
    to: Any, place: BufferPlace, others: Sequence[BufferPlace],
    write: Callable[[Source, Sequence[str]], list[str]],
) -> None:  # fmt: skip
    """Writes an elementwise function of places over the first one."""
    type = ArrayType(place.shape, place.dtype)
    read, made = [Value(type) for _ in (place, *others)], Value(type)
    for value, each in zip(read, (place, *others), strict=True):
        to.set_place(value, each)
        to.left[value] = 1
    to.left[made] = 1
    to.elementwise([made], read, write)
    to.store(place, made)


def _view(
    to: Source, place: BufferPlace, view: Callable[[np.ndarray], np.ndarray | None]
) -> BufferPlace:
    """The place of a view of what is at a place."""
    array = dummy(place)
    made = view(array)
    found = None if made is None else viewed(made, array)
    if made is None or found is None:
        raise NotNative("a product of matrices that don't lie evenly")
    offset = to.plus(place.offset, str(found[0]))
    return BufferPlace(place.buffer, offset, found[1], made.shape, place.dtype)


def _members(to: Source, stack: BufferPlace) -> Iterator[tuple[blas.MatrixPlace, str]]:
    """How the matrices of a stack lie, and their addresses."""
    array = dummy(stack)
    for at in np.ndindex(stack.shape[:-2]):
        found = blas.place(array[at])
        if found is None:
            raise NotNative("a product of matrices that don't lie as BLAS takes them")
        offset = to.plus(stack.offset, str(array[at].ctypes.data - array.ctypes.data))
        yield found, to.let(f"getelementptr i8, ptr {stack.buffer.base}, i64 {offset}")


def _flushed(dtype: np.dtype) -> Callable[[Source, Sequence[str]], list[str]]:
    """Writes a zero with the same sign for a subnormal number, which BLAS's threads leave."""
    number, size = type_of(dtype), 8 * dtype.itemsize
    exponent = np.array(np.inf, dtype).view(f"i{dtype.itemsize}")

    def write(to: Source, xs: Sequence[str]) -> list[str]:
        bits = to.let(f"bitcast {number} {xs[0]} to i{size}")
        held = to.let(f"and i{size} {bits}, {int(exponent)}")
        is_small = to.let(f"icmp eq i{size} {held}, 0")
        zero = to.let(f"and i{size} {bits}, {-(1 << (size - 1))}")
        kept = to.let(f"select i1 {is_small}, i{size} {zero}, i{size} {bits}")
        return [to.let(f"bitcast i{size} {kept} to {number}")]

    return write
