"""The blocks of a grid's cells: views of buffers, some of them fetched before their cell runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pallas_shim import jax_compat
from pallas_shim.evaluator import lookahead, memory
from pallas_shim.evaluator.blocks import block_viewer
from pallas_shim.evaluator.cell_order import CellOrder
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.program import PURE, RefType, Value
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.jax_compat.pallas import BlockDim, PallasCall


def is_own(
    dims: Sequence[BlockDim],
    starts: Sequence[Value],
    shape: Sequence[int],
    axes: Sequence[tuple[Value, Value]],
) -> bool:
    """Whether each cell is seen to have a block that overlaps no other cell's."""
    for index, size in axes:
        if size.const is None:
            return False
        if int(size.const) > 1 and not any(
            start is index and dim.kind != "element" and int(size.const) * dim.size <= extent
            for start, dim, extent in zip(starts, dims, shape, strict=False)
        ):
            return False
    return True


def block_ref(
    lowering: Lowering,
    buffer: Value,
    dims: Sequence[BlockDim],
    starts: Sequence[Value],
    type: RefType,
) -> Value:
    """The ref of one cell's block: a view of the buffer at the index map's results."""
    shape = buffer.type.shape
    fixed, leaves = _place(shape, dims, starts)
    whole = all(
        isinstance(f, slice) and f == slice(0, s) for f, s in zip(fixed, shape, strict=True)
    )
    if whole and buffer.type == type:
        return buffer
    (ref,) = lowering.memory(
        "view", [buffer, *leaves], [type], block_viewer(fixed), PURE, view=True,
        params={"block": tuple(fixed)},
        key=("block", tuple((f.start, f.stop) if isinstance(f, slice) else f for f in fixed)),
    )
    return ref


def _place(
    shape: Sequence[int], dims: Sequence[BlockDim], starts: Sequence[Value]
) -> tuple[list[Any], list[Value]]:
    """A block's place as `block_viewer` wants it, and the operands of the viewer."""
    fixed: list[Any] = []
    leaves: list[Value] = []
    for size, dim, start in zip(shape, dims, starts, strict=False):
        scale = dim.size if dim.kind == "blocked" else 1
        # A block as large as its array lies at 0 wherever the index map points.
        known = 0 if dim.size == size else start.const
        if known is not None:
            at = memory.clamped(int(known) * scale, size, dim.size)
            fixed.append(at if dim.kind == "squeezed" else slice(at, at + dim.size))
        else:
            fixed.append((len(leaves), scale, size, dim.size, dim.kind == "squeezed"))
            leaves.append(start)
    fixed += [slice(0, size) for size in shape[len(dims) :]]
    return fixed, leaves


class Pipeline:
    """The blocks of a call that are fetched before their cell runs, where cells can see that.

    ``looked_up``: the positions of blocks whose index map reads what cells write. ``aliased``: for
    the positions of inputs, those of the outputs that are the same array.
    """

    def __init__(
        self,
        lowering: Lowering,
        call: PallasCall,
        sizes: Sequence[Value],
        prefetch: Sequence[Value],
        order: CellOrder,
    ) -> None:
        self.lowering, self.call, self.prefetch = lowering, call, prefetch
        self.order = order
        self.looked_up: set[int] = set()
        self.aliased: dict[int, int] = {}
        self._then: dict[int, list[Value]] = {}
        cores = call.cores is not None and call.cores.waits_for_others
        if not call.keeps_scalars or cores or not lookahead.has_several_cells(sizes):
            return
        ahead = {
            at
            for at, block in enumerate(call.blocks[: call.num_inputs])
            if block.buffers > 1 and not block.in_hbm
        }
        written = jax_compat.written_refs(call.jaxpr)
        for at in ahead:
            read = jax_compat.prefetch_read(call.blocks[at].index_map, call.num_prefetch)
            if read & written:
                self.looked_up.add(at)
        if not call.for_device:
            return
        for position, out in call.aliases:
            at, output = position - call.num_prefetch, call.num_inputs + out
            if at in ahead and call.num_prefetch + output in written:
                self.aliased[at] = output

    def turn(
        self, indices: Sequence[Value], starts: list[list[Value]]
    ) -> list[list[Value]]:
        """The places of this cell's blocks, given those that the index maps give now."""
        if not self.looked_up and not self.aliased:
            return starts
        starts = list(starts)
        following = lookahead.next_cell(self.lowering, indices, self.order.turns)
        following = self.order.indices(following)
        for at in sorted(self.looked_up | self.aliased.keys()):
            index_map = self.call.blocks[at].index_map
            self._then[at] = self.lowering.inline(index_map, [*following, *self.prefetch])
            if at in self.looked_up:
                starts[at] = lookahead.turn_block(
                    self.lowering, at, indices, starts[at], self._then[at]
                )
        return starts

    def fetched(
        self,
        at: int,
        indices: Sequence[Value],
        starts: Sequence[Sequence[Value]],
        buffers: Sequence[Value],
        type: RefType,
    ) -> Value | None:
        """The ref of an input's block as it was fetched. None if it is the array's own memory."""
        output = self.aliased.get(at)
        if output is None or buffers[at] is buffers[output]:
            return None
        blocks, shape = self.call.blocks, buffers[at].type.shape
        axes = list(zip(indices, self.order.turns, strict=True))
        dims = blocks[at].dims
        if (dims, starts[at]) == (blocks[output].dims, starts[output]) and is_own(
            dims, starts[at], shape, axes
        ):
            return None  # no other cell writes to it
        (fixed, leaves), (next_fixed, next_leaves) = [
            _place(shape, dims, place) for place in (starts[at], self._then[at])
        ]
        if fixed != next_fixed:
            raise Unsupported("pallas_call", "a block whose place is known in some cells only")
        return lookahead.fetched_block(
            self.lowering, at, indices, buffers[at], block_viewer(fixed),
            lookahead.BlockPlace(leaves, starts[at]),
            lookahead.BlockPlace(next_leaves, self._then[at]), type,
        )  # fmt: skip
