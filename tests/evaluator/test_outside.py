"""Blocks outside their arrays are warned of, once, where that is certain."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.machine import faults

X = jnp.zeros((64, 128))


def lowered(index_map, rows=8, grid=(8,), **kwargs):
    """The warnings of a kernel with such an index map of its input."""

    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...]

    def f(x):
        return pl.pallas_call(
            kernel, grid=grid, in_specs=[pl.BlockSpec((rows, 128), index_map)],
            out_specs=pl.BlockSpec((rows, 128), lambda *i: (0, 0)),
            out_shape=jax.ShapeDtypeStruct((64, 128), X.dtype), interpret=True, **kwargs,
        )(x)  # fmt: skip

    faults._warned.clear()
    jaxpr = jax.make_jaxpr(f)(X)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            Executable(lower(jaxpr))(np.asarray(X))
    return [w for w in caught if w.category is faults.BlockWarning]


@pytest.mark.parametrize(
    ("index_map", "cell", "number"),
    [
        (lambda i: (8 * i, 0), (1,), 8),
        (lambda i: (i + 1, 0), (7,), 8),
        (lambda i: (i - 1, 0), (0,), -1),
        (lambda i: (0, i // 4), (4,), 1),
        (lambda i: (jnp.where(i == 5, 100, 0), 0), (5,), 100),
    ],
)
def test_a_block_outside_is_warned_of_once(index_map, cell, number):
    (said,) = lowered(index_map)
    text = str(said.message)
    assert f"in cell {cell}" in text and f"returns {number}," in text and "x_ref" in text
    assert said.filename.endswith("test_outside.py")


def test_the_hint_is_given_where_elements_would_fit():
    (elements,) = lowered(lambda i: (8 * i, 0))
    (other,) = lowered(lambda i: (i + 1000, 0))
    assert "block numbers, not elements" in str(elements.message)
    assert "block numbers, not elements" not in str(other.message)


@pytest.mark.parametrize(
    ("index_map", "rows", "grid"),
    [
        (lambda i: (i, 0), 8, (8,)),
        (lambda i: (i, 0), 24, (3,)),  # the last block sticks out
        (lambda i, j: ((i + j) % 8, 0), 8, (8, 8)),
        (lambda: (0, 0), 64, ()),
    ],
)
def test_blocks_inside_are_not(index_map, rows, grid):
    assert not lowered(index_map, rows, grid)
