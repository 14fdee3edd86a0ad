"""Pallas TPU: products and convolutions of the matrix unit. The unit's registers are memory here.

Each unit has registers for right-hand sides (staged ones, and the loaded one) and accumulators. An
accumulator starts at zero, and a pop resets it to zero. Some versions of JAX name an accumulator by
its address instead of by a ref. Then each address has its own memory, so a kernel has to pop whole
sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator import memory, refs, scalar_types
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.program import ArrayType, RefType, Value, array_type
from pallas_shim.evaluator.registry import Unsupported, lowering_rule
from pallas_shim.jax_compat import state


def _register(lowering: Lowering, primitive: str, key: Any, type: RefType | None = None) -> Value:
    """A register of the kernel. Without ``type``, an earlier equation must have made it."""
    if not lowering.kernels:
        raise Unsupported(primitive, "used outside a kernel")
    if type is None:
        known = lowering.kernels[-1].shared.get(key)
        if known is None:
            raise Unsupported(primitive, "nothing was written to its register before")
        return known
    ref = lowering.shared(key, type, primitive)
    if ref.type != type:
        raise Unsupported(primitive, f"its register holds {ref.ref.contents} elsewhere")
    return ref


def _whole(lowering: Lowering, ref: Value) -> Value:
    return refs.load(lowering, ref, (), (), ref.ref.contents)


@lowering_rule("matmul_push_rhs")
def _push_rhs(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    (rhs,), p = ins, eqn.params
    if p["transpose"]:
        turned = ArrayType(rhs.type.shape[::-1], rhs.type.dtype)
        (rhs,) = lowering.apply("transpose", [rhs], [turned], {"permutation": (1, 0)})
    key = ("mxu staged", p["mxu_index"], p["staging_register"])
    type = RefType(rhs.type.shape, rhs.type.dtype, "mxu")
    ref = _register(lowering, "matmul_push_rhs", key, type)
    refs.store(lowering, ref, (), (), rhs)
    return []


def _loaded_rhs(lowering: Lowering, unit: int, staged: int | None) -> Value:
    """The right-hand side that a unit has loaded. If ``staged`` is given, the unit loads that
    register first."""
    primitive, key = "matmul_acc_lhs", ("mxu loaded", unit)
    if staged is None:
        return _whole(lowering, _register(lowering, primitive, key))
    source = _register(lowering, primitive, ("mxu staged", unit, staged))
    rhs = _whole(lowering, source)
    refs.store(lowering, _register(lowering, primitive, key, source.ref), (), (), rhs)
    return rhs


def _product(lowering: Lowering, lhs: Value, rhs: Value, dtype: np.dtype) -> Value:
    type = ArrayType((lhs.type.shape[0], rhs.type.shape[1]), dtype)
    params = {"dimension_numbers": (((1,), (0,)), ((), ())), "preferred_element_type": dtype}
    return lowering.apply("dot_general", [lhs, rhs], [type], params)[0]


@lowering_rule("matmul_acc_lhs")
def _acc_lhs(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    p, acc = eqn.params, state.accumulator(eqn, ins)
    if acc.view is None:
        rhs = _loaded_rhs(lowering, p["mxu_index"], p["load_staged_rhs"])
        whole = scalar_types.is_integer(acc.lhs.type.dtype)
        product = _product(lowering, acc.lhs, rhs, np.dtype(np.int32 if whole else np.float32))
    else:
        rhs = _loaded_rhs(lowering, _unit(acc.view.ref), p["load_staged_rhs"])
        product = _product(lowering, acc.lhs, rhs, acc.view.ref.type.dtype)
    type = ArrayType(product.type.shape, product.type.dtype)
    ref, path, leaves = _sums(lowering, "matmul_acc_lhs", acc, type)
    before = refs.load(lowering, ref, path, leaves, type)
    (total,) = lowering.apply("add", [before, product], [type], {})
    refs.store(lowering, ref, path, leaves, total)
    return []


@lowering_rule("matmul_pop")
def _pop(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    out = array_type(lowering.type(eqn.outvars[0].aval))
    ref, path, leaves = _sums(lowering, "matmul_pop", state.accumulator(eqn, ins), out)
    value = refs.load(lowering, ref, path, leaves, out)
    zeros = lowering.const(np.zeros(out.shape, out.dtype))
    refs.store(lowering, ref, path, leaves, zeros)
    return [value]


def _sums(
    lowering: Lowering, primitive: str, acc: state.Accumulator, type: ArrayType
) -> tuple[Value, memory.Path, Sequence[Value]]:
    """The ref, path and leaves of an accumulator."""
    if acc.view is not None:
        return acc.view.ref, *refs.path_of(acc.view)
    ref_type = RefType(type.shape, type.dtype, "accumulator")
    return _register(lowering, primitive, ("mxu sums", acc.address), ref_type), (), ()


def _unit(ref: Value) -> int:
    """The number of the matrix unit that an accumulator belongs to, read from its memory space."""
    return int(ref.ref.space.partition("=")[2].rstrip(")"))


@lowering_rule("conv")
def _conv(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    lhs, rhs, *acc = ins
    out, p = lowering.type(eqn.outvars[0].aval), dict(eqn.params)
    reversals = p.pop("window_reversal") or ()
    spatial = p["dimension_numbers"].rhs_spec[2:]
    flipped = tuple(d for d, flip in zip(spatial, reversals, strict=False) if flip)
    if flipped:
        (rhs,) = lowering.apply("rev", [rhs], [rhs.type], {"dimensions": flipped})
    (result,) = lowering.apply("conv_general_dilated", [lhs, rhs], [out], p)
    if acc:
        (result,) = lowering.apply("add", [result, *acc], [out], {})
    return [result]


@lowering_rule("has_memory_space")
def _has_memory_space(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    """An array without a memory space is in HBM, since all arrays of a program start there."""
    space = getattr(eqn.params["memory_space"], "value", eqn.params["memory_space"])
    return [lowering.const(np.bool_(str(space).lower() == "hbm"))]
