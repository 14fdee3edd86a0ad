"""The place where jit asks Python how to run a call, and the way to make it ask again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax._src import pjit

from pallas_shim.jax_compat.kernel_info import kernel_equations

# Runs a jitted function on the path that jit's C++ cache doesn't serve, whether the user calls it
# or the evaluation of an outer jaxpr.
JIT_CALL = (pjit, "_pjit_call_impl_python")


def run(args: Sequence[Any], params: dict[str, Any]) -> Any:
    """Runs a call of a jitted function as jit does, and returns the results."""
    module, name = JIT_CALL
    return getattr(module, name)(*args, **params)[0]


def forget_calls() -> None:
    """Makes every jitted function ask Python again at its next call.

    If JAX compiled a function that holds a kernel, everything that JAX compiled is dropped: that
    program would run the kernel as it was decided before.
    """
    for key in pjit._pjit_lower.cache_keys():
        jaxpr = key[0]()
        if jaxpr is not None and kernel_equations(jaxpr):
            jax.clear_caches()
            return
    type(pjit._cpp_pjit_cache_fun_only).clear_all()
