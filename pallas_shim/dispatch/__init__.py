"""Decides how one call runs, and remembers why.

A jitted function that holds a kernel runs on one of three rungs. On `numpy`, the evaluator runs the
whole function. On `callback`, XLA runs the function and calls back for its kernels. On `jax`, JAX's
interpreter runs the kernels. A function's plan is made at its first call and kept with its jaxpr.

JAX enters at two places: `calls`, where a jitted function is called, and `callback`, where XLA
compiles a kernel. Both describe what they got (`function`) and have it compiled (`compiling`).
"""

from pallas_shim.dispatch.callback import choose_kernel
from pallas_shim.dispatch.calls import Answers, call_jit
from pallas_shim.dispatch.fallback import FallbackWarning, StrictError
from pallas_shim.dispatch.function import Function
from pallas_shim.dispatch.observing import Observer, observe
from pallas_shim.dispatch.stock import left_to_jax
from pallas_shim.dispatch.tracing import note_tracing, tell_of_breakpoints

__all__ = [
    "Answers", "FallbackWarning", "Function", "Observer", "StrictError", "call_jit",
    "choose_kernel", "left_to_jax", "note_tracing", "observe",
    "tell_of_breakpoints",
]  # fmt: skip
