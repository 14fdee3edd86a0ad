"""Pallas' own load and store against JAX's interpreter: masks, and slices that stick out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise
from tests.oracle import check_kernel, compare

load = getattr(plgpu, "load", None) or pl.load
store = getattr(plgpu, "store", None) or pl.store
STARTS = [-40, -21, -20, -9, -3, 0, 5, 11, 12, 13, 40]


def out(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    ("start", "dtype"),
    [(start, "float32") for start in STARTS]
    + [(9, dtype) for dtype in ("int8", "int16", "bfloat16", "bool")],
)
def test_load_of_a_slice_that_may_stick_out(start, dtype):
    def kernel(at, x, o):
        o[...] = load(x.at[pl.ds(at[0], 8)])

    x = jnp.arange(1, 13).astype(dtype)
    check_kernel(kernel, out(8, dtype=dtype), jnp.int32([start]), x)


@pytest.mark.parametrize("start", STARTS)
def test_store_of_a_slice_that_may_stick_out(start):
    def kernel(at, x, y, o):
        o[...] = x[...]
        store(o.at[pl.ds(at[0], 8)], y[...])

    x, y = jnp.arange(12.0), -jnp.arange(1.0, 9.0)
    check_kernel(kernel, out(12), jnp.int32([start]), x, y)


@pytest.mark.parametrize(("row", "start"), [(-1, 3), (0, -1), (0, 0), (3, 6), (4, 0), (9, 9)])
def test_masked_in_a_row_and_a_slice(row, start):
    def kernel(at, x, y, o, loaded, plain):
        mask = jnp.arange(4) % 3 > 0
        o[...] = x[...]
        place = (at[0], pl.ds(at[1], 4))
        loaded[...] = load(o.at[place], mask=mask, other=jnp.full(4, 7.0))
        plain[...] = load(o.at[place], mask=mask)
        store(o.at[place], y[...], mask=mask)

    x, y = jnp.arange(32.0).reshape(4, 8), -jnp.arange(1.0, 5.0)
    outs = (out(4, 8), out(4), out(4))
    check_kernel(kernel, outs, jnp.int32([row, start]), x, y, interpret=True)


def test_masked_where_it_is_known_to_stay_inside():
    def kernel(x, y, o, loaded):
        mask = y[...] > 2
        o[...] = x[...]
        loaded[...] = load(o.at[pl.ds(2, 4)], mask=mask, other=-1.0)
        store(o.at[4:], y[...], mask=mask)

    x, y = jnp.arange(8.0), jnp.arange(4.0)
    check_kernel(kernel, (out(8), out(4)), x, y)


@pytest.mark.parametrize("start", [0, 3, 7])
@pytest.mark.parametrize("row", [0, 2])
def test_masked_in_a_part_of_a_part(row, start):
    """JAX's interpreter refuses to store there: it takes the part for the whole."""

    def kernel(at, x, y, o, loaded, kept):
        o[...], kept[...] = x[...], x[...]
        rows = o.at[pl.ds(at[0], 2)]
        mask = jnp.arange(4) % 3 > 0
        loaded[...] = load(rows.at[1, pl.ds(at[1], 4)], mask=mask, other=jnp.full(4, 7.0))
        store(rows.at[1, pl.ds(at[1], 4)], y[...], mask=mask)
        store(kept.at[1:2].at[...], x[2:3] + 1, mask=x[2:3] % 2 == 0)

    x, y = np.arange(40, dtype=np.float32).reshape(4, 10), -np.arange(1, 5, dtype=np.float32)
    mask = np.arange(4) % 3 > 0
    want, kept = x.copy(), x.copy()
    kept[1, ::2] = x[2, ::2] + 1
    inside = (at := start + np.arange(4)) < 10
    want[row + 1, at[mask & inside]] = y[mask & inside]
    call = pl.pallas_call(kernel, out_shape=(out(4, 10), out(4), out(4, 10)))
    program = lower(jax.make_jaxpr(call)(jnp.int32([row, start]), x, y))
    for p in (program, optimise(program)):
        got = Executable(p)(np.int32([row, start]), x, y)
        compare(got[0], want)
        compare(got[1][inside], np.where(mask, x[row + 1][at.clip(0, 9)], 7)[inside])
        compare(got[2], kept)


@pytest.mark.parametrize("shape", [(1, 8), (4, 1), (8,), ()])
def test_a_mask_of_fewer_dimensions(shape):
    def kernel(at, y, mask, o, loaded):
        place = (pl.ds(at[0], 4), pl.ds(0, 8))
        o[...] = jnp.zeros_like(o)
        loaded[...] = load(y.at[place], mask=mask[...], other=jnp.full((1, 8), 7.0))
        store(o.at[place], y[...], mask=mask[...])

    mask = np.random.default_rng(0).integers(0, 2, shape).astype(bool)
    y = jnp.arange(1, 33.0).reshape(4, 8)
    check_kernel(kernel, (out(6, 8), out(4, 8)), jnp.int32([3]), y, jnp.asarray(mask))


def test_in_the_cells_of_a_grid():
    """The last slice of 5 sticks out of the row of 13. Cells run at once."""

    def kernel(x, o):
        def step(i, _):
            at = pl.ds(i * 5, 5)
            mask = i * 5 + jnp.arange(5) < 13
            store(o.at[at], load(x.at[at], mask=mask, other=0.0) * 2, mask=mask)
            return 0

        jax.lax.fori_loop(0, 3, step, 0)

    row = pl.BlockSpec((None, 13), lambda i: (i, 0))
    call = pl.pallas_call(
        kernel, grid=(6,), in_specs=[row], out_specs=row, out_shape=out(6, 13), interpret=True
    )
    x = jnp.arange(6 * 13.0).reshape(6, 13)
    program = optimise(lower(jax.make_jaxpr(call)(x)))
    names = {instruction.name for instruction in program.top.walk()}
    # By rules of their own, not by what JAX makes of them.
    assert {"slice_sticking_out", "update_sticking_out"} <= names
    assert not names & {"grid", "pad", "dynamic_slice", "dynamic_update_slice"}
    (got,) = Executable(program)(np.asarray(x))
    compare(got, np.asarray(jax.jit(call)(x)))
