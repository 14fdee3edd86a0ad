"""Compares the results of two ways to run a kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def difference(
    got: Sequence[np.ndarray], want: Sequence[np.ndarray], rtol: float
) -> str | None:
    """The difference between two lists of results, in words. None if there is none.

    Integers must be equal. Floats may differ by ``rtol`` times the largest magnitude.
    """
    if len(got) != len(want):
        return f"{len(got)} results instead of {len(want)}"
    for position, (a, b) in enumerate(zip(got, want, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"result {position} is {a.dtype}{a.shape} instead of {b.dtype}{b.shape}"
        if a.dtype.kind != "f":
            wrong = a != b
        else:
            room = rtol * np.max(np.abs(b), initial=0, where=np.isfinite(b))
            wrong = ~np.isclose(a, b, rtol=0, atol=room, equal_nan=True)
        if wrong.any():
            at = tuple(map(int, np.argwhere(wrong)[0]))
            return (
                f"result {position} differs in {wrong.sum()} of {wrong.size} values,"
                f" first at {at}: {a[at]!r} instead of {b[at]!r}"
            )
    return None
