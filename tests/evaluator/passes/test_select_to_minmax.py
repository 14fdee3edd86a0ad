from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_shim.evaluator.passes.select_to_minmax import SelectToMinMax

from .programs import check_pass

X = np.array([3, -1, 7, 7, np.iinfo(np.int32).min], np.int32)
Y = np.array([3, 4, -7, 8, np.iinfo(np.int32).max], np.int32)
F = np.array([1.0, np.nan, -0.0, 0.0, np.inf], np.float32)
G = np.array([np.nan, 1.0, 0.0, -0.0, 2.0], np.float32)


def simplified(f, *args):
    return check_pass(SelectToMinMax.run, f, *args)


@pytest.mark.parametrize("compare", [jnp.greater, jnp.greater_equal, jnp.less, jnp.less_equal])
def test_a_select_between_the_sides_of_its_comparison_is_an_extremum(compare):
    greater = compare in (jnp.greater, jnp.greater_equal)
    chosen = lambda x, y: jnp.where(compare(x, y), x, y)  # noqa: E731
    assert simplified(chosen, X, Y) == ["max" if greater else "min"]
    other = lambda x, y: jnp.where(compare(x, y), y, x)  # noqa: E731
    assert simplified(other, X, Y) == ["min" if greater else "max"]


def test_floats_are_left_alone():
    assert simplified(lambda x, y: jnp.where(x > y, x, y), F, G) == ["gt", "select_n"]


def test_a_select_of_something_else_is_left_alone():
    assert simplified(lambda x, y: jnp.where(x > y, x, x + y), X, Y) == ["gt", "add", "select_n"]
