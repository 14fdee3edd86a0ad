from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise
from pallas_shim.evaluator.passes.dead_code import remove_dead_code
from pallas_shim.evaluator.passes.in_place import write_in_place

from .programs import check_pass, instructions

X = np.arange(1, 25, dtype=np.float32).reshape(4, 6)
Y = X[::-1] / 2


def written(f, *args):
    """The instructions that write over an operand, by name, and which operand."""
    check_pass(write_in_place, f, *args)
    program = write_in_place(remove_dead_code(lower(jax.make_jaxpr(f)(*args))))
    return [
        (i.name, i.operation.params["into"])
        for i in instructions(program)
        if "into" in i.operation.params
    ]


def test_a_chain_uses_one_array():
    assert written(lambda x, y: jnp.exp((x - y) * y), X, Y) == [("mul", 0), ("exp", 0)]


def test_the_second_operand_may_be_it():
    assert written(lambda x, y: x - (x * y), X, Y) == [("sub", 1)]


def test_both_operands_may_be_the_same():
    assert written(lambda x, y: (lambda s: s * s)(x + y), X, Y) == [("mul", 0)]


def test_arguments_constants_and_results_are_left_alone():
    assert written(lambda x, y: x + y, X, Y) == []
    assert written(lambda x: x + X, X) == []

    def both(x, y):
        s = x + y
        return s, s * y

    assert written(both, X, Y) == []


def test_what_is_used_later_is_left_alone():
    def f(x, y):
        s = x + y
        t = s * y
        return t - s

    assert written(f, X, Y) == [("sub", 0)]


def test_what_has_a_view_is_left_alone():
    def f(x, y):
        s = x + y
        head = lax.slice(s, (0, 0), (2, 6))
        return s * y, head

    assert written(f, X, Y) == []


def test_a_view_is_left_alone():
    assert written(lambda x: jnp.reshape(x, (6, 4)) * 2, X) == []


def test_another_dtype_or_shape_is_left_alone():
    assert written(lambda x, y: (x + y) < y, X, Y) == []
    assert written(lambda x, y: (x[0] + y[0]) * y, X, Y) == []


def test_dots_are_not_written_over_what_they_read():
    square = X[:, :4]
    assert written(lambda x: lax.dot(x + x, x), square) == []
    assert written(lambda x: lax.dot(x, x) * x, square) == [("mul", 0)]


def test_loops_have_arrays_of_their_own():
    def f(x, y):
        s = x + y

        def body(_, carry):
            return jnp.sin(carry * s) + s

        return lax.fori_loop(0, 3, body, s), s * 2

    assert written(f, X, Y) == [("sin", 0), ("add", 0)]


def test_the_real_part_is_an_array_of_its_own():
    x = X.astype(np.complex64)
    given = x.copy()
    assert written(lambda x: lax.convert_element_type(x, np.float32) * 2, x) == [("mul", 0)]
    assert np.array_equal(x, given)


LARGE = np.arange(1 << 14, dtype=np.float32).reshape(128, 128)


def test_what_was_last_used_shortly_before_is_written_over():
    def f(x):
        a = x + 1
        b = a > 3
        return jnp.exp(x), b

    # The array comes after the operands.
    assert written(f, LARGE) == [("exp", 1)]
    assert written(f, LARGE[:8]) == []


def test_what_is_still_used_or_returned_is_not_written_over():
    def f(x):
        a = x + 1
        b = a > 3
        c = jnp.exp(x)
        return a, b, c

    assert written(f, LARGE) == []

    def g(x):
        a = x + 1
        view = a.T
        b = a > 3
        return jnp.exp(x), b, view

    assert written(g, LARGE) == []


def test_each_array_is_written_over_once():
    def f(x):
        b = (x + 1) > 3
        return jnp.exp(x), jnp.sin(x), b

    assert written(f, LARGE) == [("exp", 1)]


def test_another_type_is_not_written_over():
    def f(x):
        b = (x + 1) > 3
        return x.astype(jnp.int32) * 2, b

    assert written(f, LARGE) == [("mul", 0)]


def test_what_a_kernel_reads_is_not_written_over():
    """A buffer of an operand that no cell writes to is the operand's own memory. What leaves the
    grid comes between the two."""

    def kernel(x_ref, y_ref, o_ref):
        o_ref[...] = (y_ref[...] * 2)[:8] + x_ref[...]

    def f(x, y):
        block = pl.BlockSpec((8, x.shape[1]), lambda i: (i, 0))
        return pl.pallas_call(
            kernel, out_shape=x, grid=(len(x) // 8,), interpret=True,
            in_specs=[block, pl.BlockSpec(y.shape, lambda i: (0, 0))], out_specs=block,
        )(x + 1, y)  # fmt: skip

    before = lower(jax.make_jaxpr(f)(LARGE, LARGE))
    after = optimise(before)
    hoisted = [i for i in after.top.body if i.name == "mul"]
    assert hoisted and hoisted[0].outs[0].type == hoisted[0].ins[0].type
    (got,), (want,) = Executable(after)(LARGE, LARGE), Executable(before)(LARGE, LARGE)
    assert np.array_equal(got, want)
