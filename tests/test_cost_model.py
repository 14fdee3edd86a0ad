"""Costs are compared with one another: what an equation takes is measured, and may change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl

from pallas_shim.cost_model import outside_kernels

X = jax.ShapeDtypeStruct((64, 32), jnp.float32)
LARGE = jax.ShapeDtypeStruct((64, 320), jnp.float32)
NOTHING = outside_kernels(jax.make_jaxpr(lambda x: x)(X))


def cost(f, *args):
    """Seconds of NumPy's and of XLA's compiler, above those of a function that does nothing."""
    estimate = outside_kernels(jax.make_jaxpr(f)(*args))
    return np.array(estimate) - np.array(NOTHING)


def numpy_cost(f, *args):
    return cost(f, *args)[0]


def test_nothing_costs_nothing_but_a_compilation():
    assert NOTHING.numpy == 0
    assert NOTHING.compiling > 0


def test_equations_add_up():
    one, three = cost(lax.neg, X), cost(lambda x: lax.abs(lax.neg(lax.abs(x))), X)
    assert (one[:2] > 0).all()
    np.testing.assert_allclose(three, 3 * one)


def test_numpy_pays_by_the_byte_and_the_compiler_does_not():
    (small, small_compiling, _), (large, compiling, _) = cost(lax.neg, X), cost(lax.neg, LARGE)
    narrow = numpy_cost(lax.neg, jax.ShapeDtypeStruct(LARGE.shape, jnp.bfloat16))
    half = numpy_cost(lax.neg, jax.ShapeDtypeStruct((32, 320), jnp.float32))
    assert small < large
    assert compiling == pytest.approx(small_compiling)
    assert narrow == pytest.approx(half)


def test_what_is_jitted_inside_counts_with_its_call():
    inside, plain = cost(lambda x: jax.jit(lax.neg)(x), X), cost(lax.neg, X)
    assert inside[0] == pytest.approx(plain[0])
    assert inside[1] == pytest.approx(2 * plain[1])


def test_a_scan_costs_as_often_as_it_goes_round_and_is_compiled_once():
    def scan(length):
        return lambda x: lax.fori_loop(0, length, lambda _, x: lax.neg(x), x)

    (few, few_compiling, _), (many, many_compiling, _) = cost(scan(5), X), cost(scan(50), X)
    assert many == pytest.approx(10 * few)
    assert many_compiling == pytest.approx(few_compiling)


def test_scans_in_scans_multiply():
    def scan(x, depth):
        if depth == 0:
            return lax.neg(x)
        return lax.scan(lambda x, _: (scan(x, depth - 1), None), x, length=7)[0]

    one, two = (numpy_cost(lambda x, depth=depth: scan(x, depth), X) for depth in (1, 2))
    assert one == pytest.approx(7 * numpy_cost(lax.neg, X))
    assert two == pytest.approx(7 * one)


def test_a_while_is_taken_to_go_round_a_few_times():
    def loop(x):
        return lax.while_loop(lambda x: jnp.sum(x) < 9, lax.neg, x)

    once = numpy_cost(lambda x: (lax.neg(x), jnp.sum(x) < 9), X)
    assert 2 * once < numpy_cost(loop, X) < 100 * once


def test_each_branch_of_a_cond_counts():
    def either(x):
        return lax.cond(True, lax.neg, lambda x: lax.abs(lax.abs(x)), x)

    outside = numpy_cost(lambda x: lax.cond(True, lambda x: x, lambda x: x, x), X)
    assert numpy_cost(either, X) - outside == pytest.approx(3 * numpy_cost(lax.neg, X))


def test_a_sort_is_dearer_than_what_moves_as_much():
    assert numpy_cost(lax.sort, LARGE) > 5 * numpy_cost(lax.neg, LARGE)


def test_a_dot_costs_by_its_depth():
    def dot(depth):
        a = jax.ShapeDtypeStruct((64, depth), jnp.float32)
        b = jax.ShapeDtypeStruct((depth, 64), jnp.float32)
        return numpy_cost(lax.dot, a, b)

    flat, deep, deeper = dot(0), dot(1000), dot(2000)
    assert flat < deep
    assert deeper - flat == pytest.approx(2 * (deep - flat))


def test_a_dot_of_several_contracted_dimensions_is_as_deep_as_their_product():
    a = jax.ShapeDtypeStruct((8, 6, 5), jnp.float32)
    flat = jax.ShapeDtypeStruct((8, 30), jnp.float32)

    def outer(x, y):
        dims = tuple(range(1, x.ndim))
        return lax.dot_general(x, y, ((dims, dims), ((), ())))

    assert numpy_cost(outer, a, a) == pytest.approx(numpy_cost(outer, flat, flat))


def test_xla_takes_as_long_for_a_product_of_floats():
    """So NumPy is as good for it, and rounds like a kernel's product: JAX's quickstart for Pallas
    compares the two within 1e-7."""

    def estimate(dtype, *batch):
        x = jax.ShapeDtypeStruct((*batch, 1024, 1024), dtype)
        return outside_kernels(jax.make_jaxpr(jnp.matmul)(x, x))

    for batch in ((), (4,)):
        found = estimate(jnp.float32, *batch)
        assert not found.is_dear and found.in_both > 0.01
    assert estimate(jnp.bfloat16).is_dear and estimate(jnp.int8).is_dear


def test_a_convolution_costs_by_its_weights():
    def convolution(width):
        x = jax.ShapeDtypeStruct((1, 1, 512), jnp.float32)
        weights = jax.ShapeDtypeStruct((1, 1, width), jnp.float32)
        return numpy_cost(lambda x, w: lax.conv(x, w, (1,), "SAME"), x, weights)

    narrow, wide, wider = convolution(10), convolution(20), convolution(30)
    assert wide - narrow == pytest.approx(wider - wide)
    assert narrow < wide


def test_what_has_no_shape_and_no_result_costs_an_equation():
    printing = cost(lambda x: jax.debug.print("{}", 1) or x, X)
    assert 0 < printing[0] < numpy_cost(lax.neg, X)


def kernel(x_ref, out_ref):
    out_ref[...] = lax.sort(x_ref[...])


def call(x):
    return pl.pallas_call(kernel, jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)(x)


def test_kernels_are_not_counted():
    assert tuple(cost(call, X)) == (0, 0, 0)
    np.testing.assert_allclose(cost(lambda x: lax.neg(call(x)), X), cost(lax.neg, X))


def test_keys_have_the_size_of_their_words():
    keys = jax.ShapeDtypeStruct((64,), jax.random.key(0).dtype)
    words = jax.ShapeDtypeStruct((64, 2), jnp.uint32)
    reverse = numpy_cost(lambda x: lax.rev(x, (0,)), words)
    assert numpy_cost(lambda x: lax.rev(x, (0,)), keys) == pytest.approx(reverse)
