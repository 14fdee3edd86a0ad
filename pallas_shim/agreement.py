"""When two results of the same computation agree."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

# The tolerance in units of the last place of the largest element: for sums in another order, and
# for types that are computed in float32 and then rounded.
_ROUNDING, _NARROW_ROUNDING = 512, 4


def agree(got: Any, want: Any) -> bool:
    """Whether arrays are the same.

    Integers and booleans are equal bit for bit. Floats have the same NaNs and infinities, and
    otherwise differ by no more than the rounding of sums, relative to the largest element.
    """
    got, want = np.asarray(got), np.asarray(want)
    if (got.shape, got.dtype) != (want.shape, want.dtype):
        return False
    epsilon = _epsilon(got.dtype)
    if epsilon is None or not got.size:
        return bool(np.array_equal(got, want))
    wide = np.complex128 if got.dtype.kind == "c" else np.float64
    with np.errstate(all="ignore"):
        a, b = got.astype(wide), want.astype(wide)
        finite = np.isfinite(a) & np.isfinite(b)
        same = finite | (a == b) | (np.isnan(a) & np.isnan(b))
        if not same.all():
            return False
        scale = np.abs(b[finite]).max(initial=0)
        return bool((np.abs(a[finite] - b[finite]) <= epsilon * scale).all())


def _epsilon(dtype: np.dtype) -> float | None:
    """The largest difference that counts as rounding, relative to the largest element.

    None: the results must be equal.
    """
    if dtype.kind in "biuSUO":
        return None
    if dtype.kind == "c":
        dtype = np.dtype(f"f{dtype.itemsize // 2}")
    try:
        epsilon = float(ml_dtypes.finfo(dtype).eps)
    except ValueError:  # int4 and the like
        return None
    return epsilon * (_NARROW_ROUNDING if dtype.itemsize < 4 else _ROUNDING)
