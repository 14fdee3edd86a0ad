"""Kernels are found in jaxprs, described, and what interpret= asks for is read."""

from __future__ import annotations

import functools
import sys

import jax
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.jax_compat import checked, kernel_info
from tests.shimmed import double

X = np.arange(8, dtype=np.float32)


def test_kernels_are_found_however_deep():
    def deep(x):
        def body(_, c):
            return lax.cond(c[0] > 0, jax.jit(double), lambda c: c, c)

        return lax.fori_loop(0, 3, body, x) + double(x)

    jaxpr = jax.make_jaxpr(deep)(X)
    assert [e.primitive.name for e in kernel_info.kernel_equations(jaxpr)] == ["pallas_call"] * 2
    assert kernel_info.kernel_equations(jax.make_jaxpr(lambda x: x + 1)(X)) == ()


def test_a_kernel_is_described_to_the_user():
    def my_kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...]

    call = pl.pallas_call(my_kernel, out_shape=jax.ShapeDtypeStruct((8,), X.dtype), grid=(2, 5))
    (eqn,) = kernel_info.kernel_equations(jax.make_jaxpr(call)(X))
    line = my_kernel.__code__.co_firstlineno
    assert kernel_info.describe_kernel(eqn) == ("my_kernel", f"{__file__}:{line}", "(2, 5)")


def asked(interpret):
    (eqn,) = kernel_info.kernel_equations(jax.make_jaxpr(lambda x: double(x, interpret))(X))
    return kernel_info.unhonoured(eqn)


@pytest.mark.parametrize(
    "interpret",
    [
        True,
        False,
        pltpu.InterpretParams(),
        pltpu.InterpretParams(dma_execution_mode="eager", vector_clock_size=64),
        pltpu.InterpretParams(out_of_bounds_reads="uninitialized", uninitialized_memory="zero"),
        pltpu.InterpretParams(allow_hbm_allocation_in_run_scoped=True),
        pltpu.InterpretParams(detect_races=True),
        pltpu.InterpretParams(dma_execution_mode="on_wait", random_seed=3),
        pltpu.InterpretParams(skip_floating_point_ops=True, grid_point_recorder=print),
    ],
)
def test_what_is_honoured(interpret):
    assert asked(interpret) is None


def test_a_log_of_what_is_only_in_jaxs_interpreter():
    mode = getattr(sys.modules[pltpu.InterpretParams.__module__], "LoggingMode", None)
    if mode is None:
        pytest.skip("this JAX has no such option")
    assert asked(pltpu.InterpretParams(logging_mode=mode.BARRIER)) is None
    for one in (mode.SEMAPHORE, mode.SHARED_MEMORY | mode.BARRIER):
        assert "logging_mode" in asked(pltpu.InterpretParams(logging_mode=one))


def test_vector_clocks_that_are_too_small():
    assert "refuses" in asked(pltpu.InterpretParams(vector_clock_size=1))


def test_an_option_that_is_not_known(monkeypatch):
    monkeypatch.setattr(kernel_info, "_HONOURED", frozenset())
    option = "uninitialized_memory"
    assert option in asked(pltpu.InterpretParams(**{option: "zero"}))


def test_an_interpreter_that_somebody_changed(monkeypatch):
    checked.remember_interpreter()
    assert asked(pltpu.InterpretParams()) is None
    name = next(iter(checked._functions))
    monkeypatch.setattr(f"{checked._INTERPRETER}.{name}", functools.partial(print))
    assert f"`{name}`" in asked(pltpu.InterpretParams())
    assert asked(True) is None
