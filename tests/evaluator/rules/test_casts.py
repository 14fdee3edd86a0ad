"""Casts of many numbers at once, against ``astype``."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from pallas_shim.evaluator.rules.casts import cast
from tests import samples
from tests.oracle import as_xla_computes

FLOAT32, FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)
FLOAT8S = [
    np.dtype(getattr(ml_dtypes, name))
    for name in ("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn",
                 "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
]  # fmt: skip
OTHERS = [np.dtype(ml_dtypes.float8_e8m0fnu), np.dtype(ml_dtypes.bfloat16), np.dtype(np.int32)]


def bits(x: np.ndarray) -> np.ndarray:
    return np.atleast_1d(x).view(f"u{x.itemsize}")


@as_xla_computes
def check(x: np.ndarray, target: np.dtype) -> None:
    fn = cast(x.dtype, target)
    want = x.astype(target)
    for got, expected in (
        (fn(x), want),
        (fn(x[::-2]), want[::-2]),
        (fn(x[:20]), want[:20]),
        (fn(x[0]), want[0]),
        (fn(x.reshape(2, -1).T), want.reshape(2, -1).T),
    ):
        assert got.dtype == target and got.shape == expected.shape
        same = bits(got) == bits(expected)
        both_nan = np.isnan(got.astype(FLOAT32)) & np.isnan(expected.astype(FLOAT32))
        assert (same | both_nan).all()


def float32s() -> np.ndarray:
    """Every 8,191st float, and what lies on and next to the middle of two of the narrow types."""
    every = np.arange(0, 1 << 32, 8191, dtype=np.uint64).astype(np.uint32)
    upper = np.arange(0, 1 << 32, 1 << 12, dtype=np.uint64).astype(np.uint32)
    chosen = np.concatenate((every, upper, upper + np.uint32(1), upper - np.uint32(1)))
    return chosen[: chosen.size // 2 * 2].view(np.float32)


@pytest.mark.parametrize("source", [*FLOAT8S, FLOAT16, *OTHERS], ids=str)
def test_to_float32(source):
    x = samples.values(source)
    check(np.tile(x, 2048 // min(len(x), 2048) * 2), FLOAT32)


@pytest.mark.parametrize("target", [*FLOAT8S, FLOAT16, *OTHERS[:2]], ids=str)
def test_from_float32(target):
    check(float32s(), target)


def test_float16_from_numbers():
    """None of them NaN, which takes another way."""
    x = float32s()
    x = x[~np.isnan(x)]
    check(x[: x.size // 2 * 2], FLOAT16)
