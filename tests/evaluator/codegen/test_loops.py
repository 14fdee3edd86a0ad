"""Loops as functions: that they do what closures do, and what they look like."""

from __future__ import annotations

import gc
import linecache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.evaluator import codegen, progress
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise
from tests.evaluator.codegen.emitting import WAYS, emit_all
from tests.evaluator.passes.programs import outcome, random_programs
from tests.oracle import check_kernel

__all__ = ["emit_all"]


@settings(
    derandomize=True,
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(made=random_programs)
def test_functions_do_what_closures_do(made):
    for program in (made.program, optimise(made.program)):
        closures, functions = (outcome(program, made.log, emits) for emits in WAYS.values())
        assert functions == closures


def scalar_kernel(dtype, body):
    """A kernel of one cell that gets two rows of numbers in SMEM, and has a third of them."""

    def kernel(x_ref, y_ref, o_ref, row_ref):
        body(x_ref, y_ref, o_ref, row_ref)

    shape = jax.ShapeDtypeStruct((6,), dtype)
    return kernel, shape, {"scratch_shapes": [pltpu.SMEM((6,), dtype)]}


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_, jnp.float32, jnp.bfloat16])
def test_elements_of_memory(emit_all, dtype):
    """At indices that are inside, and before and after it."""

    def body(x_ref, y_ref, o_ref, row_ref):
        def step(i, previous):
            row_ref[i] = x_ref[i - 2]
            o_ref[i] = jnp.where(previous == x_ref[i], y_ref[i + 3], row_ref[i])
            return y_ref[i]

        lax.fori_loop(0, 6, step, y_ref[0])

    kernel, shape, params = scalar_kernel(dtype, body)
    x, y = (np.array(numbers, shape.dtype) for numbers in ([3, 0, 1, 3, 2, 0], [0, 3, 1, 0, 9, 1]))
    check_kernel(kernel, shape, x, y, **params)
    assert len(emit_all) == 1


def test_elements_of_blocks(emit_all):
    """The block is another one in each cell, whose loop is inside that of the grid."""

    def kernel(x_ref, o_ref):
        cell = pl.program_id(0)

        def step(i, total):
            o_ref[i, 0] = total
            return total + x_ref[i, cell]

        lax.fori_loop(0, 4, step, jnp.int32(0))

    blocks = pl.BlockSpec((4, 2), lambda i: (i, 0))
    x = np.arange(16, dtype=np.int32).reshape(8, 2)
    check_kernel(kernel, x, x, grid=(2,), in_specs=[blocks], out_specs=blocks)
    assert len(emit_all) == 1


def test_slices_of_memory(emit_all):
    """With known and with moving starts, inside and outside, read and written."""

    def kernel(x_ref, o_ref, row_ref):
        def step(i, total):
            row_ref[pl.ds(i - 1, 3)] = x_ref[i, 2:5] + x_ref[1, pl.ds(i, 3)]
            o_ref[pl.ds(2 * i, 2), :] = x_ref[pl.ds(i, 2), :] - total
            o_ref[i, pl.ds(1, 2, 3)] = row_ref[pl.ds(i, 2)]
            o_ref[3, ...] = row_ref[...] * i
            return total + o_ref[:, 1].sum()

        lax.fori_loop(0, 5, step, jnp.int32(0))

    x = np.arange(24, dtype=np.int32).reshape(4, 6)
    check_kernel(kernel, x, x, scratch_shapes=[pltpu.VMEM((6,), jnp.int32)])
    assert len(emit_all) == 1


def test_blocks_that_stick_out_and_squeezed_ones(emit_all):
    def kernel(x_ref, y_ref, o_ref):
        o_ref[...] = jnp.where(pl.program_id(1) == 1, x_ref[...] + y_ref[...], 5.0)

    x, y = np.arange(40, dtype=np.float32).reshape(4, 10), np.arange(3, dtype=np.float32)
    check_kernel(
        kernel, x, x, y, grid=(4, 3),
        in_specs=[pl.BlockSpec((None, 4), lambda i, j: (3 - i, j)),
                  pl.BlockSpec((1,), lambda i, j: (j,))],
        out_specs=pl.BlockSpec((None, 4), lambda i, j: (i, j)),
    )  # fmt: skip
    assert len(emit_all) == 1


@pytest.mark.parametrize("count", [0, 1, 5])
def test_loops_and_branches_inside_one_another(emit_all, count):
    def body(x_ref, y_ref, o_ref, row_ref):
        def branch(i, c):
            return lax.switch(c[0] - 1, [lambda: (c[1], c[0]), lambda: (i, i), lambda: (c[0], i)])

        def outer(i, c):
            c = lax.while_loop(lambda c: c[0] < i, lambda c: (c[0] + x_ref[i], c[1] ^ 3), c)
            o_ref[i] = c[1]
            return branch(i, c)

        a, b = lax.fori_loop(0, count, outer, (jnp.int32(-3), jnp.int32(1)))
        o_ref[5] = a * 10 + b

    kernel, shape, params = scalar_kernel(jnp.int32, body)
    x = np.array([1, 2, 1, 3, 1, 1], np.int32)
    check_kernel(kernel, shape, x, x, **params)
    assert len(emit_all) == 1


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [0, 1, 4])
@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.bool_])
def test_scans_of_rows_and_of_scalars(emit_all, dtype, length, reverse):
    def f(xs, rows):
        def step(c, x):
            number, row = x
            return c + number.astype(jnp.int32), (c, row + number, number)

        return lax.scan(step, jnp.int32(1), (xs, rows), reverse=reverse)

    xs = np.arange(length).astype(dtype)
    rows = np.arange(length * 3).reshape(length, 3).astype(np.int32 if dtype == np.bool_ else dtype)
    got = Executable(lower(jax.make_jaxpr(f)(xs, rows)))(xs, rows)
    want = jax.tree.leaves(jax.jit(f)(xs, rows))
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)
        assert isinstance(one, np.ndarray | np.generic) and one.dtype == other.dtype
    assert len(emit_all) == 1



def test_what_cannot_overflow_is_not_checked(emit_all):
    def f(start, n, x):
        def step(i, c):
            return c + lax.rem(x[i], jnp.int32(8)) * i

        return lax.fori_loop(0, 4, step, start), lax.fori_loop(0, n, lambda i, c: c * i, start)

    run = Executable(lower(jax.make_jaxpr(f)(jnp.int32(3), jnp.int32(3), jnp.arange(4))))
    # The sum in the first loop and the product in the second one.
    assert [source.count("if not -2147483648 <=") for source in emit_all] == [1, 1]
    x = np.array([5, 2**31 - 1, 7, 3], np.int32)
    for start, n in ((5, 3), (2**31 - 3, 5), (-(2**31), -4)):
        assert run(np.int32(start), np.int32(n), x) == list(jax.jit(f)(start, n, x))


def test_a_counter_that_does_overflow(emit_all):
    def f(start, n):
        def going(c):
            return (c[1] < n) & (c[0] != 7)

        return lax.while_loop(going, lambda c: (c[0] + 2**30, c[1] + 1), (start, 0))

    run = Executable(lower(jax.make_jaxpr(f)(jnp.int32(3), jnp.int32(3))))
    for start, n in ((3, 6), (2**31 - 1, 1), (-(2**31), 2), (7, 4)):
        assert run(np.int32(start), np.int32(n)) == [int(x) for x in jax.jit(f)(start, n)]
    assert len(emit_all) == 1


@pytest.mark.parametrize("shows", [None, lambda *titles: pytest.fail("it took no second")])
def test_a_loop_counts_for_its_counter(emit_all, shows):
    """Also one that overflows, one that is added to for something else too, and one that isn't
    counted by ones."""

    def until(step, added=jnp.zeros_like):
        def f(start, end):
            def body(c):
                new = c[0] + jnp.int8(step)
                return new, c[1] * 3 + added(new)

            return lax.while_loop(lambda c: c[0] != end, body, (start, jnp.int8(1)))

        return f

    progress.show_with(shows)
    try:
        for f in (until(1), until(1, lambda new: new ^ 1), until(2)):
            run = Executable(lower(jax.make_jaxpr(f)(jnp.int8(0), jnp.int8(0))))
            for start, end in ((100, -100), (-128, 126), (5, 5), (7, 5)):
                want = [int(x) for x in jax.jit(f)(jnp.int8(start), jnp.int8(end))]
                assert run(np.int8(start), np.int8(end)) == want
    finally:
        progress.show_with(None)
    assert [" + 1\n" in source for source in emit_all] == [False, True, False]


def test_an_error_names_the_users_line(emit_all):
    def fail(x):
        raise RuntimeError("no")

    def f(x):
        def step(i, c):
            d = jnp.sin(c) + i
            return jax.pure_callback(fail, jax.ShapeDtypeStruct((), jnp.float32), d)

        return lax.fori_loop(0, 3, step, x)

    with pytest.raises(RuntimeError, match="no") as caught:
        Executable(lower(jax.make_jaxpr(f)(jnp.float32(0))))(np.float32(0))
    (note,) = caught.value.__notes__
    assert "pure_callback" in note and "test_loops.py" in note
    assert len(emit_all) == 1


def test_loops_too_deep_for_a_function(emit_all):
    """Python allows 20 loops inside one another."""

    def nested(depth, x):
        if depth == 0:
            return x * 2 + 1
        return lax.fori_loop(0, 1 + depth % 2, lambda _, c: nested(depth - 1, c), x)

    run = Executable(lower(jax.make_jaxpr(lambda x: nested(18, x))(jnp.int32(1))))
    assert run(np.int32(1)) == [jax.jit(lambda x: nested(18, x))(1)]
    assert len(emit_all) == 1
    assert emit_all[0].count("for ") == codegen.DEEPEST


def test_only_loops_that_turn_often_become_functions():
    def f(n):
        return lambda x: lax.fori_loop(0, n, lambda i, c: c ^ i, x)

    def loops(n):
        return [i for i in lower(jax.make_jaxpr(f(n))(0)).top.body if i.regions]

    assert [codegen.pays(*loops(n)) for n in (2, 1000)] == [False, True]


def test_tracebacks_show_the_source_as_long_as_the_function_is_there():
    def f(x):
        return lax.fori_loop(0, 5, lambda i, c: c * 2 + i, x)

    sources = []
    run = Executable(
        lower(jax.make_jaxpr(f)(jnp.int32(1))), lambda loop: True,
        lambda loop, source: sources.append(source),
    )  # fmt: skip
    (source,) = sources

    def files():
        return [f for f, entry in linecache.cache.items() if "".join(entry[2]) == source]

    (file,) = files()
    linecache.checkcache()
    assert linecache.getline(file, 1) == "def loop(f):\n" and file.startswith("<pallas_shim/loop")
    del run
    gc.collect()
    assert files() == []
