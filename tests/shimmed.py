"""What the tests of dispatching share: the shim switched on, a kernel, and what the report says."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import pytest
from jax import extend
from jax.experimental import pallas as pl
from jax.interpreters import mlir

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


# A primitive that only JAX knows.
unknown_p = extend.core.Primitive("unknown_to_the_shim")
unknown_p.def_impl(lambda x: x * 3)
unknown_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(unknown_p, mlir.lower_fun(lambda x: x * 3, multiple_results=False))


def unruly_kernel(x_ref, o_ref):
    o_ref[...] = unknown_p.bind(x_ref[...])


def unruly(x, interpret=True):
    """x * 3, by a kernel that is left to JAX."""
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(unruly_kernel, out_shape=shape, interpret=interpret)(x)


def rungs(report=REPORT) -> set[str]:
    """The rungs on which kernels ran since the report was cleared."""
    return {row["rung"] for row in report.rows()}


def only_row(report=REPORT) -> dict[str, Any]:
    (row,) = report.rows()
    return row


def only_function(report=REPORT) -> dict[str, Any]:
    """The row of the one function without a kernel."""
    (row,) = report.functions()
    return row
