from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise
from pallas_shim.evaluator.passes.copy_elision import elide_copies
from pallas_shim.evaluator.passes.store_fusion import fuse_stores

from .programs import INTS, MATRIX, ROW, instructions, make, names, outcome


def direct(param_types, build):
    """The names of the instructions that write to memory."""
    made = make(param_types, build)
    viewed = elide_copies(made.program)
    program = fuse_stores(viewed)
    assert outcome(program, made.log) == outcome(viewed, made.log)
    return [i.name for i in instructions(program) if i.operation.effects.writes]


def test_a_result_that_is_only_stored_is_computed_there():
    def build(b, x, row):
        b.store(row, b.binary("add", x, x))
        return []

    assert direct([INTS, ROW], build) == ["add"]


def test_part_of_a_ref_will_do():
    def build(b, x, matrix):
        b.store(matrix, b.binary("mul", x, x), 1)
        return []

    assert direct([INTS, MATRIX], build) == ["mul"]


def test_operands_may_overlap_with_it():
    def build(b, row):
        b.store(row, b.binary("sub", b.reverse(b.load(row)), b.load(row)))
        return []

    assert direct([ROW], build) == ["sub"]


def test_what_is_used_otherwise_too_is_stored():
    def build(b, x, row):
        y = b.binary("add", x, x)
        b.store(row, y)
        return [y]

    assert direct([INTS, ROW], build) == ["store"]


def test_a_computation_passes_writes_to_what_it_does_not_read():
    def build(b, row, other):
        y = b.binary("add", *[b.load(row)] * 2)
        z = b.binary("mul", *[b.load(row)] * 2)
        b.store(other, y)
        b.store(row, z)
        return []

    assert direct([ROW, ROW], build) == ["add", "mul"]


def test_it_does_not_pass_a_write_to_what_it_reads():
    def build(b, x, row, other):
        y = b.binary("add", *[b.reverse(b.load(row))] * 2)
        b.store(row, x)
        b.store(other, y)
        return []

    assert direct([INTS, ROW, ROW], build) == ["store", "store"]


def test_it_does_not_pass_a_loop_that_writes_to_what_it_reads():
    def build(b, x, row, other):
        y = b.binary("add", *[b.reverse(b.load(row))] * 2)
        b.scan([], [], lambda: [b.store(row, x)] and [], length=2)
        b.store(other, y)
        return []

    assert direct([INTS, ROW, ROW], build) == ["store", "store"]


X = np.arange(48, dtype=np.float32).reshape(8, 6)


def filled(kernel, **options):
    """Whether the buffer of a kernel's one result is filled when it is made; asserts that the
    result is what it is without the pass."""
    call = pl.pallas_call(kernel, jax.ShapeDtypeStruct(X.shape, X.dtype), interpret=True, **options)
    program = lower(jax.make_jaxpr(call)(X))
    after, before = optimise(program), optimise(program, skip={"store_fusion"})
    (got,), (want,) = Executable(after)(X), Executable(before)(X)
    np.testing.assert_array_equal(got, want)
    made = [n for i, n in zip(instructions(after), names(after), strict=True) if not i.ins]
    assert made in (["buffer"], ["unfilled"])
    return made == ["buffer"]


def copy(x_ref, out_ref):
    out_ref[...] = x_ref[...]


def test_what_is_stored_to_as_a_whole_is_not_filled():
    assert not filled(copy)


@pytest.mark.parametrize("block", [(8, 6), (2, 6), (8, 2), (4, 3), (3, 4)])
def test_blocks_that_make_up_all_of_it_are_the_whole(block):
    grid = tuple(-(-size // part) for size, part in zip(X.shape, block, strict=True))
    spec = pl.BlockSpec(block, lambda i, j: (i, j))
    assert not filled(copy, grid=grid, in_specs=[spec], out_specs=spec)


def test_blocks_in_another_order_are_not_taken_for_the_whole():
    spec = pl.BlockSpec((2, 6), lambda i: (3 - i, 0))
    assert filled(copy, grid=(4,), in_specs=[spec], out_specs=spec)


def test_some_of_its_blocks_are_not_the_whole():
    ins = pl.BlockSpec((2, 6), lambda i: (i, 0))
    outs = pl.BlockSpec((2, 6), lambda i: (i + 1, 0))
    assert filled(copy, grid=(3,), in_specs=[ins], out_specs=outs)


def test_what_is_read_first_is_filled():
    def kernel(x_ref, out_ref):
        out_ref[...] = jnp.where(jnp.isnan(out_ref[...]), x_ref[...], 0)

    assert filled(kernel)


def test_what_is_stored_to_in_part_is_filled():
    def kernel(x_ref, out_ref):
        out_ref[2:] = x_ref[2:]

    assert filled(kernel)


def filled_by_chunks(kernel, columns, out_index, **options):
    """As `filled`, of an array that takes several chunks of cells."""
    x = np.arange(1024 * 640, dtype=np.float32).reshape(1024, 640)
    spec = pl.BlockSpec((8, columns), lambda i, j: (i, j))
    call = pl.pallas_call(
        kernel, jax.ShapeDtypeStruct(x.shape, x.dtype), grid=(128, 640 // columns),
        in_specs=[spec], out_specs=pl.BlockSpec((8, columns), out_index), interpret=True,
    )  # fmt: skip
    program = lower(jax.make_jaxpr(call)(x))
    after, before = optimise(program), optimise(program, skip={"store_fusion"})
    (got,), (want,) = Executable(after)(x), Executable(before)(x)
    np.testing.assert_array_equal(got, want)
    assert "grid" in names(after)
    return "unfilled" not in names(after)


def double(x_ref, out_ref):
    out_ref[...] = x_ref[...] * 2


def part(x_ref, out_ref):
    out_ref[:4] = x_ref[:4]


def add_to_it(x_ref, out_ref):
    out_ref[...] = jnp.nan_to_num(out_ref[...]) + x_ref[...]


@pytest.mark.parametrize("columns", (640, 320))
@pytest.mark.parametrize("kernel", (copy, double))
def test_chunks_of_cells_that_store_to_all_of_it_fill_it(kernel, columns):
    assert not filled_by_chunks(kernel, columns, lambda i, j: (i, j))


def test_chunks_of_cells_that_leave_something_do_not_fill_it():
    assert filled_by_chunks(part, 640, lambda i, j: (i, j))
    assert filled_by_chunks(add_to_it, 640, lambda i, j: (i, j))
    assert filled_by_chunks(copy, 640, lambda i, j: (i // 2, j))


def walking(store, rounds, start=0, step=1):
    """A kernel whose loop carries a row, so that it stays a loop, and stores by ``store``."""

    def kernel(x_ref, out_ref):
        def body(k, carried):
            i, row = carried
            row = row * 0.5 + x_ref[i]
            store(i, row, out_ref)
            return i + step, row

        first = jnp.int32(start), jnp.zeros(X.shape[1], X.dtype)
        jax.lax.fori_loop(0, rounds, body, first)

    return kernel


def row(i, value, ref):
    ref[i] = value


def row_as_slice(i, value, ref):
    ref[pl.ds(i, 1), :] = value[None]


def test_loops_that_store_to_every_row_fill_it():
    for store in (row, row_as_slice):
        assert not filled(walking(store, 8))
        assert not filled(walking(store, 8, start=7, step=-1))


def test_loops_that_leave_something_do_not_fill_it():
    def part_of_row(i, value, ref):
        ref[i, :4] = value[:4]

    def fixed_row(i, value, ref):
        ref[3] = value

    def sometimes(i, value, ref):
        @pl.when(value[0] > 3)
        def _():
            ref[i] = value

    def what_it_reads(i, value, ref):
        ref[i] = value + jnp.nan_to_num(ref[7 - i])

    for store in (part_of_row, fixed_row, sometimes, what_it_reads):
        assert filled(walking(store, 8))
    assert filled(walking(row, 7))
    assert filled(walking(row, 7, start=1))
    assert filled(walking(row, 4, step=2))
