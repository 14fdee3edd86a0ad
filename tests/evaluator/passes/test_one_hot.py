"""`one_hot`: what it makes of masks that are true at one place, in NumPy and natively."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pallas_shim.evaluator.codegen.native.expanding import expanded
from pallas_shim.evaluator.compiler import ALL_PASSES, make_program, prepare
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes.constant_folding import fold_constants
from pallas_shim.evaluator.passes.dead_code import remove_dead_code
from pallas_shim.evaluator.passes.one_hot import OneHot
from pallas_shim.evaluator.verify import verify

from .programs import names

ROWS, COLUMNS = 8, 512
rng = np.random.default_rng(0)
X = rng.standard_normal((ROWS, COLUMNS)).astype(np.float32)
X[1, 3], X[2, 5], X[3, 7] = -0.0, np.nan, -np.inf
# Inside, at both ends, and outside.
AT = np.array([0, 3, 5, 7, COLUMNS - 1, COLUMNS, -1, -(2**31)], np.int32).reshape(ROWS, 1)


def columns(shape=(ROWS, COLUMNS), axis=1):
    return lax.broadcasted_iota(jnp.int32, shape, axis)


def element(x, at):
    return jnp.sum(jnp.where(columns() == at, x, 0), axis=1)


def replaced(x, at):
    return jnp.where(columns() == at, -jnp.inf, x)


def first(x, at):
    return jnp.min(jnp.where(x > 1 + at, columns(), COLUMNS), axis=1)


def bits(array):
    return np.asarray(array).tobytes()


def check(f, *args):
    """The names of what the pass leaves. The results have the same bits without it, with it, and
    expanded for native code."""
    program = fold_constants(lower(jax.make_jaxpr(f)(*args), (), "f"))
    changed = remove_dead_code(OneHot.run(program))
    verify(changed)
    back = expanded(changed)
    verify(back)
    made = {"first_true", "one_hot_get", "one_hot_set"}
    assert made.isdisjoint(names(back))
    before, after, again = [
        [bits(result) for result in prepare(each, ALL_PASSES)(*args)]
        for each in (program, changed, back)
    ]
    assert before == after == again
    return names(changed)


@pytest.mark.parametrize(
    ("f", "name"), [(element, "one_hot_get"), (replaced, "one_hot_set"), (first, "first_true")]
)
def test_a_mask_that_is_true_once_becomes_a_place(f, name):
    found = check(f, X, AT)
    assert name in found and "select_n" not in found


def test_no_element_is_the_least_index_of_a_row_without_true_ones():
    nowhere = np.full((ROWS, 1), 2**30, np.int32)
    assert "first_true" in check(first, X, nowhere)
    assert "first_true" in check(first, X, np.where(np.arange(ROWS) < 4, nowhere.T, AT.T).T)


def test_integers_of_any_kind_and_other_axes():
    ints = rng.integers(-9, 9, (COLUMNS, ROWS)).astype(np.int32)
    at = AT.reshape(1, ROWS)
    along_0 = columns((COLUMNS, ROWS), 0)
    assert "one_hot_get" in check(
        lambda x, at: jnp.sum(jnp.where(at == along_0, x, 0), axis=0), ints, at
    )
    assert "one_hot_set" in check(lambda x, at: jnp.where(along_0 == at, 7, x), ints, at)
    unsigned = at.astype(np.uint32)
    along = along_0.astype(jnp.uint32)
    assert "one_hot_set" in check(lambda x, at: jnp.where(along == at, 7, x), ints, unsigned)


def test_one_place_for_all_rows_and_a_single_row():
    assert "one_hot_set" in check(lambda x, at: jnp.where(columns() == at, 0, x), X, AT[4, 0])
    line, long = np.arange(4096, dtype=np.float32), lax.iota(jnp.int32, 4096)
    for at in (np.int32(7), np.int32(4096)):
        get = lambda x, at: jnp.sum(jnp.where(long == at, x, 0))  # noqa: E731
        assert "one_hot_get" in check(get, line, at)
        assert "one_hot_set" in check(lambda x, at: jnp.where(long == at, 0, x), line, at)
        least = lambda x, at: jnp.min(jnp.where(x > at, long, 4096))  # noqa: E731
        assert "first_true" in check(least, line, at)


def test_other_masks_and_sums_are_left_alone():
    made = {"first_true", "one_hot_get", "one_hot_set"}
    others = [
        lambda x, at: jnp.sum(jnp.where(columns() == at, x, -0.0), axis=1),
        lambda x, at: jnp.sum(jnp.where(columns() == at, x, 1), axis=1),
        lambda x, at: jnp.sum(jnp.where(columns() == at, x, 0), axis=0),
        lambda x, at: jnp.sum(jnp.where(columns() <= at, x, 0), axis=1),
        lambda x, at: jnp.sum(jnp.where(2 * columns() == at, x, 0), axis=1),
        lambda x, at: jnp.sum(jnp.where(columns(axis=0) == at, x, 0), axis=1),
        lambda x, at: jnp.min(jnp.where(x > 0, columns(), COLUMNS - 2), axis=1),
        lambda x, at: jnp.min(jnp.where(x > 0, columns(axis=0), COLUMNS), axis=1),
        lambda x, at: jnp.max(jnp.where(x > 0, columns(), COLUMNS), axis=1),
        lambda x, at: jnp.where(columns() == at, x, -jnp.inf),
        lambda x, at: jnp.where(columns() == at, x[:, ::-1], x),
    ]
    for f in others:
        assert made.isdisjoint(check(f, X, AT))


def test_the_pipeline_makes_them_of_blocks():
    from jax.experimental import pallas as pl

    def kernel(x_ref, out_ref):
        x = x_ref[...]
        best = jnp.max(x, axis=1, keepdims=True)
        at = jnp.min(jnp.where(x == best, columns(), COLUMNS), axis=1, keepdims=True)
        out_ref[...] = jnp.where(columns() == at, -jnp.inf, x)

    spec = pl.BlockSpec((ROWS, COLUMNS), lambda i: (i, 0))
    x = np.concatenate([X, X[::-1]])
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    f = pl.pallas_call(kernel, out, grid=(2,), in_specs=[spec], out_specs=spec, interpret=True)
    jaxpr = jax.make_jaxpr(f)(x)
    program = make_program(jaxpr, name="f")
    assert {"first_true", "one_hot_set"} <= set(names(program))
    without = make_program(jaxpr, name="f", options=ALL_PASSES._replace(skip={"one_hot"}))
    assert bits(prepare(program)(x)[0]) == bits(prepare(without)(x)[0])
