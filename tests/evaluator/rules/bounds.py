"""For sums, whose terms may be added in any order: comparison within a bound made of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from tests import oracle


def both(f: Callable[..., Any], *args: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The results of ``f(*args)``, the evaluator's and ``jax.jit``'s, of equal types."""
    args = tuple(map(np.asarray, args))
    with oracle.x64(any(a.dtype in (np.float64, np.complex128, np.int64) for a in args)):
        program = lower(jax.make_jaxpr(f)(*args), name="both")
        want = [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(f)(*args))]
    got = [np.asarray(result) for result in Executable(program)(*args)]
    for ours, theirs in zip(got, want, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    return got, want


def check_sums(
    f: Callable[..., Any], *args: np.ndarray, terms: int, partial: Any = None
) -> list[np.ndarray]:
    """Asserts that the results of ``f(*args)`` are right, each a sum of up to ``terms`` products.

    The evaluator's are compared with the same sums in float64: they may differ by the
    rounding of ``terms`` additions and multiplications in float32 (float64 for 64-bit data),
    which is relative to the sums of the terms' absolute values, and by one rounding to their
    dtype. They are compared with JAX's too, which may also round each partial sum to
    ``partial``, or the result's dtype.

    Args:
      f: a function of arrays that computes sums of products of their elements; its results
        are a pytree, their dtypes those of the arguments where these are float64.
      args: arrays.
      terms: how many terms are added at most.
      partial: the dtype of JAX's partial sums.
    """
    args = tuple(map(np.asarray, args))
    wide = [a.astype(np.complex128 if a.dtype.kind == "c" else np.float64) for a in args]
    with oracle.x64(True):
        program = lower(jax.make_jaxpr(f)(*args), name="check_sums")
        all_three = jax.jit(lambda *groups: [jax.tree.leaves(f(*group)) for group in groups])(
            args, wide, list(map(np.abs, wide))
        )
    got = [np.asarray(result) for result in Executable(program)(*args)]
    want, exact, sizes = ([np.asarray(x) for x in leaves] for leaves in all_three)
    for ours, theirs, true, size in zip(got, want, exact, sizes, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        eps = _eps(np.float64 if _real(ours.dtype) == np.float64 else np.float32)
        # A complex product is two real ones for each part.
        roundings = 2 * (terms + 1)
        bound = roundings * eps * size.real + _eps(ours.dtype) * np.abs(true)
        _within(ours, true, bound, "the exact sum")
        bound = bound + roundings * _eps(partial or ours.dtype) * size.real
        _within(ours, theirs, bound, "JAX's")
    return got


def _within(got: np.ndarray, want: np.ndarray, bound: np.ndarray, name: str) -> None:
    exact = np.complex128 if got.dtype.kind == "c" else np.float64
    smallest = float(ml_dtypes.finfo(_real(got.dtype)).smallest_normal)
    wrong = ~(np.abs(got.astype(exact) - want.astype(exact)) <= bound + smallest)
    assert not wrong.any(), (
        f"{wrong.sum()} of {got.size} differ from {name}: {got[wrong][:5]}, "
        f"expected {want[wrong][:5]} within {np.broadcast_to(bound, got.shape)[wrong][:5]}"
    )


def _real(dtype: np.dtype) -> np.dtype:
    return np.zeros((), dtype).real.dtype if dtype.kind == "c" else dtype


def _eps(dtype: Any) -> float:
    return float(ml_dtypes.finfo(_real(np.dtype(dtype))).eps)
