"""Masked loads and stores where no interpreter is asked for: what is masked out touches no memory,
wherever its place would be. The oracle is NumPy, element by element."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise
from tests.evaluator.rules.test_masked import load, out, store
from tests.evaluator.rules.test_triton import operation

SIZE, BLOCK = 24, 8
X = np.arange(1, SIZE + 1, dtype=np.float32)
Y = -np.arange(1, BLOCK + 1, dtype=np.float32)
STARTS = [-30, -8, -7, -1, 0, 5, 16, 17, 23, 24, 40]


def run(kernel, outs, *args, grid=()):
    """What a kernel gives, as lowered and as optimised, which is the same."""
    call = pl.pallas_call(kernel, out_shape=outs, grid=grid)
    program = lower(jax.make_jaxpr(call)(*args))
    results = [
        [np.asarray(r) for r in Executable(p)(*map(np.asarray, args))]
        for p in (program, optimise(program))
    ]
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    return results[0]


def places(start, stride=1):
    at = start + stride * np.arange(BLOCK)
    return at, (at >= 0) & (at < SIZE)


def loaded(at, mask, other=99.0):
    return np.array([X[i] if m else other for i, m in zip(at, mask, strict=True)], np.float32)


def stored(at, mask):
    result = X.copy()
    for i, m, y in zip(at, mask, Y, strict=True):
        if m:
            result[i] = y
    return result


@pytest.mark.parametrize("stride", (1, 2, 3))
@pytest.mark.parametrize("start", STARTS)
def test_a_slice(start, stride):
    at, mask = places(start, stride)

    def kernel(start, mask, x, y, o, got):
        place = (pl.ds(start[0], BLOCK, stride) if stride > 1 else pl.ds(start[0], BLOCK),)
        o[...] = x[...]
        got[...] = load(x.at[place], mask=mask[...], other=jnp.full(BLOCK, 99.0))
        store(o.at[place], y[...], mask=mask[...])

    o, got = run(kernel, (out(SIZE), out(BLOCK)), jnp.int32([start]), mask, X, Y)
    np.testing.assert_array_equal(got, loaded(at, mask))
    np.testing.assert_array_equal(o, stored(at, mask))


def test_a_slice_that_starts_where_it_is_known():
    start = -3
    at, mask = places(start)

    def kernel(mask, x, y, o, got):
        o[...] = x[...]
        got[...] = load(x.at[pl.ds(start, BLOCK)], mask=mask[...], other=jnp.full(BLOCK, 99.0))
        store(o.at[pl.ds(start, BLOCK)], y[...], mask=mask[...])

    o, got = run(kernel, (out(SIZE), out(BLOCK)), mask, X, Y)
    np.testing.assert_array_equal(got, loaded(at, mask))
    np.testing.assert_array_equal(o, stored(at, mask))


@pytest.mark.parametrize("outside", (-1, -30, 24, 999, 2, -2**31, 2**31 - 1))
def test_an_array_of_indices(outside):
    """What is masked out may also equal an index that isn't."""
    at = np.array([2, outside, 5, outside, outside, 7, 23, outside], np.int32)
    mask = np.array([True, False, True, False, False, True, True, False])

    def kernel(at, mask, x, y, o, got):
        o[...] = x[...]
        got[...] = load(x.at[at[...]], mask=mask[...], other=jnp.full(BLOCK, 99.0))
        store(o.at[at[...]], y[...], mask=mask[...])

    o, got = run(kernel, (out(SIZE), out(BLOCK)), at, mask, X, Y)
    np.testing.assert_array_equal(got, loaded(at, mask))
    np.testing.assert_array_equal(o, stored(at, mask))


@pytest.mark.parametrize("row, column", [(-1, -2), (0, 3), (3, 5), (-2, 7), (2, -9)])
def test_two_dimensions(row, column):
    x = np.arange(1, 33, dtype=np.float32).reshape(4, 8)
    y = -np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    rows, columns = row + np.arange(3)[:, None], column + np.arange(4)
    mask = (rows >= 0) & (rows < 4) & (columns >= 0) & (columns < 8)
    want, want_got = x.copy(), np.full((3, 4), 99, np.float32)
    for i, j in np.argwhere(mask):
        want_got[i, j] = x[row + i, column + j]
        want[row + i, column + j] = y[i, j]

    def kernel(at, mask, x, y, o, got):
        place = (pl.ds(at[0], 3), pl.ds(at[1], 4))
        o[...] = x[...]
        got[...] = load(x.at[place], mask=mask[...], other=jnp.full((3, 4), 99.0))
        store(o.at[place], y[...], mask=mask[...])

    o, got = run(kernel, (out(4, 8), out(3, 4)), jnp.int32([row, column]), mask, x, y)
    np.testing.assert_array_equal(got, want_got)
    np.testing.assert_array_equal(o, want)


def test_a_halo_in_every_cell():
    def kernel(x, o):
        i = pl.program_id(0)
        at = i * BLOCK - 1 + jnp.arange(BLOCK)
        halo = load(x.at[pl.ds(i * BLOCK - 1, BLOCK)], mask=at >= 0, other=jnp.zeros(BLOCK))
        o[pl.ds(i * BLOCK, BLOCK)] = halo

    (got,) = run(kernel, out(SIZE), X, grid=(SIZE // BLOCK,))
    np.testing.assert_array_equal(got, np.concatenate(([0], X[:-1])))


@pytest.mark.parametrize("start", STARTS)
def test_an_atomic_operation(start):
    at, mask = places(start)

    def kernel(start, mask, x, y, o):
        o[...] = x[...]
        operation("atomic_add")(o, (pl.ds(start[0], BLOCK),), y[...], mask=mask[...])

    (o,) = run(kernel, out(SIZE), jnp.int32([start]), mask, X, Y)
    want = X.copy()
    np.add.at(want, at[mask], Y[mask])
    np.testing.assert_array_equal(o, want)
