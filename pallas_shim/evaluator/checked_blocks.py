"""The blocks of a pallas_call whose memory is checked, as under pltpu.InterpretParams().

Under these, each block has its own memory. When the index map moves on, an input's memory is filled
and an output's is written back. A view of the array has the same effect for an input that the
kernel doesn't write to, and for an output whose blocks are visited once each. Most inputs and
outputs are of these kinds. But a view is wrong if an input and an output share an array.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pallas_shim.evaluator import checked_memory, memory
from pallas_shim.evaluator.program import PURE, Array, Effects, RefType, Value
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.jax_compat import InterpretOptions
from pallas_shim.jax_compat.pallas import BlockDim, PallasCall
from pallas_shim.jax_compat.state import Slice

if TYPE_CHECKING:  # lower is in a higher layer
    from pallas_shim.evaluator.lower import Lowering

Starts = tuple[int, ...]


class _Visits:
    """The current place of a block, and the first and last visit of each place, by the core that
    runs. This is run-time state of a program."""

    def __init__(self) -> None:
        self.core = 0
        self.leave()

    def leave(self) -> None:
        """The core has run its last cell."""
        self.now: Starts | None = None
        self.past: dict[Starts, tuple[Starts, Starts]] = {}

    def is_new(self, core: int) -> bool:
        """Whether another core runs than before."""
        before, self.core = self.core, core
        return core != before


class _BlockPlace(NamedTuple):
    """The place of one block. ``shape`` is the array's, and ``limits`` are the sizes that blocks
    must not leave. ``offsets``: for each dimension a known element offset, or the position of a
    leaf and the factor to multiply it by. ``known_inside``: it lies in the array, without a look at
    the leaves."""

    dims: tuple[BlockDim, ...]
    shape: tuple[int, ...]
    limits: tuple[int, ...]
    offsets: tuple[int | tuple[int, int], ...]
    known_inside: bool
    never_revisited: bool

    def starts(self, leaves: Sequence[Any]) -> Starts:
        return tuple(
            o if isinstance(o, int) else int(leaves[o[0]]) * o[1] for o in self.offsets
        )

    def window_index(self, starts: Starts) -> tuple[Any, ...]:
        """The index of the block in the form that `checked_memory.window` takes."""
        own = tuple(
            start if dim.kind == "squeezed" else Slice(start, dim.size, 1)
            for start, dim in zip(starts, self.dims, strict=True)
        )
        rest = self.shape[len(self.dims) :]
        return own + tuple(Slice(0, size, 1) for size in rest)

    def key(self, starts: Starts) -> tuple[Any, ...]:
        return (*[
            start if dim.kind == "squeezed" else slice(start, start + dim.size)
            for start, dim in zip(starts, self.dims, strict=True)
        ], ...)

    def is_inside(self, starts: Starts) -> bool:
        """Whether the block lies in the array."""
        return self._lies_in(self.shape, starts)

    def is_allowed(self, starts: Starts) -> bool:
        """Whether the block may lie there."""
        return self._lies_in(self.limits, starts)

    def _lies_in(self, sizes: tuple[int, ...], starts: Starts) -> bool:
        return all(
            0 <= start <= size - dim.size
            for start, size, dim in zip(starts, sizes, self.dims, strict=False)
        )


class CheckedBlocks:
    """The blocks of one call.

    Args:
      buffers: for each input and output, the ref of its array.
      types: the types of the kernel's refs for them.

    Attributes:
      made: refs that must exist before the first cell, with the operations that make them.

    Raises:
      Unsupported: an array in HBM is cut into blocks.
    """

    def __init__(
        self,
        lowering: Lowering,
        call: PallasCall,
        checked: InterpretOptions,
        sizes: Sequence[Value],
        buffers: Sequence[Value],
        types: Sequence[RefType],
    ) -> None:
        self.lowering, self.call, self.checked, self.sizes = lowering, call, checked, sizes
        self.buffers = buffers
        self.types = types
        self.made: list[tuple[Value, Callable[[], Any]]] = []
        self._core: list[Value] = []
        self._written_back: list[tuple[Value, Value, Value, _BlockPlace]] = []
        self._shared = {
            position
            for given, out in call.aliases
            if given >= call.num_prefetch
            for position in (given - call.num_prefetch, call.num_inputs + out)
        }
        for block, buffer, type in zip(call.blocks, buffers, types, strict=True):
            if block.in_hbm and buffer.type.shape != type.shape:
                raise Unsupported("pallas_call", f"blocks of {block.origin}, which is in HBM")

    def refs(self) -> list[Value]:
        """The refs with which the kernel of one cell is lowered. `define` defines them."""
        return [
            buffer if block.in_hbm else Value(type)
            for buffer, block, type in zip(
                self.buffers, self.call.blocks, self.types, strict=True
            )
        ]

    def define(
        self,
        refs: Sequence[Value],
        indices: Sequence[Value],
        starts: Sequence[Sequence[Value]],
        written: set[Value],
        core: Value,
    ) -> None:
        """Emits the instructions that give one cell its blocks.

        Args:
          refs: the result of `refs`.
          written: the refs that the kernel writes to.
          core: the core that runs the cell. The cells of each follow one another.
        """
        self._core = [] if core.const is not None else [core]
        num_inputs = self.call.num_inputs
        # Outputs come first. They write back the previous cell's block, which an input may read.
        for position in [*range(num_inputs, len(refs)), *range(num_inputs)]:
            if self.call.blocks[position].in_hbm:
                continue
            place, leaves = self._place(position, starts[position], indices)
            ref, is_output = refs[position], position >= num_inputs
            shared = position in self._shared
            beside = self.checked.padded and not place.known_inside
            own = shared or (beside if is_output else ref in written)
            if not own and not place.known_inside and (is_output or self.checked.raises):
                self._emit("check_block", (), leaves, indices, self._check(position, place))
            if is_output and not shared and not place.never_revisited:
                visits = self._make_visits()
                fn = self._check_revisit(position - num_inputs, place)
                self._emit("check_revisit", (visits,), leaves, indices, fn, writes=(0,))
            if own:
                self._own(position, ref, place, leaves, indices)
                continue
            self._view(position, ref, place, leaves)

    def _view(self, position: int, ref: Value, place: _BlockPlace, leaves: Sequence[Value]) -> None:
        copies = not place.known_inside and (self.checked.padded or not self.checked.raises)
        copies = copies and position < self.call.num_inputs
        fill = memory.filler(self.types[position].dtype, self.checked)
        block_shape = self.types[position].shape

        def view(buffer: Array, *values: Array) -> Array:
            starts = place.starts(values)
            if copies and not place.is_inside(starts):
                return _read(buffer, place, starts, block_shape, fill)
            return buffer[place.key(starts)]

        self.lowering.define("block", ref, [self.buffers[position], *leaves], view, PURE, view=True)

    def _own(
        self,
        position: int,
        ref: Value,
        place: _BlockPlace,
        leaves: Sequence[Value],
        indices: Sequence[Value],
    ) -> None:
        """Emits a block with its own memory. The memory lives from cell to cell."""
        buffer, type = self.buffers[position], self.types[position]
        fill = memory.filler(type.dtype, self.checked)
        self.made.append((ref, lambda: np.full(type.shape, fill, type.dtype)))
        visits = self._make_visits()
        check = self._check(position, place)
        is_output = position >= self.call.num_inputs
        strict = is_output or self.checked.raises
        core_of = self._core_reader()

        def move(visits: Array, buffer: Array, block: Array, *values: Array) -> tuple[()]:
            starts = place.starts(values)
            if visits.is_new(core_of(values)):
                if is_output and visits.now is not None:
                    _write(buffer, place, visits.now, block)
                    block[...] = fill
                visits.leave()
            if starts == visits.now:
                return ()
            if strict:
                check(*values)
            if not is_output:
                block[...] = _read(buffer, place, starts, type.shape, fill)
            elif visits.now is not None:
                _write(buffer, place, visits.now, block)
            visits.now = starts
            return ()

        writes = (0, 1) if is_output else (0, 2)
        refs = (visits, buffer, ref)
        self._emit("move_block", refs, leaves, indices, move, reads=(1, 2), writes=writes)
        if is_output:
            self._written_back.append((visits, buffer, ref, place))

    def write_back(self) -> None:
        """Emits, after the last cell, the instructions that write back the last blocks."""
        for visits, buffer, ref, place in self._written_back:

            def write(
                visits: Any, buffer: Array, block: Array, place: _BlockPlace = place
            ) -> tuple[()]:
                if visits.now is not None:
                    _write(buffer, place, visits.now, block)
                return ()

            self.lowering.memory(
                "write_back", [visits, buffer, ref], [], write, Effects((0, 2), (1,))
            )

    # -- where blocks lie -------------------------------------------------------------------

    def _place(
        self, position: int, starts: Sequence[Value], indices: Sequence[Value]
    ) -> tuple[_BlockPlace, list[Value]]:
        """The place of the block, and the values that it depends on."""
        dims = self.call.blocks[position].dims
        shape = self.buffers[position].ref.shape
        leaves: list[Value] = []
        offsets: list[int | tuple[int, int]] = []
        axes: set[int] | None = set()
        inside = True
        for size, dim, start in zip(shape, dims, starts, strict=False):
            scale = dim.size if dim.kind == "blocked" else 1
            if start.const is not None:
                last = first = int(start.const) * scale
                offsets.append(first)
            else:
                offsets.append((len(leaves), scale))
                leaves.append(start)
                axis = indices.index(start) if start in indices else None
                count = None if axis is None else self.sizes[axis].const
                axes = None if axes is None or axis is None else axes | {axis}
                first, last = (-1, 0) if count is None else (0, (int(count) - 1) * scale)
            inside = inside and 0 <= first and last <= size - dim.size
        limits = shape
        if not inside:
            limits = checked_memory.bounds(self.checked, self.buffers[position].ref)
        never_revisited = self._all_different(axes)
        return _BlockPlace(dims, shape, limits, tuple(offsets), inside, never_revisited), leaves

    def _all_different(self, axes: set[int] | None) -> bool:
        """Whether no block comes back after the grid has moved on to another. The block's place
        depends only on these axes of the grid; None if it isn't known on which."""
        if axes is None:
            return False
        passed = range(max(axes, default=-1) + 1)
        sizes = [self.sizes[axis].const for axis in passed if axis not in axes]
        return all(size is not None and int(size) == 1 for size in sizes)

    def _check(self, position: int, place: _BlockPlace) -> Callable[..., tuple[()]]:
        num_inputs = self.call.num_inputs
        kind = "input" if position < num_inputs else "output"
        origin = self.call.blocks[position].origin
        dims, grid_ndim = place.dims, len(self.sizes)

        def check(*values: Array) -> tuple[()]:
            starts = place.starts(values)
            if not place.is_allowed(starts):
                numbers = tuple(
                    s // d.size if d.kind == "blocked" else s
                    for s, d in zip(starts, dims, strict=True)
                )
                raise IndexError(
                    f'Out-of-bounds block index {numbers} for {kind} "{origin}" in iteration '
                    f"{_iteration(values, grid_ndim)}: the block of {tuple(d.size for d in dims)} "
                    f"elements leaves the array, of {place.shape}. Keep the index map inside it"
                )
            return ()

        return check

    def _check_revisit(self, output: int, place: _BlockPlace) -> Callable[..., tuple[()]]:
        grid_ndim, core_of = len(self.sizes), self._core_reader()

        def check(visits: Array, *values: Array) -> tuple[()]:
            if visits.is_new(core_of(values)):
                visits.leave()
            starts, iteration = place.starts(values), _iteration(values, grid_ndim)
            if starts != visits.now and starts in visits.past:
                first, last = visits.past[starts]
                raise RuntimeError(
                    f"Revisited block {place.key(starts)[:-1]} of output {output} in iteration "
                    f"{iteration}. The block was previously visited in iterations {first} "
                    f"through {last}. Order the grid so that visits of a block follow each other"
                )
            first, _ = visits.past.get(starts, (iteration, iteration))
            visits.past[starts] = first, iteration
            visits.now = starts
            return ()

        return check

    # -- emitting ---------------------------------------------------------------------------

    def _make_visits(self) -> Value:
        visits = Value(RefType((), np.dtype(object), "visits"))
        self.made.append((visits, _Visits))
        return visits

    def _core_reader(self) -> Callable[[Sequence[Any]], int]:
        """The function that finds the core among the values of `_emit`."""
        if not self._core:
            return lambda values: 0
        place = -len(self.sizes) - 1
        return lambda values: int(values[place])

    def _emit(
        self,
        name: str,
        refs: Sequence[Value],
        leaves: Sequence[Value],
        indices: Sequence[Value],
        fn: Callable[..., tuple[()]],
        reads: tuple[int, ...] = (),
        writes: tuple[int, ...] = (),
    ) -> None:
        effects = Effects(reads=reads, writes=writes, io=True)
        self.lowering.memory(name, [*refs, *leaves, *self._core, *indices], [], fn, effects)


def _iteration(values: Sequence[Any], grid_ndim: int) -> Starts:
    """The indices of the cell. They are the last operands."""
    return tuple(map(int, values[len(values) - grid_ndim :]))


def _read(
    buffer: np.ndarray, place: _BlockPlace, starts: Starts, shape: tuple[int, ...], fill: Any
) -> np.ndarray:
    """A copy of a block. Elements outside the array are ``fill``."""
    block = np.full(shape, fill, buffer.dtype)
    inside = checked_memory.window(place.shape, place.window_index(starts), ())
    if inside is not None:
        block[inside.outer] = buffer[inside.inner]
    return block


def _write(buffer: np.ndarray, place: _BlockPlace, starts: Starts, block: np.ndarray) -> None:
    """Writes the part of a block that is inside the array."""
    inside = checked_memory.window(place.shape, place.window_index(starts), ())
    if inside is not None:
        buffer[inside.inner] = block[inside.outer]
