"""What the tests of rules compare with: JAX itself.

`check_rule` runs a function both ways, through the evaluator and through ``jax.jit``, and
`compare` says whether two arrays are equal in the sense of docs/how-it-works.md, "What results
mean".
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.experimental import pallas as pl

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.floating import as_xla
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.verify import verify


def as_xla_computes(test: Callable[..., None]) -> Callable[..., None]:
    """The test, run in the floating-point environment that programs run in."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        as_xla(lambda: test(*args, **kwargs))

    return run


def check_rule(
    f: Callable[..., Any],
    *args: Any,
    ulp: int = 0,
    rtol: float | None = None,
    exact: Callable[..., np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Asserts that the evaluator and ``jax.jit`` agree on ``f(*args)``; returns the evaluator's.

    Args:
      f: a function of arrays, of plain jax.lax or jnp calls. Its result is a pytree of arrays.
      args: arrays. If one is 64 bits wide, 64-bit types are enabled for both ways.
      ulp, rtol: as in `compare`.
      exact: the same function in NumPy, to more digits, for where JAX's result is inaccurate.
    """
    args = tuple(map(np.asarray, args))
    config: Any = jax.config  # has its options as attributes, which its type does not say
    with x64(config.jax_enable_x64 or any(a.dtype in _WIDE for a in args)):
        program = lower(jax.make_jaxpr(f)(*args), name="check_rule")
        want = [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(f)(*args))]
    truth = None if exact is None else exact(*args)
    verify(program)
    executable = Executable(program)
    got = [np.asarray(result) for result in executable(*map(_read_only, args))]
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        compare(a, b, ulp, rtol, truth)
    # The layout of an operand is not part of its value.
    for a, b in zip(executable(*map(_strided, args)), got, strict=True):
        compare(np.asarray(a), b, ulp, rtol)
    return got


def check_kernel(
    kernel: Callable[..., None], out: Any, *args: Any, interpret: bool = False, **kwargs: Any
) -> None:
    """Asserts that the evaluator and JAX's interpreter agree on a Pallas kernel.

    Args:
      kernel: the kernel function. out: pallas_call's out_shape.
      interpret: what the evaluator's kernel asks for.
      args: its operands; kwargs: what else pallas_call takes.
    """

    def call(interpret: bool) -> Callable[..., Any]:
        return pl.pallas_call(kernel, out_shape=out, interpret=interpret, **kwargs)

    want = jax.tree.leaves(jax.jit(call(True))(*args))
    program = lower(jax.make_jaxpr(call(interpret))(*args))
    verify(program)
    got = Executable(program)(*map(np.asarray, args))
    for a, b in zip(got, want, strict=True):
        compare(a, np.asarray(b))


def compare(
    got: np.ndarray,
    want: np.ndarray,
    ulp: int = 0,
    rtol: float | None = None,
    exact: np.ndarray | None = None,
) -> None:
    """Asserts that ``got`` is what ``want`` is.

    Shapes and dtypes are equal. Integers and booleans are equal bit for bit. Floats have
    the same NaNs, infinities and signs of zero, and the rest is equal, or within ``ulp``
    units in the last place, or within ``rtol`` relative to the larger magnitude (complex
    numbers: relative to the absolute value, not each part to itself). A finite value that
    isn't near ``want`` may be that near to ``exact`` instead.

    Subnormal values are taken for zeros where XLA does: it flushes them in most operations,
    but passes some on, depending on which instructions it chose.
    """
    assert got.dtype == want.dtype, f"dtype {got.dtype}, expected {want.dtype}"
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    if got.dtype.kind == "c" and rtol is not None:
        near = np.abs(got - want) <= rtol * np.abs(want)
        assert near.all(), f"{(~near).sum()} of {got.size} values of {got.dtype.name} differ"
        return
    if got.dtype.kind == "c":
        compare(got.real, want.real, ulp, rtol)
        compare(got.imag, want.imag, ulp, rtol)
        return
    if not is_float(got.dtype):
        wrong = got != want
    else:
        wrong = ~_close(flushed(got), flushed(want), ulp, rtol)
        if exact is not None:
            with np.errstate(all="ignore"):
                truth = flushed(exact.astype(got.dtype))
            finite = np.isfinite(got) & np.isfinite(want)
            wrong &= ~(finite & _close(flushed(got), truth, ulp, rtol))
    if wrong.any():
        at = np.argwhere(wrong)
        shown = [
            f"  at {tuple(map(int, i))}: {got[tuple(i)]!r}, expected {want[tuple(i)]!r}"
            for i in at[:10]
        ]
        raise AssertionError(
            f"{len(at)} of {got.size} values of {got.dtype.name} differ:\n" + "\n".join(shown)
        )


def x64(enabled: bool) -> contextlib.AbstractContextManager:
    """64-bit types enabled, or not, inside the with-statement."""
    return jax.enable_x64(enabled)


def is_float(dtype: np.dtype) -> bool:
    """True for real floating-point dtypes, ml_dtypes' included."""
    if dtype.kind == "f":
        return True
    with contextlib.suppress(ValueError):
        ml_dtypes.finfo(dtype)
        return dtype.kind != "c"
    return False


def flushed(array: np.ndarray) -> np.ndarray:
    """Subnormal values replaced by zeros of their sign, in the dtypes in which XLA does so."""
    if array.dtype not in _FLUSHED:
        return array
    with np.errstate(invalid="ignore"):  # ml_dtypes' comparisons warn of NaN
        tiny = np.abs(array) < ml_dtypes.finfo(array.dtype).tiny
    return np.where(tiny, np.copysign(array.dtype.type(0), array), array)


def ulps(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """How many representable values apart two arrays of a float dtype are, elementwise."""
    signed = np.dtype(f"i{got.dtype.itemsize}")
    a, b = (np.ascontiguousarray(x).view(signed) for x in (got, want))
    lowest = np.iinfo(signed).min

    def ordered(bits: np.ndarray) -> np.ndarray:
        return np.where(bits < 0, lowest - bits, bits)

    a, b = ordered(a), ordered(b)
    return np.maximum(a, b).astype("u8") - np.minimum(a, b).astype("u8")


def _close(got: np.ndarray, want: np.ndarray, ulp: int, rtol: float | None) -> np.ndarray:
    nan_got, nan_want = np.isnan(got), np.isnan(want)
    special = nan_want | np.isinf(want) | np.isinf(got) | (want == 0) | (got == 0)
    same = np.where(nan_want | nan_got, nan_got & nan_want, got == want)
    same &= nan_want | (got != 0) | (np.signbit(got) == np.signbit(want))
    near = np.zeros(got.shape, bool)
    if ulp:
        near |= ulps(got, want) <= ulp
    if rtol is not None:
        a, b = got.astype(np.float64), want.astype(np.float64)
        near |= np.abs(a - b) <= rtol * np.maximum(np.abs(a), np.abs(b))
    return np.where(special, same, same | near)


_FLUSHED = tuple(map(np.dtype, (np.float32, np.float64, ml_dtypes.bfloat16)))
_WIDE = tuple(map(np.dtype, ("i8", "u8", "f8", "c16")))


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def _strided(array: np.ndarray) -> np.ndarray:
    """The same values, not contiguous."""
    if array.ndim == 0:
        return _read_only(array)
    room = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    view = room[..., ::2]
    view[...] = array
    return _read_only(view)
