from __future__ import annotations

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.evaluator.passes.constant_folding import fold_constants
from pallas_shim.evaluator.passes.movements import Movements

from .programs import check_pass

X = np.arange(4 * 6 * 5, dtype=np.float32).reshape(4, 6, 5)


def simplified(f, *args):
    """The names of what is left; the indices are computed, and so become known, first."""
    return check_pass(lambda program: Movements.run(fold_constants(program)), f, *args)


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


@pytest.mark.parametrize("shift", [0, 1, 4, 5, 13])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_roll_by_a_known_distance(axis, shift):
    assert "roll" not in simplified(lambda x: pltpu.roll(x, shift, axis), X)
    assert simplified(lambda x: jnp.roll(x, shift, axis), X)[-1:] != ["concatenate"]


def partner(x, distance, axis):
    """What a bitonic network compares each element with."""
    size = x.shape[axis]
    at = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    ahead, behind = pltpu.roll(x, size - distance, axis), pltpu.roll(x, distance, axis)
    return jnp.where(at & distance == 0, ahead, behind)


@pytest.mark.parametrize("distance", [1, 2, 4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_choice_of_two_rolls_by_a_known_mask_is_one_movement(axis, distance):
    x = np.arange(16 * 16, dtype=np.float32).reshape(16, 16)
    names = simplified(lambda x: partner(x, distance, axis), x)
    assert names.count("select_n") == 0 and names[-1] == "take"


def test_a_choice_by_a_mask_that_varies_along_another_axis_stays():
    def f(x):
        at = lax.broadcasted_iota(jnp.int32, x.shape, 0)
        return jnp.where(at == 1, pltpu.roll(x, 1, 1), x)

    assert simplified(f, X)[-1] == "select_n"


def test_a_choice_of_movements_of_two_arrays_stays():
    mask = np.arange(6)[:, None] % 2 == 0
    f = lambda x, y: jnp.where(mask, jnp.roll(x, 1, 1), jnp.roll(y, 2, 1))  # noqa: E731
    assert simplified(f, X, X + 1)[-1] == "select_n"
    g = lambda x: jnp.where(mask, jnp.roll(x, 1, 0), jnp.roll(x, 2, 1))  # noqa: E731
    assert simplified(g, X)[-1] == "select_n"


def test_rolls_there_and_back_are_nothing():
    assert simplified(lambda x: pltpu.roll(pltpu.roll(x, 2, 1), 4, 1) + 1, X) == ["add"]


@pytest.mark.parametrize("dtype", [np.float32, np.int8, ml_dtypes.bfloat16, np.bool_])
@settings(deadline=None)
@given(data=st.data())
def test_every_movement_of_parts(dtype, data):
    """Slices, reversals and rolls of one axis, joined and chosen from."""
    axis = data.draw(st.integers(0, 2))
    size = X.shape[axis]
    x = (X % 7).astype(dtype)

    def part(x):
        kind = data.draw(st.sampled_from(["roll", "reverse", "whole", "slice"]))
        if kind == "roll":
            return pltpu.roll(x, data.draw(st.integers(0, size)), axis)
        if kind == "reverse":
            return lax.rev(x, (axis,))
        if kind == "slice":
            start = data.draw(st.integers(0, size))
            stop = data.draw(st.integers(start, size))
            stride = data.draw(st.integers(1, 3))
            return lax.slice_in_dim(x, start, stop, stride, axis)
        return x

    def f(x):
        parts = [part(x) for _ in range(data.draw(st.integers(1, 4)))]
        joined = jnp.concatenate(parts, axis)
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
        mask = mask.reshape([-1 if d == axis else 1 for d in range(3)])
        whole = [p for p in parts if p.shape == x.shape]
        return joined, jnp.where(np.broadcast_to(mask, x.shape), whole[-1] if whole else x, x)

    simplified(f, x)
