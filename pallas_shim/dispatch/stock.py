"""What is left to JAX: calls that it runs, and why, for the kernels that it compiles meanwhile."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax

from pallas_shim import settings
from pallas_shim.report import Use

R = TypeVar("R")

_left_to_jax: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "pallas_shim_left_to_jax", default=False
)


@contextlib.contextmanager
def left_to_jax() -> Iterator[None]:
    """Inside, functions that are compiled now run as if the shim weren't there: on a CPU, their
    kernels in JAX's interpreter."""
    token = _left_to_jax.set(True)
    try:
        yield
    finally:
        _left_to_jax.reset(token)


is_left_to_jax = _left_to_jax.get


@dataclasses.dataclass(frozen=True, slots=True)
class Compilation:
    """Why JAX runs the function that it may be compiling, and which kernels it interprets."""

    reason: str
    jax_uses: list[Use]


_compilation: contextvars.ContextVar[Compilation | None] = contextvars.ContextVar(
    "pallas_shim_compilation", default=None
)

compilation = _compilation.get


def _compiling(compilation: Compilation, call: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """What a call gives, during which that is what JAX compiles. No context manager, and restored
    twice, for the reasons that `as_xla` gives."""
    outer = _compilation.get()
    try:
        try:
            _compilation.set(compilation)
            return call(*args, **kwargs)
        finally:
            _compilation.set(outer)
    finally:
        _compilation.set(outer)


def call_stock(
    stock: Callable[..., Any],
    args: Sequence[Any],
    params: dict[str, Any],
    compilation: Compilation,
) -> Any:
    """Has JAX run a call; returns what ``stock`` does."""
    start = time.perf_counter()
    returned = _compiling(compilation, stock, *args, **params)
    if settings.current().report is None or not compilation.jax_uses:
        return returned
    # To count the calls, keep jit's C++ cache from serving the next one.
    out, _, profiler, consts = returned
    jax.block_until_ready(out)
    for use in compilation.jax_uses:
        use.ran(time.perf_counter() - start)
    return out, None, profiler, consts
