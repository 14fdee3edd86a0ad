"""Pallas TPU: products and convolutions by the matrix unit, whose registers are memory here.

Each unit has registers for right-hand sides (staged ones, and the one that is loaded) and
accumulators, which start at zero and are zero again when they are popped. JAX before 0.12 names
an accumulator by its address: slices at two addresses are taken for two memories, so what was
summed up has to be popped whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator import memory, refs, scalar_types
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.program import ArrayType, RefType, Type, Value, array_type
from pallas_shim.evaluator.registry import Unsupported, lowering_rule
from pallas_shim.jax_compat import state

# The path to all that a register holds, and its leaves.
_WHOLE: memory.Path = ()
_NONE: Sequence[Value] = ()


def _register(lowering: Lowering, primitive: str, key: Any, type: RefType | None = None) -> Value:
    """A register of the kernel; without a type, one that an earlier equation wrote to."""
    if not lowering.kernels:
        raise Unsupported(primitive, "used outside a kernel")
    if type is None:
        known = lowering.kernels[-1].shared.get(key)
        if known is None:
            raise Unsupported(primitive, "of a register that nothing was written to before")
        return known
    ref = lowering.shared(key, type, primitive)
    if ref.type != type:
        raise Unsupported(primitive, f"of a register that holds {ref.ref.contents} elsewhere")
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
    """The right-hand side in a unit, after the staged one, if any, has been loaded."""
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
    p = eqn.params
    if "acc_addr" in p:
        (lhs,), unit = ins, p["mxu_index"]
        rhs = _loaded_rhs(lowering, unit, p["load_staged_rhs"])
        whole = scalar_types.is_integer(lhs.type.dtype)
        product = _product(lowering, lhs, rhs, np.dtype(np.int32 if whole else np.float32))
        ref, path, leaves = _sums(lowering, "matmul_acc_lhs", p, product.type), _WHOLE, _NONE
    else:
        ref, path, leaves, lhs = _accumulator(lowering, eqn, ins)
        rhs = _loaded_rhs(lowering, _unit(ref), p["load_staged_rhs"])
        product = _product(lowering, lhs, rhs, ref.type.dtype)
    type = ArrayType(product.type.shape, product.type.dtype)
    before = refs.load(lowering, ref, path, leaves, type)
    (total,) = lowering.apply("add", [before, product], [type], {})
    refs.store(lowering, ref, path, leaves, total)
    return []


@lowering_rule("matmul_pop")
def _pop(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    out, p = array_type(lowering.type(eqn.outvars[0].aval)), eqn.params
    if "acc_addr" in p:
        ref, path, leaves = _sums(lowering, "matmul_pop", p, out), _WHOLE, _NONE
    else:
        ref, path, leaves, _ = _accumulator(lowering, eqn, ins)
    value = refs.load(lowering, ref, path, leaves, out)
    zeros = lowering.const(np.zeros(out.shape, out.dtype))
    refs.store(lowering, ref, path, leaves, zeros)
    return [value]


def _sums(lowering: Lowering, primitive: str, params: Mapping[str, Any], type: Type) -> Value:
    """The accumulator at an address."""
    key = ("mxu sums", params["mxu_index"], params["acc_addr"])
    return _register(lowering, primitive, key, RefType(type.shape, type.dtype, "accumulator"))


def _accumulator(
    lowering: Lowering, eqn: Any, ins: Sequence[Value]
) -> tuple[Value, memory.Path, Sequence[Value], Any]:
    view, lhs = state.accumulator(eqn, ins)
    path, leaves = refs.path_of(view)
    return view.ref, path, leaves, lhs


def _unit(ref: Value) -> int:
    """The matrix unit that an accumulator belongs to, which its memory space tells."""
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
    """An array that may be anywhere is in HBM, where all arrays of a program begin."""
    space = getattr(eqn.params["memory_space"], "value", eqn.params["memory_space"])
    return [lowering.const(np.bool_(str(space).lower() == "hbm"))]
