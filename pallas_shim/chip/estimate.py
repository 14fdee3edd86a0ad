"""Estimates the least VMEM that a kernel takes, without the compiler: blocks, buffers, scratch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from pallas_shim.jax_compat import pallas
from pallas_shim.refusal import Refusal

_LANES, _SUBLANES = 128, 8


class Held(NamedTuple):
    """One of the kernel's blocks or scratch buffers: its bytes in all its buffers."""

    what: str
    size: int
    is_block: bool


def vmem(eqn: Any) -> tuple[Held, ...] | None:
    """The blocks and scratch that a pallas_call holds in VMEM, the largest first.

    None: the equation isn't a pallas_call with known blocks.
    """
    if eqn.primitive.name != "pallas_call":
        return None
    try:
        call = pallas.pallas_call(eqn)
    except Refusal:
        return None
    # The axes of the grid along which there is more than one cell.
    axes = [axis for axis, size in enumerate(call.grid) if size != 1]
    held = []
    refs = list(call.jaxpr.invars)[call.num_prefetch :]
    for block, buffers, ref in zip(
        call.blocks, pallas.buffers(eqn), refs[: len(call.blocks)], strict=True
    ):
        if not block.in_hbm and pallas.memory(ref.aval) in ("vmem", None):
            shape = [dim.size for dim in block.dims if dim.kind != "squeezed"]
            # The compiler keeps a block that stays in one buffer.
            count = buffers if _moves(block.index_map, axes) else 1
            held.append(Held(block.origin, count * padded(shape, block.array_aval.dtype), True))
    for ref in refs[len(call.blocks) :]:
        if pallas.memory(ref.aval) == "vmem":
            held.append(Held("scratch", padded(ref.aval.shape, ref.aval.dtype), False))
    return tuple(sorted(held, key=lambda each: -each.size))


def _moves(index_map: Any, axes: Sequence[int]) -> bool:
    """Whether a block's place depends on the cell's index along one of these axes of the grid."""
    jaxpr = index_map.jaxpr
    moving = {jaxpr.invars[axis] for axis in axes}
    for eqn in jaxpr.eqns:
        if any(not hasattr(v, "val") and v in moving for v in eqn.invars):
            moving.update(eqn.outvars)
    return any(not hasattr(v, "val") and v in moving for v in jaxpr.outvars)


def padded(shape: Sequence[int], dtype: Any) -> int:
    """The bytes of an array in whole tiles.

    A tile has 128 lanes and as many sublanes as the next power of 2, up to 8, times the number of
    elements that share 32 bits.
    """
    bits = _bits(dtype)
    packing = max(32 // bits, 1)
    rows, columns = (1, 1, *shape)[-2:]
    if len(shape) < 2:
        return -(-columns // (packing * _LANES)) * packing * _LANES * bits // 8
    tile = packing
    while tile < min(rows, _SUBLANES * packing):
        tile *= 2
    rows, columns = -(-rows // tile) * tile, -(-columns // _LANES) * _LANES
    return math.prod(shape[:-2]) * rows * columns * bits // 8


def _bits(dtype: Any) -> int:
    name = getattr(dtype, "name", str(dtype))
    if name == "bool":
        return 32  # a mask in memory is a word
    if name.endswith("int4") or name.startswith("float4"):
        return 4
    if name.endswith("int2"):
        return 2
    return int(dtype.itemsize) * 8
