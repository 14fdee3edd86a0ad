"""Index arrays that are slices: which are found, which must not be, and that nothing changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.experimental import pallas as pl

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise
from pallas_shim.evaluator.passes.common_subexpressions import share_common_subexpressions
from pallas_shim.evaluator.passes.constant_folding import fold_constants
from pallas_shim.evaluator.passes.dead_code import remove_dead_code
from pallas_shim.evaluator.passes.gather_to_slice import turn_gathers_into_slices

from .programs import names

X = np.arange(8 * 32, dtype=np.int32).reshape(8, 32) * 7 % 61
LINE = X.reshape(-1)[:64]


def run(kernel, *arrays, grid=(4,), shape=(64,), expect=None):
    """The names of what reads and writes memory after the pass; asserts that results are JAX's,
    with and without it."""
    f = pl.pallas_call(kernel, jax.ShapeDtypeStruct(shape, np.int32), grid=grid, interpret=True)
    program = lower(jax.make_jaxpr(f)(*arrays))
    program = share_common_subexpressions(fold_constants(remove_dead_code(program)))
    after = remove_dead_code(turn_gathers_into_slices(program))
    want = np.asarray(f(*arrays))
    for other in (after, optimise(program), optimise(program, skip={"gather_to_slice"})):
        (got,) = Executable(other)(*arrays)
        np.testing.assert_array_equal(got, want)
    kinds = {"gather", "scatter"} & set(names(after))
    if expect is not None:
        assert kinds == set(expect)
    return after


def at(i, size=16):
    return i * size + jnp.arange(size)


def test_loads_and_stores_at_consecutive_places_are_those_of_slices():
    def kernel(x, out):
        place = at(pl.program_id(0))
        out[place] = x[place] + 1

    after = run(kernel, LINE, expect=())
    assert not {"lt", "select_n"} & set(names(after))


def test_rows_of_matrices_and_loops_over_them():
    def kernel(x, out):
        columns = at(pl.program_id(0), 8)

        def body(i, total):
            rows = at(i, 2)
            return total + x[rows[:, None], columns[None, :]].sum(0) + x[3, columns] + x[rows][0, 0]

        out[columns] = lax.fori_loop(0, 4, body, jnp.zeros(8, jnp.int32))

    run(kernel, X, shape=(32,), expect=())


def test_masks_that_leave_nothing_out_are_gone():
    def kernel(x, out):
        place = at(pl.program_id(0))
        out[place] = jnp.where((place < 64) & (place >= 0), x[place], -1)

    after = run(kernel, LINE, expect=())
    assert not {"lt", "ge", "and", "select_n"} & set(names(after))


def test_masks_that_leave_something_out_stay():
    def kernel(x, out):
        place = at(pl.program_id(0))
        out[place] = jnp.where(place < 63, x[place], -1)

    after = run(kernel, LINE, expect=())
    assert "select_n" in names(after)


@pytest.mark.parametrize(
    "places",
    [
        lambda i: at(i) + 1,  # the last one is outside
        lambda i: at(i) - 1,  # the first is the array's last
        lambda i: 2 * jnp.arange(16) + i,
        lambda i: jnp.arange(16)[::-1] + i,
        lambda i: jnp.arange(16) // 2 + i,
        lambda i: at(i) * jnp.int32(1 << 28),  # wraps around
        lambda i: at(i * jnp.int32(1 << 28)),
    ],
)
def test_other_places_stay_arrays(places):
    def kernel(x, out):
        i = pl.program_id(0)
        out[at(i)] = x[places(i)]

    run(kernel, LINE, expect=("gather",))


def test_a_negative_place_is_moved_as_the_mode_says():
    dimensions = lax.GatherDimensionNumbers((), (0,), (0,))

    def kernel(x, out):
        i = pl.program_id(0)
        place = (at(i) + jnp.int32(-1))[:, None]
        out[at(i)] = lax.gather(x[...], place, dimensions, (1,), mode="clip")

    run(kernel, LINE, expect=("gather",))


def test_scalars_that_wrap_around_decide_nothing():
    def kernel(x, out):
        i = pl.program_id(0)
        place = at(i)
        far = (i + 1) * jnp.int32(1 << 30) * 2 + jnp.arange(16)
        out[place] = jnp.where(far < 0, x[place], -1)

    after = run(kernel, LINE, expect=())
    assert "lt" in names(after)


def test_indices_that_are_not_an_axis_each_stay_arrays():
    def kernel(x, out):
        i = pl.program_id(0)
        line = jnp.arange(8)
        some = i + jnp.arange(4)
        diagonal = jnp.tile(x[some, some], 2)
        transposed = x[line[None, :], (i + line)[:, None]]
        repeated = x[line[:, None], (i + jnp.zeros(8, jnp.int32))[None, :]]
        out[...] = diagonal + transposed + repeated

    run(kernel, X, shape=(8, 8), expect=("gather",))


def test_what_was_loaded_before_a_store_is_not_loaded_after_it():
    def kernel(x, out):
        place = at(pl.program_id(0))
        out[...] = x[...]
        before = out[...]
        out[...] = jnp.zeros(64, jnp.int32)
        out[place] = before[place]

    run(kernel, LINE, grid=(1,), expect=("gather",))


def test_a_loop_that_stores_makes_what_was_loaded_before_it_old():
    def kernel(x, out):
        out[...] = x[...]
        before = out[...]

        def body(i, _):
            out[at(i)] = before[at(i)] + before[at(3 - i)]
            return 0

        lax.fori_loop(0, 4, body, 0)
        out[at(1)] = before[at(2)]

    run(kernel, LINE, grid=(1,))


def test_a_scatter_into_what_the_ref_no_longer_holds_is_stored_whole():
    def kernel(x, out):
        place = at(pl.program_id(0))
        out[...] = x[...]
        changed = out[...].at[place].set(5)
        out[0] = -3
        out[...] = changed

    run(kernel, LINE, expect=("scatter",))


def test_a_scatter_that_adds_and_one_into_another_ref_stay():
    def kernel(x, out):
        place = at(pl.program_id(0))
        out[...] = x[...].at[place].set(5).at[place].add(2)

    run(kernel, LINE, expect=("scatter",))


@settings(
    derandomize=True,
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    scale=st.integers(-9, 20),
    offset=st.integers(-20, 60),
    size=st.sampled_from([1, 5, 16]),
    bound=st.integers(-2, 70),
    unsigned=st.booleans(),
    cells=st.integers(1, 4),
    step=st.sampled_from([-1, 1, 3]),
)  # fmt: skip
def test_any_places_and_masks(scale, offset, size, bound, unsigned, cells, step):
    dtype = jnp.uint32 if unsigned else jnp.int32

    def kernel(x, out):
        i = pl.program_id(0)

        def body(j, count):
            start = (i * scale + count + offset).astype(dtype)
            place = start + jnp.arange(size, dtype=dtype)
            keep = place < dtype(max(bound, 0) if unsigned else bound)
            out[place] = jnp.where(keep, x[place] + j, out[place])
            return count + step

        lax.fori_loop(0, 3, body, jnp.int32(2))
        out[0] = out[0] + i

    def safe(x, out):
        out[...] = x[...] * 0
        kernel(x, out)

    run(safe, LINE, grid=(cells,))
