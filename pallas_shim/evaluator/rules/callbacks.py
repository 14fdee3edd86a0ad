"""Callbacks to the host: printing, and the user's Python functions.

They run where the program runs, in order, and get JAX's arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator import refs
from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.program import Array, Effects, RefType, Value
from pallas_shim.evaluator.registry import lowering_rule
from pallas_shim.jax_compat import callbacks


@lowering_rule(*callbacks.CALLBACK_PRIMITIVES)
def _callback(lowering: Lowering, eqn: Any, ins: Sequence[Value]) -> Sequence[Value]:
    host = callbacks.host_function(eqn)
    types = [lowering.type(v.aval) for v in eqn.outvars]
    if not types and lowering.checker is not None and lowering.checker.asked.disturbing:
        return []  # the user has seen what the first run printed
    values = [
        refs.load(lowering, v, (), (), v.ref.contents)
        if isinstance(v.type, RefType)
        else v
        for v in ins
    ]

    def call(*arrays: Array) -> Array:
        # The user's function may keep or change its arguments, so it gets copies.
        results = host(*(np.array(a) for a in arrays))
        outs = [np.asarray(r, t.dtype) for r, t in zip(results or (), types, strict=True)]
        for array, type in zip(outs, types, strict=True):
            if array.shape != type.shape:
                raise ValueError(
                    f"the callback returned an array of shape {array.shape}, "
                    f"where its result_shape_dtypes says {type.shape}"
                )
        return outs if len(types) != 1 else outs[0]

    # A pure_callback has the effect too. Otherwise it could run at lowering, or outside a loop
    # that never runs, and the user would notice.
    return lowering.memory(eqn.primitive.name, values, types, call, Effects(io=True))
