"""Under jax_debug_nans and jax_debug_infs: where a kernel makes the first NaN or infinity.

JAX finds the place by running the function again, one primitive at a time. A kernel is one
primitive, and running it again is what JAX does for ever. So here it is run again, one instruction
at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NoReturn

import numpy as np

from pallas_shim import jax_compat, settings
from pallas_shim.dispatch import fallback, function
from pallas_shim.dispatch.plan import Plan, read
from pallas_shim.evaluator import compiler
from pallas_shim.evaluator.program import ArrayType, Instruction
from pallas_shim.evaluator.scalar_types import is_float
from pallas_shim.evaluator.watching import Watch
from pallas_shim.jax_compat import call_info


def raise_for_kernel(
    plan: Plan, params: dict[str, Any], args: Sequence[Any], kind: str
) -> NoReturn:
    """Raises a FloatingPointError for a call that is one kernel, and returned such a value.

    Args:
      kind: "nan" or "inf".
    """
    described = function.of_call(params["jaxpr"], call_info.describe_call(params))
    error = FloatingPointError(f"invalid value ({kind}) encountered in a Pallas kernel")
    try:
        values, _ = read(args, plan)
        for made_only in (True, False):
            seeker = _Seeker(kind, made_only)
            run = compiler.compile_watched(
                described.jaxpr, seeker, name=described.name, axes=described.axes,
                tpu_cores=settings.current().tpu_cores,
            )  # fmt: skip
            run(*values)
    except FloatingPointError as found:
        error = found
    if plan.use is not None:
        fallback.blame(error, plan.use)
    raise error.with_traceback(None) from None


class _Seeker(Watch):
    """Raises an error at the first instruction with such a value. With ``made_only``, it has to
    have made it: a mask may throw away what a load brings in."""

    enters = False

    def __init__(self, kind: str, made_only: bool):
        self._kind = kind
        self._made_only = made_only

    def wants(self, instruction: Instruction) -> Collection[str]:
        return ("after",) if any(map(_is_inexact, instruction.outs)) else ()

    def after(
        self,
        instruction: Instruction,
        program: int,
        ins: Sequence[np.ndarray],
        outs: Sequence[np.ndarray],
    ) -> None:
        if not any(map(self._has, outs)) or (self._made_only and any(map(self._has, ins))):
            return
        where = jax_compat.user_source(instruction.source)
        at = f" at {where}" if where else ""
        error = FloatingPointError(
            f"invalid value ({self._kind}) encountered in {instruction.name}{at}"
        )
        error._pallas_shim_blamed = True  # type: ignore[attr-defined]  # not the probe's
        raise error

    def _has(self, value: np.ndarray) -> bool:
        value = np.asarray(value)
        if value.dtype.kind != "c" and not is_float(value.dtype):
            return False
        with np.errstate(all="ignore"):
            return bool((np.isnan if self._kind == "nan" else np.isinf)(value).any())


def _is_inexact(value: Any) -> bool:
    type = value.type
    return isinstance(type, ArrayType) and (type.dtype.kind == "c" or is_float(type.dtype))
