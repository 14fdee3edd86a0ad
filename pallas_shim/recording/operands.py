"""The operands of a kernel while it is recorded, and where they lie in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator import blocks
from pallas_shim.evaluator.watching import Cell, address
from pallas_shim.view import data, measures


class OperandBlock(NamedTuple):
    """How an operand is cut: the block's size and the scale of its index along each dimension, and
    the padding in front of the array."""

    sizes: tuple[int, ...]
    scales: tuple[int, ...]
    before: tuple[int, ...]


@dataclasses.dataclass(eq=False)
class Ref:
    """An operand of one run of a kernel. ``starts`` are those of each cell's block, as its index
    map has them."""

    name: str
    role: str
    shape: tuple[int, ...]
    dtype: np.dtype
    space: str
    block: OperandBlock | None
    piped: bool
    heat: measures.HeatMap
    starts: list[tuple[int, ...]] = dataclasses.field(default_factory=list)
    contents: np.ndarray | None = None


class OperandMemory(NamedTuple):
    """Memory that an operand has, or a block of it: ``offset`` are the indices of its first
    element."""

    low: int
    high: int
    array: np.ndarray
    ref: int
    offset: tuple[int, ...]


def refs_of(cell: Cell) -> list[Ref]:
    kernel, call = cell.kernel, cell.kernel.call
    refs = []
    aliased = {out for _, out in call.aliases}
    for position, array in enumerate(cell.refs):
        at = position - call.num_prefetch
        block, shape, piped = None, array.shape, False
        space = kernel.spaces[position] if position < len(kernel.spaces) else "?"
        if at < 0:
            role = "prefetch"
        elif at < len(call.blocks):
            cut = call.blocks[at]
            is_output = at >= call.num_inputs
            role = "output" if is_output else "input"
            if is_output and at - call.num_inputs in aliased:
                role = "input and output"
            shape = tuple(kernel.shapes[at])
            rest = shape[len(cut.dims) :]
            block = OperandBlock(
                (*(dim.size for dim in cut.dims), *rest),
                tuple(dim.size if dim.kind == "blocked" else 1 for dim in cut.dims),
                tuple(dim.padding[0] for dim in cut.dims),
            )
            piped = not cut.in_hbm
        else:
            role = "scratch" if call.cores is None or call.blocks else "memory"
        refs.append(Ref(
            kernel.name(position), role, shape, array.dtype, space, block, piped,
            measures.HeatMap(shape),
        ))  # fmt: skip
    return refs


def made(ref: Ref) -> data.RecordedOperand:
    distinct = list(dict.fromkeys(ref.starts))
    number = {start: n for n, start in enumerate(distinct)}
    order = [number[start] for start in ref.starts]
    block = ref.block.sizes if ref.block is not None else None
    whole = block == ref.shape
    semaphore = ref.space.startswith("semaphore")
    return data.RecordedOperand(
        ref.name, ref.role, ref.shape, "semaphore" if semaphore else ref.dtype.name,
        ref.dtype.itemsize, ref.space, block, distinct, order, ref.piped,
        measures.coverage(ref.shape, block, distinct, order) if block and not whole else None,
        None if semaphore else ref.heat.result(ref.contents),
    )  # fmt: skip


def starts_of(
    found: Sequence[int], block: OperandBlock, buffer: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where a block starts in its array: as the index map has it, and where the run has it."""
    asked, clamped = [], []
    for start, scale, pad, size, dim in zip(
        found, block.scales, block.before, block.sizes, buffer, strict=False
    ):
        first = int(blocks.from_the_start(np.asarray(start), scale, dim))
        asked.append(first - pad)
        clamped.append(max(0, min(first, dim - size)) - pad)
    rest = [0] * (len(buffer) - len(asked))
    return tuple(asked + rest), tuple(clamped + rest)


def with_squeezed(shape: Sequence[int], dims: Sequence[Any]) -> list[int]:
    sizes = iter(shape)
    return [1 if dim.kind == "squeezed" else next(sizes) for dim in dims] + list(sizes)


# -- memory ---------------------------------------------------------------------------------------


def add_memory(
    found: list[OperandMemory], array: np.ndarray, ref: int, offset: tuple[int, ...]
) -> None:
    if array.nbytes and array.flags.c_contiguous:
        low = address(array)
        found.append(OperandMemory(low, low + array.nbytes, array, ref, offset))


def spans(part: np.ndarray, owner: OperandMemory) -> list[slice]:
    """The elements of an operand that a part of its memory has, as a slice of each dimension. They
    may be more, if the part was reshaped."""
    whole = owner.array
    size = whole.itemsize
    first = np.unravel_index((address(part) - owner.low) // size, whole.shape)
    lasts = [0] * whole.ndim
    steps = [1] * whole.ndim
    for count, stride in zip(part.shape, part.strides, strict=True):
        if count <= 1 or not stride:
            continue
        axis = next((a for a, s in enumerate(whole.strides) if whole.shape[a] > 1
                     and s <= abs(stride) and stride % s == 0), whole.ndim - 1)  # fmt: skip
        lasts[axis] += (count - 1) * stride // whole.strides[axis]
        steps[axis] = stride // whole.strides[axis]
    spans = []
    for at, last, step, dim, offset in zip(
        map(int, first), lasts, steps, whole.shape, owner.offset, strict=True
    ):
        low, high = min(at, at + last), max(at, at + last)
        if high >= dim:  # it goes on in the next row
            low, high, step = 0, dim - 1, 1
        spans.append(slice(low + offset, high + 1 + offset, max(abs(step), 1)))
    return spans
