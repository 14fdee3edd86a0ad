"""Cells of a grid at once: what is, what must not be, and that nothing else changes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise
from pallas_shim.evaluator.passes.constant_folding import fold_constants
from pallas_shim.evaluator.passes.dead_code import remove_dead_code
from pallas_shim.evaluator.passes.grid import grid_batching
from pallas_shim.evaluator.passes.grid.grid_batching import batch_grids

from ..programs import names
from ..test_batching import SAMPLES, TILES

X = np.random.default_rng(0).integers(-50, 50, (8, 12, 16)).astype(np.float32) / 4
F32 = jnp.float32


def whole(shape):
    return pl.BlockSpec(shape, lambda *_: (0,) * len(shape))


def call(kernel, grid, ins, outs, shape, **options):
    """``kernel`` on one output of float32."""
    return pl.pallas_call(
        kernel, jax.ShapeDtypeStruct(shape, F32), grid=grid, in_specs=ins, out_specs=outs,
        interpret=True, **options,
    )  # fmt: skip


def loops(f, *args):
    """The sizes of the grids that are left after the pass; asserts that it changes no bit,
    neither alone nor among the others."""
    program = fold_constants(remove_dead_code(lower(jax.make_jaxpr(f)(*args))))
    after = batch_grids(program)
    arrays = list(map(np.asarray, args))
    want = [x.tobytes() for x in Executable(program)(*arrays)]
    for other in (after, optimise(program), optimise(program, skip={"grid_batching"})):
        assert [x.tobytes() for x in Executable(other)(*arrays)] == want
    return [
        tuple(int(size.const) if size.const is not None else None for size in i.ins)
        for i in after.top.walk()
        if i.name == "grid"
    ]


def in_blocks(kernel, *index_maps, grid=(8,), block=(1, 12, 16), shape=X.shape, **options):
    """Runs ``kernel`` with blocks of X, its result's index map coming last."""
    specs = [pl.BlockSpec(block, index_map) for index_map in index_maps]
    return call(kernel, grid, specs[:-1], specs[-1], shape, **options)


def row(i, *_):
    return i, 0, 0


def double(x, out):
    out[...] = 2 * x[...]


# -- what runs at once ------------------------------------------------------------------------


def test_all_cells_at_once():
    assert loops(in_blocks(double, row, row), X) == []


def test_blocks_in_two_dimensions():
    def kernel(x, y, out):
        out[...] = x[...].T + y[...]

    f = call(
        kernel, (3, 4), [pl.BlockSpec((8, 4), lambda i, j: (j, i)), whole((4, 8))],
        pl.BlockSpec((4, 8), lambda i, j: (i, j)), (12, 32),
    )  # fmt: skip
    assert loops(f, X.reshape(-1)[: 32 * 12].reshape(32, 12), X[0, :4, :8]) == []


def test_what_stores_by_arrays_of_indices_leave_unused_keeps_no_cells_apart():
    """Lowering loads all that such a store may write to, which a store of a slice doesn't need."""

    def kernel(x, out):
        place = pl.program_id(0) * 4 + jnp.arange(4)
        out[place] = lax.fori_loop(0, 3, lambda i, sum: sum + x[i, place], jnp.zeros(4))

    f = pl.pallas_call(kernel, jax.ShapeDtypeStruct((16,), F32), grid=(4,), interpret=True)
    program = lower(jax.make_jaxpr(f)(X[0]))
    (want,) = Executable(program)(X[0])
    assert "grid" not in names(optimise(program))
    assert "grid" in names(optimise(program, skip={"dead_code"}))
    for other in (optimise(program), optimise(program, skip={"dead_code"})):
        np.testing.assert_array_equal(Executable(other)(X[0])[0], want)


@pytest.mark.parametrize("size", [8, 7, 13])
def test_chunks_of_any_number_of_cells(size, monkeypatch):
    monkeypatch.setattr(grid_batching, "_LARGEST_STACK", 3 * 16 * 4)
    f = call(double, (size,), [pl.BlockSpec((1, 16), lambda i: (i, 0))],
             pl.BlockSpec((1, 16), lambda i: (i, 0)), (size, 16))  # fmt: skip
    steps = loops(f, X.reshape(-1, 16)[:size])
    assert steps == {8: [(4,)], 7: [(2,)], 13: [(4,)]}[size]


@pytest.mark.parametrize("size, rounds", [(128, [(2,)]), (64, [])])
def test_cells_with_a_large_product_stay_in_a_cache(size, rounds):
    """Five arrays of 64 kB for each of eight cells, or of 16 kB."""

    def kernel(x, y, out):
        out[...] = jnp.exp(jnp.dot(x[...], y[...])) + 1

    f = call(kernel, (8,), [pl.BlockSpec((size, size), lambda i: (i, 0)), whole((size, size))],
             pl.BlockSpec((size, size), lambda i: (i, 0)), (8 * size, size))  # fmt: skip
    x = np.linspace(-0.1, 0.1, 8 * size * size, dtype=np.float32).reshape(8 * size, size)
    assert loops(f, x, x[:size]) == rounds


def test_edge_blocks():
    f = call(double, (3,), [pl.BlockSpec((5, 16), lambda i: (i, 0))],
             pl.BlockSpec((5, 16), lambda i: (i, 0)), (12, 16))  # fmt: skip
    assert loops(f, X[0]) == []


def test_index_maps_of_any_kind():
    """Blocks that are read may come back, lie in any order, and overlap."""

    def kernel(a, b, c, out):
        out[...] = a[...] - b[...] * c[...]

    maps = [lambda i: (i // 3, 0, 0), lambda i: (7 - i, 0, 0), lambda i: (lax.rem(i * 3, 8), 0, 0)]
    assert loops(in_blocks(kernel, *maps, lambda i: (7 - i, 0, 0)), X, X, X) == []


def test_an_output_in_any_order():
    permuted = in_blocks(double, row, lambda i: (lax.rem(i * 3, 8), 0, 0))
    assert loops(permuted, X) == []


def test_blocks_that_are_looked_up():
    def kernel(table, x, out):
        out[...] = x[...] + table[pl.program_id(0)].astype(F32)

    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, grid=(8,),
        in_specs=[pl.BlockSpec((1, 12, 16), lambda i, t: (t[i], 0, 0))],
        out_specs=pl.BlockSpec((1, 12, 16), lambda i, t: (i, 0, 0)),
    )  # fmt: skip
    f = pl.pallas_call(kernel, jax.ShapeDtypeStruct(X.shape, F32), grid_spec=spec, interpret=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_batching, "_ONE_BY_ONE", 0)
        assert loops(f, np.array([3, 3, 0, 7, 9, -1, 2, 1], np.int32), X) == []


def test_program_ids_as_values():
    def kernel(x, out):
        i = pl.program_id(0)
        lanes = lax.broadcasted_iota(jnp.int32, (1, 12, 16), 2) + i * 16
        out[...] = jnp.where(lanes % 3 == i % 2, x[...], i.astype(F32)) + pl.num_programs(0)

    assert loops(in_blocks(kernel, row, row), X) == []


def test_rows_of_whole_refs():
    def kernel(x, out):
        i = pl.program_id(0)
        out[pl.ds(i * 2, 2)] = x[pl.ds(6 - i * 2, 2)] * 2 + x[i][None]

    f = call(kernel, (4,), [whole(X.shape)], whole(X.shape), X.shape)
    assert loops(f, X) == []


def test_refs_seen_in_another_form():
    def kernel(x, out):
        out.at[0].reshape(16, 12)[...] = x.at[0, 2:6].reshape(8, 8)[...].sum() + jnp.ones((16, 12))

    assert loops(in_blocks(kernel, row, row), X) == []


def test_loads_and_stores_at_places_that_the_data_says():
    def kernel(x, out):
        out[...] = x[...]
        at = jnp.abs(x[0, 0, 0].astype(jnp.int32)) % 12
        out[0, at] = x[0, (at + 5) % 12] * 2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_batching, "_ONE_BY_ONE", 0)
        assert loops(in_blocks(kernel, row, row), X) == []


def test_loops_inside():
    def kernel(x, out, scratch):
        scratch[...] = x[...]

        def body(i, carry):
            total, n = carry
            scratch[0, i] = scratch[0, i] + total
            return total + x[0, i], n + 1

        total, n = lax.fori_loop(0, 12, body, (jnp.zeros(16), 0))
        running, rows = lax.scan(lambda c, r: (c + r, c * 2), jnp.zeros(16), x[0])
        out[0] = scratch[0] + total + rows + running + n

    f = in_blocks(kernel, row, row, scratch_shapes=[pltpu.VMEM((1, 12, 16), F32)])
    assert loops(f, X) == []


@pytest.mark.parametrize("cells", [3, 12])
def test_a_scan_over_rows_of_as_many_as_there_are_cells(cells):
    def kernel(x, out):
        total, rows = lax.scan(lambda c, row: (c + row, c * row), jnp.zeros(16), x[...])
        out[...] = rows + total

    x = np.random.default_rng(0).integers(-9, 9, (cells, 12, 16)).astype(np.float32)
    block = pl.BlockSpec((None, 12, 16), lambda i: (i, 0, 0))
    assert loops(call(kernel, (cells,), [block], block, x.shape), x) == []


def test_a_while_loop_as_long_for_all():
    def kernel(n, x, out):
        def body(carry):
            i, v = carry
            return i + 1, v + i.astype(F32) * x[...]

        out[...] = lax.while_loop(lambda c: c[0] < n[0], body, (0, x[...]))[1]

    f = call(kernel, (8,), [whole((1,)), pl.BlockSpec((1, 12, 16), row)],
             pl.BlockSpec((1, 12, 16), row), X.shape)  # fmt: skip
    assert loops(f, np.array([5], np.int32), X) == []


def test_memory_of_a_cell_alone():
    def kernel(x, out):
        def body(ref):
            ref[0, :4] = x[0, :4]
            out[...] = jnp.nan_to_num(ref[...])

        pl.run_scoped(body, pltpu.VMEM((1, 12, 16), F32))

    assert loops(in_blocks(kernel, row, row), X) == []


def test_primitives_without_a_form_of_their_own():
    def kernel(x, out):
        y = lax.dynamic_update_slice(x[0], x[0, :2, :3], (pl.program_id(0), 1))
        out[0] = jnp.cumsum(y, 0) + (y @ x[0, 0])[:, None] + lax.sort(y, dimension=1).sum()

    assert loops(in_blocks(kernel, row, row), X) == []


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8, jnp.bool_])
def test_types(dtype):
    def kernel(x, y, out):
        z = x[...].astype(F32) + y[...].astype(F32)
        out[...] = (z * 2).astype(dtype)

    f = pl.pallas_call(
        kernel, jax.ShapeDtypeStruct(X.shape, dtype), grid=(8, 3), interpret=True,
        in_specs=[pl.BlockSpec((1, 4, 16), lambda i, j: (i, j, 0)),
                  pl.BlockSpec((1, 4, 16), lambda i, j: (0, j, 0))],
        out_specs=pl.BlockSpec((1, 4, 16), lambda i, j: (i, j, 0)),
    )  # fmt: skip
    assert loops(f, jnp.asarray(X, dtype), jnp.asarray(X, dtype)) == []


def test_under_vmap():
    f = jax.vmap(jax.vmap(in_blocks(double, row, row)))
    assert loops(f, np.stack([X, -X])[:, None]) == []


def test_an_array_that_is_not_contiguous():
    program = optimise(lower(jax.make_jaxpr(in_blocks(double, row, row))(X)))
    x = np.ascontiguousarray(X.transpose(1, 2, 0)).transpose(2, 0, 1)
    assert np.array_equal(Executable(program)(x)[0], 2 * X)


# -- matrices ---------------------------------------------------------------------------------


def product(x, y, out, total):
    @pl.when(pl.program_id(2) == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    total[...] += jnp.dot(x[...], y[...], preferred_element_type=F32)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        out[...] = total[...].astype(out.dtype)


def matmul(kernel=product, grid=(4, 3, 2), order=lambda i, j, k: (i, j, k)):
    def spec(block, choose):
        return pl.BlockSpec(block, lambda *at: choose(*order(*at)))

    return call(
        kernel, grid, [spec((2, 8), lambda i, j, k: (i, k)), spec((8, 4), lambda i, j, k: (k, j))],
        spec((2, 4), lambda i, j, k: (i, j)), (8, 12), scratch_shapes=[pltpu.VMEM((2, 4), F32)],
    )  # fmt: skip


def test_scratch_along_the_innermost_axis():
    assert loops(matmul(), X[0, :8], X[1, :, :12].repeat(2, 0)[:16]) == [(2,)]


def test_scratch_that_is_stored_to_in_parts():
    def kernel(x, out, left):
        left[0, :4] = x[0, :4]
        left[0, 4:] = 2 * x[0, 4:] + left[0, :1]
        out[...] = left[...]

    f = in_blocks(kernel, row, row, scratch_shapes=[pltpu.VMEM((1, 12, 16), F32)])
    assert loops(f, X) == []


def test_an_output_that_is_added_to():
    def kernel(x, y, out, _):
        @pl.when(pl.program_id(2) == 0)
        def _():
            out[...] = jnp.zeros_like(out)

        out[...] += x[...] @ y[...]

    assert loops(matmul(kernel), X[0, :8], X[1, :, :12].repeat(2, 0)[:16]) == [(2,)]


def test_added_to_in_another_order():
    """Along an outer axis too, for what is added to is then the output, which is apart."""

    def kernel(x, y, out, _):
        @pl.when(pl.program_id(0) == 0)
        def _():
            out[...] = jnp.zeros_like(out)

        out[...] += x[...] @ y[...]

    f = matmul(kernel, (2, 4, 3), lambda k, i, j: (i, j, k))
    assert loops(f, X[0, :8], X[1, :, :12].repeat(2, 0)[:16]) == [(2,)]


# -- what must not ----------------------------------------------------------------------------


def accumulate(x, out):
    out[...] += x[...]


def refused(f, *args, grid):
    assert loops(f, *args) == [grid]


def test_an_output_block_that_comes_back():
    def kernel(x, out):
        @pl.when(pl.program_id(0) == 0)
        def _():
            out[...] = jnp.zeros_like(out)

        out[...] += x[...]

    refused(in_blocks(kernel, row, lambda i: (0, 0, 0)), X, grid=(8,))


@pytest.mark.parametrize(
    "index_map",
    [lambda i: (i // 2, 0, 0), lambda i: (lax.rem(i, 4), 0, 0), lambda i: (jnp.minimum(i, 6), 0, 0),
     lambda i: (i + 3, 0, 0)],
    ids=["halved", "periodic", "limited", "clamped"],
)  # fmt: skip
def test_an_index_map_that_is_not_injective(index_map):
    refused(in_blocks(double, row, index_map), X, grid=(8,))


def test_blocks_that_overlap():
    f = call(
        double, (5,), [pl.BlockSpec((pl.Element(4), pl.Element(16)), lambda i: (i * 2, 0))],
        pl.BlockSpec((pl.Element(4), pl.Element(16)), lambda i: (i * 2, 0)), (12, 16),
    )  # fmt: skip
    refused(f, X[0], grid=(5,))


def test_a_sum_of_indices_is_apart_along_one_axis():
    f = in_blocks(double, lambda i, j: (i, 0, 0), lambda i, j: (i + j, 0, 0), grid=(4, 5))
    (grid,) = loops(f, X)
    assert np.prod(grid) >= 4


def test_a_row_that_the_cell_before_wrote():
    def kernel(x, out):
        i = pl.program_id(0)
        out[i] = x[i] + out[jnp.maximum(i - 1, 0)]

    f = call(kernel, (8,), [whole(X.shape)], whole(X.shape), X.shape)
    refused(f, X, grid=(8,))


def test_a_row_that_a_later_cell_writes():
    def kernel(x, out):
        i = pl.program_id(0)
        out[i] = x[i] + jnp.nan_to_num(out[jnp.minimum(i + 1, 7)])

    f = call(kernel, (8,), [whole(X.shape)], whole(X.shape), X.shape)
    refused(f, X, grid=(8,))


def test_an_alias_that_other_cells_read():
    """Where this JAX lets cells see it: the input's buffer is then written to."""

    def kernel(x, before, out):
        out[...] = x[...] + before[...]

    specs = [pl.BlockSpec((1, 12, 16), m) for m in (row, lambda i: ((i + 7) % 8, 0, 0), row)]
    f = call(kernel, (8,), specs[:2], specs[2], X.shape, input_output_aliases={1: 0})
    assert loops(f, X, X) in ([], [(8,)])


def test_scratch_that_is_carried():
    def kernel(x, out, total):
        @pl.when(pl.program_id(0) == 0)
        def _():
            total[...] = jnp.zeros_like(total)

        total[...] += x[...]
        out[...] = total[...]

    f = in_blocks(kernel, row, row, scratch_shapes=[pltpu.VMEM((1, 12, 16), F32)])
    refused(f, X, grid=(8,))


def test_scratch_that_is_read_before_it_is_stored_to():
    def kernel(x, out, left):
        out[...] = jnp.nan_to_num(left[...])
        left[...] = x[...]

    f = in_blocks(kernel, row, row, scratch_shapes=[pltpu.VMEM((1, 12, 16), F32)])
    refused(f, X, grid=(8,))


def test_scratch_that_is_stored_to_in_part():
    def kernel(x, out, left):
        left[0, pl.ds(pl.program_id(0), 4)] = x[0, :4]
        out[...] = jnp.nan_to_num(left[...])

    f = in_blocks(kernel, row, row, scratch_shapes=[pltpu.VMEM((1, 12, 16), F32)])
    refused(f, X, grid=(8,))


def test_scratch_that_a_loop_may_not_store_to():
    def kernel(n, x, out, left):
        @pl.loop(0, n[0])
        def _(_):
            left[...] = x[...]

        out[...] = jnp.nan_to_num(left[...])

    f = call(kernel, (8,), [whole((1,)), pl.BlockSpec((1, 12, 16), row)],
             pl.BlockSpec((1, 12, 16), row), X.shape,
             scratch_shapes=[pltpu.VMEM((1, 12, 16), F32)])  # fmt: skip
    refused(f, np.array([1], np.int32), X, grid=(8,))


def test_scratch_of_which_the_first_cell_stores_less_than_others_read():
    def kernel(x, out, left):
        @pl.when(pl.program_id(1) == 0)
        def _():
            left[0, :2] = x[0, :2]
            out[...] = jnp.zeros_like(out)

        @pl.when(pl.program_id(1) == 1)
        def _():
            out[...] = jnp.nan_to_num(left[...])
            left[...] = x[...]

    f = in_blocks(
        kernel, lambda i, j: (i, j, 0), lambda i, j: (i, j, 0), grid=(8, 2), block=(1, 6, 16),
        scratch_shapes=[pltpu.VMEM((1, 6, 16), F32)],
    )  # fmt: skip
    refused(f, X, grid=(8, 2))


def test_scratch_that_only_some_cells_store_to():
    def kernel(x, out, left):
        @pl.when(pl.program_id(0) % 2 == 0)
        def _():
            left[...] = x[...]

        out[...] = left[...]

    f = in_blocks(kernel, row, row, scratch_shapes=[pltpu.VMEM((1, 12, 16), F32)])
    refused(f, X, grid=(8,))


def test_scratch_that_the_last_axis_shares():
    """Each (k, i) reads what the cell before it left, though k == 0 stores first."""

    def kernel(x, out, total):
        @pl.when(pl.program_id(0) == 0)
        def _():
            total[...] = x[...]

        total[...] += x[...]
        out[...] = total[...]

    f = in_blocks(
        kernel, lambda k, i: (i, 0, 0), lambda k, i: (i, k, 0), grid=(2, 8), block=(1, 6, 16),
        scratch_shapes=[pltpu.VMEM((1, 6, 16), F32)],
    )  # fmt: skip
    assert (2, 8) in [tuple(sorted(grid)) for grid in loops(f, X)]


def test_branches_that_cells_decide():
    def kernel(x, out):
        out[...] = x[...]

        @pl.when(x[0, 0, 0] > 0)
        def _():
            out[...] = -x[...]

    refused(in_blocks(kernel, row, row), X, grid=(8,))


def test_a_branch_along_one_axis():
    def kernel(x, out):
        out[...] = x[...]

        @pl.when(pl.program_id(1) >= pl.num_programs(1) // 2)
        def _():
            out[...] = -x[...]

    f = in_blocks(
        kernel, lambda i, j: (i, j, 0), lambda i, j: (i, j, 0), grid=(8, 4), block=(1, 3, 16)
    )
    assert loops(f, X) == [(4,)]


def test_output_blocks_that_are_looked_up():
    def kernel(table, x, out):
        out[...] = x[...]

    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, grid=(8,), in_specs=[pl.BlockSpec((1, 12, 16), row)],
        out_specs=pl.BlockSpec((1, 12, 16), lambda i, t: (t[i], 0, 0)),
    )  # fmt: skip
    f = pl.pallas_call(kernel, jax.ShapeDtypeStruct(X.shape, F32), grid_spec=spec, interpret=True)
    refused(f, np.arange(8, dtype=np.int32), X, grid=(8,))


def test_what_is_printed_stays_in_order():
    def kernel(x, out):
        pl.debug_print("{}", pl.program_id(0))
        out[...] = x[...]

    refused(in_blocks(kernel, row, row), X, grid=(8,))


def test_a_grid_whose_size_is_an_argument():
    def f(n, x):
        return pl.pallas_call(
            double, jax.ShapeDtypeStruct(X.shape, F32), grid=(n,), interpret=True,
            in_specs=[pl.BlockSpec((1, 12, 16), row)], out_specs=pl.BlockSpec((1, 12, 16), row),
        )(x)  # fmt: skip

    refused(f, np.int32(8), X, grid=(None,))


def test_dimension_semantics_prove_nothing():
    f = in_blocks(
        accumulate, row, lambda i: (0, 0, 0),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
    )  # fmt: skip
    refused(f, X, grid=(8,))


def test_blocks_too_large_to_gain_stay_single(monkeypatch):
    monkeypatch.setattr(grid_batching, "_LARGEST_STACK", 12 * 16 * 4)
    refused(in_blocks(double, row, row), X, grid=(8,))


def test_checked_memory_is_left_alone():
    f = in_blocks(double, row, row)
    checked = functools.partial(
        pl.pallas_call, double, jax.ShapeDtypeStruct(X.shape, F32), grid=(8,),
        in_specs=[pl.BlockSpec((1, 12, 16), row)], out_specs=pl.BlockSpec((1, 12, 16), row),
    )(interpret=pltpu.InterpretParams())  # fmt: skip
    refused(checked, X, grid=(8,))
    assert loops(f, X) == []


def test_an_error_names_its_instruction():
    def fail(x):
        raise ValueError("no")

    def kernel(x, out):
        out[...] = jax.pure_callback(fail, jax.ShapeDtypeStruct((1, 12, 16), F32), x[...])

    program = optimise(lower(jax.make_jaxpr(in_blocks(kernel, row, row))(X)))
    with pytest.raises(ValueError, match="no") as error:
        Executable(program)(X)
    assert "pure_callback at" in error.value.__notes__[0]


# -- every form, over two axes ----------------------------------------------------------------


@pytest.mark.parametrize("apart_along", [(0, 1), (1,)])
@pytest.mark.parametrize("name", SAMPLES)
def test_every_form_over_two_axes(name, apart_along):
    """The operand's blocks differ along both axes, or along one."""
    f, tiles = SAMPLES[name] if isinstance(SAMPLES[name], tuple) else (SAMPLES[name], TILES)
    tiles = tiles[:6].reshape(2, 3, *tiles.shape[1:])
    traced = jax.make_jaxpr(f)(tiles[0, 0])
    (result,) = traced.out_avals
    consts = list(map(np.asarray, traced.consts))

    def kernel(x, *consts_and_out):
        *consts, out = consts_and_out
        (out[...],) = jax.core.eval_jaxpr(traced.jaxpr, [c[...] for c in consts], x[...])

    def spec(shape, axes):
        def index_map(*at):
            return (*[i if a in axes else 0 for a, i in enumerate(at)], *[0] * len(shape))

        return pl.BlockSpec((None, None, *shape), index_map)

    call = pl.pallas_call(
        kernel, jax.ShapeDtypeStruct((2, 3, *result.shape), result.dtype), grid=(2, 3),
        in_specs=[spec(tiles.shape[2:], apart_along), *map(whole, map(np.shape, consts))],
        out_specs=spec(result.shape, (0, 1)), interpret=True,
    )  # fmt: skip
    assert loops(call, tiles, *consts) == []
    program = lower(jax.make_jaxpr(call)(tiles, *consts))
    assert "each" not in names(batch_grids(remove_dead_code(program)))


def test_operands_that_differ_along_different_axes():
    def kernel(x, y, z, out):
        left, right = x[...] * 2, jnp.flip(y[...], 1)
        joined = jnp.concatenate([left, right], 1)[:, 8:24]
        chosen = jnp.where(left > right, z[0], joined)
        out[...] = chosen @ right.T @ left + lax.select(z[0, 0, 0] > 0, left, right)

    specs = [pl.BlockSpec((4, 16), m) for m in (lambda i, j: (i, 0), lambda i, j: (j, 0))]
    third = pl.BlockSpec((1, 4, 16), lambda i, j: (i, j, 0))
    f = call(kernel, (2, 3), [*specs, third], pl.BlockSpec((4, 16), lambda i, j: (i, j)), (8, 48))
    assert loops(f, X[0, :8], X[1], X[:2]) == []


def test_bounds_that_turn_out_to_be_the_same():
    """What depends on the cell, but not for as many cells as there are, keeps none apart."""

    def kernel(x, out):
        rounds = jnp.minimum(pl.program_id(0) * 5 + 2, 2)
        out[...] = jnp.zeros_like(out)

        @pl.when(pl.program_id(0) * 4 < 32)
        def _():
            out[...] = lax.fori_loop(0, rounds, lambda i, sum: sum * 2 + x[...], x[...])

    f = in_blocks(kernel, row, row)
    assert loops(f, X) == []
    assert "switch" not in names(batch_grids(remove_dead_code(lower(jax.make_jaxpr(f)(X)))))


@pytest.mark.parametrize("written", [False, True])
def test_constants_that_are_looked_up(written):
    """A table that is a constant is known, unless the kernel writes to it."""
    table = np.arange(8, dtype=np.int32)[::-1].copy()

    def kernel(table, x, out):
        if written:
            table[pl.program_id(0)] = table[7 - pl.program_id(0)]

        @pl.when(table[pl.program_id(0)] < 100)
        def _():
            out[...] = 2 * x[...]

    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(8,),
        in_specs=[pl.BlockSpec((1, 12, 16), lambda i, table: (table[i], 0, 0))],
        out_specs=pl.BlockSpec((1, 12, 16), lambda i, table: (table[i], 0, 0)),
    )
    out = jax.ShapeDtypeStruct((8, 12, 16), F32)

    def f(x):
        call = pl.pallas_call(kernel, out, grid_spec=spec, interpret=True)
        return jnp.nan_to_num(call(table, x))

    assert loops(f, X) == ([(8,)] if written else [])


# -- products of blocks ---------------------------------------------------------------------------


def blocked_product(sizes, block=128, dtype=F32, act=lambda x: x, accumulate=True):
    """A product of matrices, block by block, for a grid of rows, columns and terms."""

    def kernel(x, y, out, acc):
        @pl.when(pl.program_id(2) == 0)
        def _():
            acc[...] = jnp.zeros_like(acc)

        acc[...] += jnp.dot(x[...], y[...], preferred_element_type=F32)
        if accumulate:
            out[...] = act(acc[...]).astype(out.dtype)
        else:

            @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
            def _():
                out[...] = act(acc[...]).astype(out.dtype)

    rows, columns, terms = (size * block for size in sizes)
    f = pl.pallas_call(
        kernel, jax.ShapeDtypeStruct((rows, columns), dtype), grid=sizes,
        in_specs=[pl.BlockSpec((block, block), lambda i, j, k: (i, k)),
                  pl.BlockSpec((block, block), lambda i, j, k: (k, j))],
        out_specs=pl.BlockSpec((block, block), lambda i, j, k: (i, j)),
        scratch_shapes=[pltpu.VMEM((block, block), F32)], interpret=True,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    # Whole numbers: blocks that are multiplied at once may be added up in another order.
    x, y = (rng.integers(-4, 5, shape).astype(dtype) for shape in ((rows, terms), (terms, columns)))
    return f, x, y


@pytest.mark.parametrize("accumulate", [True, False])
@pytest.mark.parametrize("sizes", [(3, 2, 2), (1, 3, 2), (2, 1, 3), (2, 2, 1)])
def test_blocks_are_multiplied_as_one_product(sizes, accumulate):
    f, x, y = blocked_product(sizes, accumulate=accumulate)
    assert loops(f, x, y) == []
    lowered = lower(jax.make_jaxpr(f)(x, y))
    program = optimise(lowered, skip={"sums_of_products"})
    assert names(program).count("dot_general") == sizes[2]
    assert "switch" not in names(program) and "allocate" not in names(program)
    np.testing.assert_array_equal(np.asarray(Executable(program)(x, y)[0]), x @ y)


@pytest.mark.parametrize("accumulate", [True, False])
def test_blocks_with_a_function_of_the_sum(accumulate):
    f, x, y = blocked_product((2, 2, 2), act=jax.nn.relu, accumulate=accumulate)
    assert loops(f, x, y) == []


def test_blocks_of_narrow_floats():
    assert loops(*blocked_product((2, 2, 2), dtype=jnp.bfloat16)) == []


def test_panels_of_blocks_have_a_size(monkeypatch):
    monkeypatch.setattr(grid_batching, "_LARGEST_PANEL", 3 << 16)
    assert loops(*blocked_product((2, 3, 2))) == [(2,)]
    assert loops(*blocked_product((2, 4, 2))) == [(2, 2)]


def test_a_long_sum_of_products_stays_a_loop(monkeypatch):
    monkeypatch.setattr(grid_batching, "_MOST_WRITTEN_OUT", 2)
    assert loops(*blocked_product((2, 2, 3))) == [(3,)]


def test_products_that_share_no_operand_stay_in_a_cache():
    def kernel(x, y, out):
        out[...] = jnp.dot(x[...], y[...])

    spec = pl.BlockSpec((128, 128), lambda i: (i, 0))
    f = call(kernel, (8,), [spec, spec], spec, (1024, 128))
    x = np.random.default_rng(0).integers(-4, 5, (1024, 128)).astype(np.float32)
    assert loops(f, x, x[::-1].copy()) == [(2,)]


def test_blocks_further_away_than_32_bits_count_bytes():
    def kernel(x, out):
        out[...] = x[...]

    rows, size = 6, 1 << 18
    spec = pl.BlockSpec((1, size), lambda i: (i, 0))
    f = pl.pallas_call(
        kernel, jax.ShapeDtypeStruct((rows, size), jnp.uint8), grid=(rows,), in_specs=[spec],
        out_specs=spec, interpret=True,
    )  # fmt: skip
    x = np.zeros((rows, 1 << 30), np.uint8)  # takes no memory where nobody writes
    x[:, 0] = range(rows)
    lowered = lower(jax.make_jaxpr(f)(jax.ShapeDtypeStruct(x.shape, x.dtype)))
    for program in (lowered, optimise(lowered)):
        (out,) = Executable(program)(x)
        np.testing.assert_array_equal(out, x[:, :size])
