"""Cells at once that take different branches and loop differently often."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl

from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes.constant_folding import fold_constants
from pallas_shim.evaluator.passes.dead_code import remove_dead_code
from pallas_shim.evaluator.passes.grid.grid_batching import batch_grids

from ..programs import names
from .test_grid_batching import F32, X, call, in_blocks, loops, row, whole

COUNTS = np.array([3, 0, 7, 1, 1, 12, 0, 2], np.int32)
TABLE = np.sort(np.random.default_rng(1).standard_normal(50)).astype(np.float32)
ONE = pl.BlockSpec((1,), lambda i: (i,))
TILE = pl.BlockSpec((1, 3, 16), lambda i, j: (i, j, 0))
BLOCK = pl.BlockSpec((1, 12, 16), row)


def counted(kernel, *more, out=BLOCK, shape=X.shape):
    """A kernel of a number, a block of X, and further whole arrays."""
    specs = [ONE, BLOCK, *[whole(x.shape) for x in more]]
    return call(kernel, (8,), specs, out, shape)


def test_loops_as_long_as_cells_say():
    def kernel(x, out):
        out[...] = lax.fori_loop(0, pl.program_id(0), lambda i, v: v * 2 + 1, x[...])

    assert loops(in_blocks(kernel, row, row), X) == []


@pytest.mark.parametrize("counts", [COUNTS, np.zeros_like(COUNTS), COUNTS * 0 + 4])
def test_a_loop_whose_carry_differs_only_later(counts):
    """What starts alike for all cells, and what never differs."""

    def kernel(n, x, out):
        def body(carry):
            i, v, same, array = carry
            return i + 1, v + i * x[0, 0, 0], same * 3, array + x[...]

        start = (jnp.int32(0), jnp.float32(0), jnp.int32(1), jnp.zeros_like(x[...]))
        i, v, same, array = lax.while_loop(lambda c: c[0] < n[0], body, start)
        out[...] = array + v + i.astype(F32) + same.astype(F32)

    assert loops(counted(kernel), counts, X) == []


def test_a_search_in_a_table():
    def kernel(wanted, table, out):
        def halve(bounds):
            low, high = bounds
            middle = (low + high) // 2
            less = table[middle] < wanted[0]
            return jnp.where(less, middle + 1, low), jnp.where(less, high, middle)

        low, _ = lax.while_loop(lambda b: b[0] < b[1], halve, (0, TABLE.size))
        out[0] = low.astype(F32)

    wanted = np.array([-9, 9, 0, 0.5, -0.5, TABLE[7], 1, np.nan], np.float32)
    f = call(kernel, (8,), [ONE, whole(TABLE.shape)], ONE, (8,))
    assert loops(f, wanted, TABLE) == []


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32])
def test_places_outside_a_table(dtype):
    """A negative place counts from the end; what is then outside is moved inside."""

    def kernel(n, x, table, out):
        at = n[0] * jnp.asarray(40, dtype)
        out[...] = x[...] + table[at] + table[pl.ds(at, 2)].sum()

    counts = np.array([0, 1, 2, 3, 251, 252, 255, 250], np.uint8).view(np.int8).astype(dtype)
    f = counted(kernel, TABLE)
    assert loops(f, counts, X, TABLE) == []


def test_loops_inside_such_a_loop():
    def kernel(n, x, out):
        def body(carry):
            i, v = carry
            v = lax.fori_loop(0, 3, lambda j, v: v * 0.5 + x[...] * j, v)
            return i + 1, lax.cond(i % 2 == 0, lambda v: v + 1, lambda v: -v, v)

        out[...] = lax.while_loop(lambda c: c[0] < n[0], body, (0, x[...]))[1]

    assert loops(counted(kernel), COUNTS, X) == []


def test_a_loop_that_might_not_end_for_others():
    """The inner loop ends only for cells that are still in the outer one."""

    def kernel(n, x, out):
        def body(carry):
            left, v = carry
            taken, _ = lax.while_loop(
                lambda c: c[1] < 5, lambda c: (c[0] + 1, c[1] + left), (0, jnp.int32(0))
            )
            return left - 1, v + taken.astype(F32)

        out[...] = lax.while_loop(lambda c: c[0] > 0, body, (n[0], x[...]))[1]

    assert loops(counted(kernel), COUNTS, X) == [(8,)]


def test_a_loop_that_stores():
    def kernel(n, x, out):
        out[...] = x[...]

        def body(i):
            out[0, 0] = x[0, i]
            return i + 1

        lax.while_loop(lambda i: i < n[0], body, 0)

    assert loops(counted(kernel), np.minimum(COUNTS, 11), X) == [(8,)]


def test_a_loop_that_stores_is_as_long_along_one_axis():
    """So the cells along the other axis run at once."""

    def kernel(n, x, out):
        def body(i):
            out[...] = x[...] * i
            return i + 1

        lax.while_loop(lambda i: i < n[0], body, 0)

    f = call(
        kernel, (8, 4), [pl.BlockSpec((1,), lambda i, j: (i,)), TILE], TILE, X.shape
    )
    assert loops(f, COUNTS + 1, X) == [(8,)]


def test_views_in_a_loop():
    def kernel(n, x, out):
        def body(carry):
            i, v = carry
            part = x.at[0, pl.ds(i, 2)]
            return i + 1, v + part[...] + part.at[1][...]

        start = (jnp.int32(0), jnp.zeros((2, 16), F32))
        out[0, :2] = lax.while_loop(lambda c: c[0] < n[0], body, start)[1]
        out[0, 2:] = x[0, 2:]

    assert loops(counted(kernel), COUNTS, X) == []


def test_a_loop_over_much():
    big = np.zeros((8, 64, 32), np.float32)
    spec = pl.BlockSpec((1, 64, 32), row)

    def kernel(n, x, out):
        out[...] = lax.fori_loop(0, n[0], lambda i, v: v + 1, x[...])

    assert loops(call(kernel, (8,), [ONE, spec], spec, big.shape), COUNTS, big) == [(8,)]


def test_branches():
    def kernel(n, x, out):
        def of(v):
            return [
                lambda: (v * 2, n[0]),
                lambda: (v // 0.0, n[0] // 0),
                lambda: (x[0, n[0]][None, None] + v, n[0] + 5),
            ]

        y, k = lax.switch(n[0] - 1, of(x[...]))
        y = lax.cond(k > 5, lambda: y + 1, lambda: y)
        out[...] = y + k.astype(F32)

    assert loops(counted(kernel), COUNTS, X) == []


def test_branches_that_store_or_may_not_end():
    def storing(n, x, out):
        out[...] = x[...]

        @pl.when(n[0] > 2)
        def _():
            out[...] = -x[...]

    def looping(n, x, out):
        out[...] = lax.cond(
            n[0] > 0,
            lambda v: lax.while_loop(lambda v: v[0, 0, 0] < 100, lambda v: v + n[0], v),
            lambda v: v,
            x[...],
        )

    for kernel in (storing, looping):
        assert loops(counted(kernel), COUNTS, X) == [(8,)]


def test_under_vmap():
    def kernel(n, x, out):
        out[...] = lax.fori_loop(0, n[0], lambda i, v: v + i, x[...])

    f = counted(kernel)
    many = jax.vmap(f)
    counts = np.stack([COUNTS, COUNTS[::-1]])
    assert loops(many, counts, np.stack([X, -X])) == []


def test_a_counting_loop():
    """Its rounds are cells. It carries nothing else: of a number that stays, JAX 0.8.0 makes a
    carry."""

    def kernel(n, out):
        def number(i, _):
            def body(c):
                return c[0] + 1, c[1] * 3 % 1000 + 1

            out[i] = lax.while_loop(lambda c: c[0] < n[i], body, (0, i))[1].astype(F32)

        lax.fori_loop(0, 8, number, None)

    f = pl.pallas_call(kernel, jax.ShapeDtypeStruct((8,), F32), interpret=True)
    assert loops(f, COUNTS) == []
    program = fold_constants(remove_dead_code(lower(jax.make_jaxpr(f)(COUNTS))))
    assert "scan" in names(program) and "scan" not in names(batch_grids(program))
