from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_shim.evaluator.passes.constant_folding import fold_constants
from pallas_shim.evaluator.passes.mask_narrowing import MaskNarrowing

from .programs import check_pass

X = np.array([3, -1, 7, 7, np.iinfo(np.int32).min], np.int32)
Y = np.array([3, 4, -7, 8, np.iinfo(np.int32).max], np.int32)
F = np.array([1.0, np.nan, -0.0, 0.0, np.inf], np.float32)
G = np.array([np.nan, 1.0, 0.0, -0.0, 2.0], np.float32)


def simplified(f, *args):
    return check_pass(MaskNarrowing.run, f, *args)


def simplified_with_constants(f, *args):
    return check_pass(lambda program: MaskNarrowing.run(fold_constants(program)), f, *args)


def test_a_boolean_that_is_widened_and_compared_with_zero_stays_one():
    assert simplified(lambda x, y: (x > y).astype(jnp.int32) != 0, X, Y) == ["gt"]
    assert simplified(lambda x, y: (x > y).astype(jnp.int8).astype(bool), X, Y) == ["gt"]
    assert simplified(lambda x, y: (x > y).astype(jnp.uint8) == 1, X, Y) == ["gt"]


def test_the_negation_is_one():
    assert simplified(lambda x, y: (x > y).astype(jnp.int32) == 0, X, Y) == ["gt", "not"]
    assert simplified(lambda x, y: (x > y).astype(jnp.int32) != 1, X, Y) == ["gt", "not"]


@pytest.mark.parametrize("operation", [jnp.bitwise_and, jnp.bitwise_or, jnp.bitwise_xor])
def test_integers_that_are_booleans_are_combined_as_booleans(operation):
    mask = np.array([0, 1, 1, 0, 1], np.int32)

    def f(x, y):
        both = operation((x > y).astype(jnp.int32), (x == y).astype(jnp.int32))
        return operation(both, mask) != 0

    name = {"bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor"}[operation.__name__]
    assert simplified(f, X, Y) == ["gt", "eq", name, name]


def test_an_integer_that_is_used_as_one_stays_one():
    def f(x, y):
        wide = (x > y).astype(jnp.int32) ^ (x == y).astype(jnp.int32)
        return wide + x, wide != 0

    assert simplified(f, X, Y).count("convert_element_type") == 2


def test_other_constants_are_not_truth_values():
    mask = np.array([0, 1, 2, 0, 1], np.int32)
    f = lambda x, y: ((x > y).astype(jnp.int32) ^ mask) != 0  # noqa: E731
    assert simplified(f, X, Y) == ["gt", "convert_element_type", "xor", "ne"]
    g = lambda x, y: (x > y).astype(jnp.int32) != 2  # noqa: E731
    assert simplified(g, X, Y) == ["gt", "convert_element_type", "ne"]


def test_floats_are_left_alone():
    assert "ne" in simplified(lambda x, y: (x > y).astype(jnp.float32) != 0, F, G)


def test_truths_inside_a_loop_use_what_is_outside():
    def f(x, y):
        wide = (x > y).astype(jnp.int32)
        body = lambda i, c: jnp.where((wide ^ (c > x).astype(jnp.int32)) != 0, c, c + 1)  # noqa: E731
        return jax.lax.fori_loop(0, 3, body, x)

    left = simplified(f, X, Y)
    assert "ne" not in left and "convert_element_type" not in left


@pytest.mark.parametrize("dtype", [np.int32, np.int8, np.uint16, np.float32])
@pytest.mark.parametrize("axes", [None, 0, 1, (1, 2), -1])
def test_a_sum_of_widened_booleans_counts_them(dtype, axes):
    x = np.random.default_rng(0).integers(-2, 3, (2, 300, 7)).astype(np.int32)
    f = lambda x: jnp.sum((x > 0).astype(dtype), axes, dtype=dtype)  # noqa: E731
    assert simplified(f, x) == ["gt", "count"]


def test_a_choice_of_one_or_zero_is_a_widened_boolean():
    x = np.array([[3, -1, 7], [0, 2, -5]], np.int32)
    where = lambda yes, no: simplified_with_constants(  # noqa: E731
        lambda x: jnp.sum(jnp.where(x > 0, yes, no), 0), x
    )
    assert where(1, 0) == where(1.0, 0.0) == ["gt", "count"]
    assert "count" not in where(0, 1) and "count" not in where(2, 0)
    compared = simplified_with_constants(lambda x: jnp.where(x > 0, 1, 0) != 0, x)
    assert compared == ["gt"]


def test_rows_that_are_short_are_counted_too():
    x = np.random.default_rng(0).integers(-2, 3, (4096, 5)).astype(np.int32)
    assert simplified(lambda x: jnp.sum(x > 0, -1, dtype=np.int32), x) == ["gt", "count"]


def test_what_floats_cannot_count_exactly_is_summed():
    x = np.zeros((), np.int32)
    f = lambda x: jnp.sum(jnp.broadcast_to(x == 0, 2**24 + 2).astype(jnp.float32))  # noqa: E731
    assert "reduce_sum" in simplified(f, x)
    half = lambda x: jnp.sum((x == 0).astype(jnp.float16))  # noqa: E731
    assert "reduce_sum" in simplified(half, X)


def test_a_sum_along_axes_of_one_element_is_no_count():
    f = lambda x: jnp.sum((x > 0).astype(jnp.int32)[:, None], 1)  # noqa: E731
    assert "count" not in simplified(f, X)
