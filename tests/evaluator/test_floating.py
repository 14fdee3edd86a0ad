"""The floating-point environment of a run: XLA's inside, the thread's own outside."""

from __future__ import annotations

import warnings

import jax
import numpy as np
import pytest
from jax import lax

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.floating import as_xla
from pallas_shim.evaluator.lower import lower

SMALL = np.array([1e-39, -1e-39, 2e-38], np.float32)
HALF = np.float32(0.5)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_subnormals_are_zeros_inside(dtype):
    tiny = np.finfo(dtype).tiny
    assert as_xla(lambda: tiny * dtype(0.5)) == 0
    assert tiny * dtype(0.5) > 0


def test_an_error_restores_the_environment():
    def fail():
        raise KeyError

    with pytest.raises(KeyError):
        as_xla(fail)
    assert SMALL[0] * HALF > 0


def test_runs_nest():
    def nest():
        as_xla(lambda: None)
        assert SMALL[0] * HALF == 0

    as_xla(nest)


def test_nothing_warns_inside():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isinf(as_xla(lambda: np.float32(1) / np.float32(0)))


def test_the_users_error_state_comes_back():
    with np.errstate(divide="raise", under="call"):
        before = np.geterr()
        as_xla(lambda: None)
        assert np.geterr() == before


def test_programs_compute_as_jax_does():
    def f(x):
        return lax.mul(x, HALF), lax.gt(x, lax.full_like(x, 0))

    got = Executable(lower(jax.make_jaxpr(f)(SMALL)))(SMALL)
    for a, b in zip(got, jax.jit(f)(SMALL), strict=True):
        np.testing.assert_array_equal(a, np.asarray(b))
