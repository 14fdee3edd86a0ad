"""The buffers of a kernel's operands, results and scratch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.program import Array, Effects, RefType, Value
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.jax_compat import InterpretOptions
from pallas_shim.jax_compat.pallas import Block, BlockDim, PallasCall


def array_shapes(lowering: Lowering, call: PallasCall) -> list[tuple[int, ...]]:
    """The shapes of the arrays of a call's blocks."""
    return [array_shape(lowering, block) for block in call.blocks]


def array_shape(lowering: Lowering, block: Block) -> tuple[int, ...]:
    return lowering.type(block.array_aval).shape


def buffer_shape(lowering: Lowering, block: Block) -> tuple[int, ...]:
    """The shape of a block's buffer: the array's, with element padding, in whole blocks."""
    shape, dims = array_shape(lowering, block), block.dims
    padded = tuple(
        -(-(size + sum(dim.padding)) // dim.size) * dim.size if dim.size else size
        for size, dim in zip(shape, dims, strict=False)
    )
    return padded + tuple(shape[len(dims) :])  # a PRNG key's own dimensions are never cut


def _inner(shape: Sequence[int], dims: Sequence[BlockDim]) -> tuple[slice, ...]:
    """The place of the array in its padded buffer."""
    return tuple(
        slice(dim.padding[0], dim.padding[0] + size)
        for size, dim in zip(shape, dims, strict=False)
    )


def share_aliased(call: PallasCall, buffers: list[Value]) -> None:
    """Gives an output the buffer of the input that it shares its array with, where the two are
    one memory."""
    for position, out in call.aliases:
        if position < call.num_prefetch:
            continue
        given, result = position - call.num_prefetch, call.num_inputs + out
        in_hbm = call.blocks[given].in_hbm and call.blocks[result].in_hbm
        waits = call.cores is not None and call.cores.waits_for_others
        if call.checked is None and not (call.for_device and in_hbm) and not waits:
            continue
        if buffers[given].type.shape != buffers[result].type.shape:
            raise Unsupported(
                "pallas_call", "an input and an output that share an array, padded differently"
            )
        buffers[result] = buffers[given]


def allocate(lowering: Lowering, ref: Value, checked: InterpretOptions | None) -> None:
    """Emits the definition of a ref to new memory, which other instructions use already."""
    lowering.define("buffer", ref, (), _filled(ref.ref, checked), Effects(allocates=True))


def _filled(type: RefType, checked: InterpretOptions | None) -> Callable[[], np.ndarray]:
    shape, dtype = type.shape, type.dtype
    fill = memory.initial(type.space, dtype, checked)
    return lambda: np.full(shape, fill, dtype)


def define_operand(
    lowering: Lowering,
    ref: Value,
    array: Value,
    dims: Sequence[BlockDim] | None,
    written: bool,
    checked: InterpretOptions | None = None,
) -> None:
    """The buffer of an operand: the array's own memory, unless it is padded or written to."""
    shape, dtype = ref.type.shape, ref.type.dtype
    if shape != array.type.shape:
        inner, fill = _inner(array.type.shape, dims or ()), memory.filler(dtype, checked)

        def padded(x: Array) -> Array:
            buffer = np.full(shape, fill, dtype)
            buffer[inner] = x
            return buffer

        fn: Callable[[Array], Array] = padded
    elif written:

        def copied(x: Array) -> Array:
            return np.array(x, dtype, order="C")

        fn = copied
    else:
        # Rank-0 values may be NumPy scalars, which have no memory to view.
        fn = memory.same if shape else np.asarray
    lowering.define("buffer", ref, (array,), fn, Effects(allocates=True))


def contents(lowering: Lowering, ref: Value, block: Block, shape: tuple[int, ...]) -> Value:
    """The array in an output's buffer. Nothing writes to it afterwards."""
    inner = _inner(shape, block.dims)
    view = memory.same if shape == ref.ref.shape else lambda buffer: buffer[inner]
    out = ref.ref.contents._replace(shape=shape)
    (value,) = lowering.memory(
        "contents", [ref], [out], view, Effects(reads=(0,)), view=True
    )
    return value
