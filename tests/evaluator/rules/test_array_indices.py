"""Refs at arrays of indices against JAX's interpreter: one array a dimension or one beside slices,
with and without masks, negative and far ones, in refs of any dtype; and what is left to JAX's own
rule."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_shim.evaluator.rules import state
from tests import samples
from tests.oracle import check_kernel

load = getattr(plgpu, "load", None) or pl.load
store = getattr(plgpu, "store", None) or pl.store
INSIDE = np.int32([3, -1, 0, 0, 11, -12, 7, 7])
ANYWHERE = np.int32([3, -1, 12, 40, -13, -40, 2**31 - 1, -(2**31)])


@pytest.fixture
def without_discharge(monkeypatch):
    """Lets a test fail if a load or store is left to JAX's rule."""

    def refuse(lowering, eqn, ins):
        raise AssertionError(eqn)

    monkeypatch.setattr(state, "by_discharge", refuse)


def out(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
DTYPES = (samples.BOOL, *samples.INTEGERS, *samples.FLOATS, FLOAT8)


@pytest.mark.parametrize("dtype", [t for t in DTYPES if t.itemsize < 8], ids=str)
def test_of_a_vector(without_discharge, dtype):
    def kernel(at, x, y, loaded, stored):
        loaded[...] = x[at[...]]
        stored[...] = x[...]
        stored[at[...]] = y[...]

    x, y = np.arange(12).astype(dtype), np.arange(20, 28).astype(dtype)
    check_kernel(kernel, (out(8, dtype=dtype), out(12, dtype=dtype)), INSIDE, x, y)


@pytest.mark.parametrize("masked", (None, "without other", "other scalar", "other array"))
def test_pallas_own_load_and_store(without_discharge, masked):
    def kernel(at, x, y, loaded, stored):
        mask = jnp.arange(8) % 3 > 0 if masked else None
        other = {"other scalar": 7.0, "other array": jnp.full(8, -7.0)}.get(masked)
        places = jnp.arange(8) % 5, at[...]
        loaded[...] = load(x.at[places], mask=mask, other=other)
        stored[...] = x[...]
        store(stored.at[places], y[...], mask=mask)

    x, y = np.arange(60, dtype=np.float32).reshape(5, 12), -np.arange(1, 9, dtype=np.float32)
    check_kernel(kernel, (out(8), out(5, 12)), INSIDE, x, y)


def test_stores_outside_are_dropped(without_discharge):
    def kernel(at, y, o):
        o[...] = jnp.zeros(12)
        o[at[...]] = y[...]

    check_kernel(kernel, out(12), ANYWHERE, -np.arange(1, 9, dtype=np.float32))


def test_a_scalar_beside_an_array(without_discharge):
    def kernel(row, at, x, o):
        o[...] = x[row[0], at[...]] + x[1, at[...]] + load(x.at[row[0], at[...]])

    x = np.arange(60, dtype=np.float32).reshape(5, 12)
    check_kernel(kernel, out(8), np.int32([-2]), INSIDE, x)


def test_arrays_of_several_dimensions(without_discharge):
    def kernel(at, x, loaded, stored):
        rows, lanes = at[...].reshape(8, 1) % 5, at[...].reshape(1, 8)
        places = jnp.broadcast_to(rows, (8, 8)), jnp.broadcast_to(lanes, (8, 8))
        loaded[...] = x[places]
        stored[...] = x[...]
        stored[places] = jnp.ones((8, 8)) * rows

    x = np.arange(60, dtype=np.float32).reshape(5, 12)
    check_kernel(kernel, (out(8, 8), out(5, 12)), INSIDE, x)


@pytest.mark.parametrize("axis", (0, 1, 2))
def test_an_array_beside_slices(without_discharge, axis):
    def kernel(at, x, y, loaded, stored):
        places = [slice(1, 3), slice(None), slice(0, 4, 3)]
        places[axis] = at[...] % 4 - 2
        loaded[...] = x[tuple(places)]
        stored[...] = x[...]
        stored[tuple(places)] = y[...]

    x = np.arange(5 * 4 * 6, dtype=np.float32).reshape(5, 4, 6)
    shape = [2, 4, 2]
    shape[axis] = len(INSIDE)
    y = -np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    check_kernel(kernel, (out(*shape), out(5, 4, 6)), INSIDE, x, y)


def test_in_the_cells_of_a_grid(without_discharge):
    def kernel(x, o):
        lanes = pl.program_id(0) * 4 + jnp.arange(4)
        mask = lanes < 10
        store(o.at[lanes], load(x.at[lanes], mask=mask, other=0.0) + 1, mask=mask)

    x = np.arange(10, dtype=np.float32)
    check_kernel(kernel, out(10), x, grid=3)


@pytest.mark.parametrize("dtype", (np.int16, np.uint8, np.uint32), ids=str)
def test_other_indices_are_left_to_jax(dtype):
    def kernel(at, x, o):
        o[...] = x[at[...]]

    check_kernel(kernel, out(3), np.array([3, 200, 1]).astype(dtype), np.arange(250.0, dtype="f4"))
