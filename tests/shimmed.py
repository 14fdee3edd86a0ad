"""What the tests of dispatching share: the shim switched on, a kernel, and what the report says."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import pytest
from jax.experimental import pallas as pl

import pallas_shim
from pallas_shim import settings
from pallas_shim.dispatch import fallback
from pallas_shim.reports.uses import REPORT


@pytest.fixture
def shim():
    """The shim is active during the test, with an empty report."""
    REPORT.clear()
    fallback._warned.clear()
    with pallas_shim.active():
        yield REPORT


@pytest.fixture
def setting(monkeypatch):
    """``setting(strict=True)`` changes settings for the rest of the test."""

    def change(**changes):
        changed = dataclasses.replace(settings.current(), **changes)
        monkeypatch.setattr(settings, "current", lambda: changed)

    return change


def double_kernel(x_ref, o_ref):
    o_ref[...] = x_ref[...] + x_ref[...]


def double(x, interpret: Any = True):
    """x + x, by a kernel."""
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(double_kernel, out_shape=shape, interpret=interpret)(x)


def rungs(report=REPORT) -> set[str]:
    """The rungs on which kernels ran since the report was cleared."""
    return {row["rung"] for row in report.rows()}


def only_row(report=REPORT) -> dict[str, Any]:
    (row,) = report.rows()
    return row
