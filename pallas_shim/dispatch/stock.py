"""Calls that JAX runs, and why. The kernels that it compiles meanwhile need to know the reason."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax

from pallas_shim.jax_compat import kernel_info
from pallas_shim.reports.uses import REPORT, Use

R = TypeVar("R")

_left_to_jax: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "pallas_shim_left_to_jax", default=False
)


@contextlib.contextmanager
def left_to_jax() -> Iterator[None]:
    """A context in which JAX compiles functions as if the shim weren't installed.

    On a CPU, JAX's interpreter then runs their kernels.
    """
    token = _left_to_jax.set(True)
    try:
        yield
    finally:
        _left_to_jax.reset(token)


is_left_to_jax = _left_to_jax.get


def print_debug(eqn: Any) -> None:
    """Prints what JAX prints when it lowers a kernel with ``debug=True``."""
    text = kernel_info.debug_text(eqn)
    if text is not None:
        print(text)


@dataclasses.dataclass(frozen=True, slots=True)
class Compilation:
    """Why JAX runs the function that it is compiling, and the kernels that it interprets."""

    reason: str
    jax_uses: list[Use]


_compilation: contextvars.ContextVar[Compilation | None] = contextvars.ContextVar(
    "pallas_shim_compilation", default=None
)

compilation = _compilation.get


def _compiling(compilation: Compilation, call: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """Calls JAX with ``compilation`` as the current one, and returns the result.

    This is no context manager, and it restores the outer one twice. `as_xla` gives the reasons.
    """
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
    """Lets JAX run a call, and returns the result of ``stock``."""
    start = time.perf_counter()
    try:
        returned = _compiling(compilation, stock, *args, **params)
    except BaseException as error:
        for use in compilation.jax_uses:
            use.ran(time.perf_counter() - start, error)
        raise
    if not REPORT.wanted or not compilation.jax_uses:
        return returned
    # Without an entry in jit's C++ cache, the next call comes here, too, and is counted.
    out, _, profiler, consts = returned
    jax.block_until_ready(out)
    for use in compilation.jax_uses:
        use.ran(time.perf_counter() - start)
    return out, None, profiler, consts
