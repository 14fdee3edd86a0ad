from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pallas_shim.evaluator.passes.constant_folding import fold_constants
from pallas_shim.evaluator.passes.constant_gathers import ConstantGathers

from .programs import check_pass

X = np.arange(4 * 6 * 5, dtype=np.float32).reshape(4, 6, 5)


def simplified(f, *args):
    """The names of what is left; the indices are computed, and so become known, first."""
    return check_pass(lambda program: ConstantGathers.run(fold_constants(program)), f, *args)


@pytest.mark.parametrize("mode", ["clip", "fill"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_permutation_along_an_axis_takes_rows(axis, mode):
    at = np.random.default_rng(axis).permutation(X.shape[axis])
    shape = [-1 if d == axis else 1 for d in range(3)]
    along = np.broadcast_to(at.reshape(shape), X.shape)
    assert simplified(lambda x: jnp.take_along_axis(x, along, axis, mode=mode), X) == ["take"]
    assert simplified(lambda x: jnp.take(x, at, axis, mode=mode), X) == ["take"]


def test_rows_may_be_repeated_and_left_out():
    assert simplified(lambda x: x[np.array([3, 0, 3, 3, 0])], X) == ["take"]
    assert simplified(lambda x: x[:, np.array([-1])], X) == ["take"]


def test_indices_outside_are_clipped():
    indices = np.array([-9, 2, 9])
    assert simplified(lambda x: x.at[indices].get(mode="clip"), X) == ["take"]


@pytest.mark.parametrize("index", [4, -5])
def test_what_is_filled_in_is_gathered(index):
    indices = np.array([1, index])
    assert simplified(lambda x: x.at[indices].get(mode="fill"), X) == ["gather"]


def test_other_patterns_are_gathered():
    each_its_own = np.arange(X.size).reshape(X.shape) % 4
    assert simplified(lambda x: jnp.take_along_axis(x, each_its_own, 0), X) == ["gather"]
    diagonal = lambda x: x[np.arange(4), np.arange(4)]  # noqa: E731
    assert simplified(diagonal, X) == ["gather"]


def test_unknown_indices_are_gathered():
    def f(x, i):
        return lax.gather(x, i[:, None], lax.GatherDimensionNumbers((1, 2), (0,), (0,)), (1, 6, 5))

    assert simplified(f, X, np.array([1, 0], np.int32))[-1] == "gather"
