"""Kernels under pltpu.InterpretParams against JAX's TPU interpreter: values, and what raises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.evaluator import passes
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.registry import Unsupported
from tests.oracle import compare

CHECKED = pltpu.InterpretParams()
PADDED = pltpu.InterpretParams(out_of_bounds_reads="uninitialized")
ZEROS = pltpu.InterpretParams(
    out_of_bounds_reads="uninitialized", uninitialized_memory="zero"
)
VMEM, SMEM = pltpu.VMEM, pltpu.SMEM


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def numbers(*shape):
    return jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)


def program(call, *args):
    return lower(jax.make_jaxpr(call)(*args))


def run(call, *args):
    """The results with and without optimisation, which are the same."""
    plain = program(call, *args)
    arrays = list(map(np.asarray, args))
    got = Executable(plain)(*arrays)
    for a, b in zip(Executable(passes.optimise(plain))(*arrays), got, strict=True):
        compare(a, b)
    return got


def check(kernel, out, *args, interpret=CHECKED, **kwargs):
    call = pl.pallas_call(kernel, out_shape=out, interpret=interpret, **kwargs)
    want = jax.jit(call)(*args)
    for a, b in zip(run(call, *args), jax.tree.leaves(want), strict=True):
        compare(a, np.asarray(b))


def check_raises(error, message, kernel, out, *args, interpret=CHECKED, **kwargs):
    """That the evaluator raises ``error``, and JAX something that says the same."""
    call = pl.pallas_call(kernel, out_shape=out, interpret=interpret, **kwargs)
    for executable in (program(call, *args), passes.optimise(program(call, *args))):
        with pytest.raises(error, match=message):
            Executable(executable)(*map(np.asarray, args))
    try:
        # For an index rather than a slice, JAX 0.8 hands on what NumPy raises.
        with pytest.raises(Exception, match=f"{message}|is out of bounds for axis"):
            jax.block_until_ready(jax.jit(call)(*args))
    finally:
        pltpu.reset_tpu_interpret_mode_state()


NEAR = pl.BlockSpec(memory_space=VMEM)
SCALARS = pl.BlockSpec(memory_space=SMEM)
ANYWHERE = pl.BlockSpec(memory_space=pl.ANY)


def spec(shape, index_map):
    return pl.BlockSpec(shape, index_map)


# -- values -----------------------------------------------------------------------------------


def test_blocks_that_stick_out_of_their_arrays():
    def kernel(x, o):
        o[...] = x[...] + 1

    block = spec((8, 128), lambda i, j: (j, i))
    check(kernel, f32(20, 200), numbers(20, 200), grid=(2, 3), in_specs=[block], out_specs=block)


def test_blocks_by_scalar_prefetch():
    def kernel(order, x, o):
        o[...] = x[...] * 2

    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(3,),
        in_specs=[spec((8, 128), lambda i, order: (order[i], 0))],
        out_specs=spec((8, 128), lambda i, order: (order[2 - i], 0)),
    )
    check(kernel, f32(24, 128), jnp.int32([2, 0, 1]), numbers(24, 128), grid_spec=grid_spec)


def test_an_output_that_stays_for_several_cells():
    def kernel(x, o):
        @pl.when(pl.program_id(1) == 0)
        def _():
            o[...] = jnp.zeros_like(o)

        o[...] += x[...]

    check(
        kernel, f32(16, 128), numbers(16, 384), grid=(2, 3),
        in_specs=[spec((8, 128), lambda i, k: (i, k))],
        out_specs=spec((8, 128), lambda i, k: (i, 0)),
    )


@pytest.mark.parametrize("in_map", [lambda i, j: (i, j), lambda i, j: (0, j), lambda i, j: (1, 1)])
def test_an_input_and_an_output_that_share_an_array(in_map):
    def kernel(x, o, count):
        @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
        def _():
            count[0] = 0

        count[0] = count[0] + 1
        o[...] = x[...] + count[0].astype(jnp.float32)

    check(
        kernel, f32(24, 384), numbers(24, 384), grid=(3, 3),
        in_specs=[spec((8, 128), in_map)],
        out_specs=spec((8, 128), lambda i, j: (j, i)),
        scratch_shapes=[SMEM((1,), jnp.int32)], input_output_aliases={0: 0},
    )


def test_a_shared_array_that_no_cell_moves_in():
    def kernel(x, o):
        o[...] = x[...] + 1

    block = spec((8, 128), lambda i: (0, 0))
    check(
        kernel, f32(8, 128), numbers(8, 128), grid=(5,), in_specs=[block], out_specs=block,
        input_output_aliases={0: 0},
    )


def test_an_input_that_the_kernel_writes_to_is_read_again_when_the_block_changes():
    def kernel(x, o):
        x[...] += 1
        o[...] = x[:4]

    check(
        kernel, f32(48, 128), numbers(16, 128), grid=(2, 2, 3),
        in_specs=[spec((8, 128), lambda i, j, k: (j, 0))],
        out_specs=spec((4, 128), lambda i, j, k: (i * 6 + j * 3 + k, 0)),
    )


def test_a_dynamic_grid():
    def call(size, x):
        def kernel(x, o):
            o[...] = x[...] + 1

        block = spec((8, 128), lambda i: (i, 0))
        return pl.pallas_call(
            kernel, out_shape=f32(24, 128), interpret=CHECKED, grid=(size,), in_specs=[block],
            out_specs=block,
        )(x)

    args = (jnp.int32(3), numbers(24, 128))
    compare(run(call, *args)[0], np.asarray(jax.jit(call)(*args)))


def test_a_shared_array_under_vmap():
    def kernel(x, o):
        o[...] = x[...] * 2

    call = jax.vmap(
        pl.pallas_call(
            kernel, out_shape=f32(24, 128), grid=(3,), interpret=CHECKED,
            in_specs=[spec((8, 128), lambda i: (i, 0))],
            out_specs=spec((8, 128), lambda i: (2 - i, 0)), input_output_aliases={0: 0},
        )
    )
    x = numbers(2, 24, 128)
    compare(run(call, x)[0], np.asarray(jax.jit(call)(x)))


def test_copies_and_loads_at_dynamic_places_inside():
    def kernel(at, x, o, scratch, sem):
        pltpu.make_async_copy(x.at[pl.ds(at[0], 8), 1], scratch, sem).start()
        pltpu.make_async_copy(x.at[pl.ds(at[0], 8), 1], scratch, sem).wait()
        o[...] = scratch[...]
        o[at[1]] = scratch[pl.ds(at[1], 1), :][0] * 2
        pltpu.sync_copy(scratch.at[pl.ds(at[1], 2)], o.at[pl.ds(at[0], 2)])

    check(
        kernel, f32(8, 128), jnp.int32([4, 7 - 1]), numbers(12, 3, 128),
        in_specs=[SCALARS, ANYWHERE], out_specs=NEAR,
        scratch_shapes=[VMEM((8, 128), jnp.float32), pltpu.SemaphoreType.DMA],
    )


def test_an_array_in_hbm_shared_by_an_input_and_an_output():
    def kernel(x, o):
        pltpu.sync_copy(x.at[pl.ds(0, 8)], o.at[pl.ds(8, 8)])

    check(
        kernel, f32(16, 128), numbers(16, 128), in_specs=[ANYWHERE], out_specs=ANYWHERE,
        input_output_aliases={0: 0},
    )


@pytest.mark.parametrize("interpret", [CHECKED, ZEROS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int16", "uint8", "bool"])
def test_memory_that_nobody_wrote(dtype, interpret):
    def kernel(copied, unwritten, scratch):
        copied[...] = scratch[...]

    out = jax.ShapeDtypeStruct((8, 128), dtype)
    check(
        kernel, [out, out], interpret=interpret, in_specs=[],
        scratch_shapes=[VMEM((8, 128), jnp.dtype(dtype))],
    )


@pytest.mark.parametrize("interpret", [PADDED, ZEROS])
@pytest.mark.parametrize("start", [0, 5, 8, 30])
def test_reads_out_of_bounds_that_are_uninitialised(interpret, start):
    def kernel(at, x, o, p, sem):
        o[...] = x[pl.ds(at[0], 8)]
        p[...] = jnp.full_like(p, x[at[0], 3])

    check(
        kernel, [f32(8, 128), f32(8, 128)], jnp.int32([start]), numbers(8, 128),
        interpret=interpret, scratch_shapes=[pltpu.SemaphoreType.DMA],
        in_specs=[SCALARS, NEAR],
    )


@pytest.mark.parametrize("interpret", [PADDED, ZEROS])
def test_an_input_block_out_of_bounds_that_is_uninitialised(interpret):
    def kernel(x, o):
        o[...] = x[...]

    check(
        kernel, f32(24, 128), numbers(20, 128), interpret=interpret, grid=(3,),
        in_specs=[spec((8, 128), lambda i: (i * 2, 0))],
        out_specs=spec((8, 128), lambda i: (i, 0)),
    )


def test_a_masked_store_that_leaves_its_ref_where_it_is_masked():
    def kernel(at, x, mask, o):
        o[...] = jnp.zeros_like(o)
        masked_store(o.at[pl.ds(at[0], 16), pl.ds(at[1], 256)], x[...], mask[...])

    mask = np.zeros((16, 256), bool)
    mask[:8, 7:100] = True
    args = jnp.int32([8, 128]), numbers(16, 256)
    specs = [SCALARS, NEAR, NEAR]
    check(kernel, f32(16, 256), *args, jnp.asarray(mask), in_specs=specs)
    mask[8, 0] = True
    check_raises(
        ValueError, "Out-of-bounds masked swap", kernel, f32(16, 256), *args, jnp.asarray(mask),
        in_specs=specs,
    )


def masked_store(ref, value, mask):
    # JAX 0.8 has it in pallas, later versions for TPUs.
    (getattr(pltpu, "store", None) or pl.store)(ref, value, mask=mask)


# -- what raises ------------------------------------------------------------------------------


@pytest.mark.parametrize("unused", [False, True])
def test_an_input_block_out_of_bounds(unused):
    def kernel(x, o):
        o[...] = jnp.zeros_like(o) if unused else x[...]

    check_raises(
        IndexError, r'Out-of-bounds block index \(.*\) for input .* in iteration \(.*3.*\)',
        kernel, f32(16, 128), numbers(16, 128), grid=(4,),
        in_specs=[spec((4, 128), lambda i: (i + 1, 0))],
        out_specs=spec((4, 128), lambda i: (i, 0)),
    )


def test_an_output_block_out_of_bounds():
    def kernel(x, o):
        o[...] = x[...]

    block = spec((4, 128), lambda i: (i, 0))
    check_raises(
        IndexError, "Out-of-bounds block index .* for output", kernel, f32(8, 128),
        numbers(16, 128), grid=(4,), in_specs=[block], out_specs=block,
    )


def test_a_block_of_a_shared_array_out_of_bounds():
    def kernel(x, o):
        o[...] = x[...]

    check_raises(
        IndexError, "Out-of-bounds block index .* for input", kernel, f32(16, 128),
        numbers(16, 128), grid=(4,), in_specs=[spec((4, 128), lambda i: (i + 1, 0))],
        out_specs=spec((4, 128), lambda i: (i, 0)), input_output_aliases={0: 0},
    )


def test_revisiting_an_output_block():
    def kernel(o, p):
        o[...] = jnp.zeros_like(o)
        p[...] = jnp.zeros_like(p)

    check_raises(
        RuntimeError, r"Revisited block .* of output 1 in iteration \(2, 0\)", kernel,
        [f32(16, 256), f32(16, 256)], grid=(4, 4), in_specs=[],
        out_specs=[
            spec((4, 128), lambda i, j: (i, j // 2)),
            spec((4, 128), lambda i, j: (j // 2, i % 2)),
        ],
    )


@pytest.mark.parametrize("start", [1, 8, 100])
@pytest.mark.parametrize("way", ["range", "copy"])
def test_a_read_out_of_bounds(way, start):
    def kernel(at, x, o):
        where = x.at[pl.ds(at[0], 8)]
        if way == "range":
            o[...] = where[...]
        else:
            pltpu.sync_copy(where, o)

    check_raises(
        IndexError, "Out-of-bounds read", kernel, f32(8, 128), jnp.int32([start]),
        numbers(8, 128),
        in_specs=[SCALARS, NEAR],
    )


def test_an_index_out_of_bounds_in_a_loop():
    def kernel(x, o):
        o[0] = jax.lax.fori_loop(0, x[0], lambda i, total: total + x[i], jnp.int32(0))

    check_raises(
        IndexError, "Out-of-bounds read", kernel, jax.ShapeDtypeStruct((1,), jnp.int32),
        jnp.int32([4, 1, 2]), in_specs=[SCALARS], out_specs=SCALARS,
    )


def test_a_read_out_of_bounds_that_no_branch_reaches():
    def kernel(at, x, o):
        o[...] = x[...]

        @pl.when(at[0] < 4)
        def _():
            o[at[0]] = x[at[0]] * 2

    specs = [SCALARS, NEAR]
    for at in (2, 77):
        check(kernel, f32(4, 128), jnp.int32([at]), numbers(4, 128), in_specs=specs)


@pytest.mark.parametrize("interpret", [CHECKED, PADDED])
def test_a_write_out_of_bounds(interpret):
    def kernel(at, x, o, scratch):
        pltpu.sync_copy(x.at[0], scratch.at[at[0]])
        o[...] = x[...]

    check_raises(
        ValueError, "Out-of-bounds write", kernel, f32(8, 128), jnp.int32([10]), numbers(8, 128),
        interpret=interpret, scratch_shapes=[VMEM((10, 128), jnp.float32)],
        in_specs=[SCALARS, NEAR],
    )


def test_an_assignment_out_of_bounds():
    def kernel(at, x, o):
        o[...] = x[...]
        o[at[0]] = x[0]

    check_raises(
        ValueError, "Out-of-bounds swap", kernel, f32(8, 128), jnp.int32([8]), numbers(8, 128),
        in_specs=[SCALARS, NEAR],
    )


def test_a_negative_index():
    def kernel(at, x, o):
        o[...] = x[...]
        o[at[0]] = x[0]

    call = pl.pallas_call(
        kernel, out_shape=f32(8, 128), interpret=CHECKED,
        in_specs=[SCALARS, NEAR],
    )
    args = np.int32([-1]), np.asarray(numbers(8, 128))
    with pytest.raises(ValueError, match="Out-of-bounds swap of a ref .* from -1 on"):
        Executable(program(call, *args))(*args)


# -- what JAX refuses is left to JAX, which says so ---------------------------------------------


def refused(call, *args, match):
    with pytest.raises(Unsupported, match=match):
        program(call, *args)


@pytest.mark.parametrize("place", ["in", "out"])
def test_a_reference_to_hbm(place):
    def kernel(x, o):
        o[...] = x[...]

    far = pl.BlockSpec(memory_space=pltpu.HBM)
    call = pl.pallas_call(
        kernel, out_shape=f32(8, 128), interpret=CHECKED,
        in_specs=[far if place == "in" else NEAR], out_specs=NEAR if place == "in" else far,
    )
    refused(call, numbers(8, 128), match="can only be copied")


@pytest.mark.parametrize("allowed", [False, True])
def test_hbm_in_run_scoped(allowed):
    def kernel(x, o):
        def copy(scratch):
            pltpu.sync_copy(x, scratch)
            pltpu.sync_copy(scratch, o)

        pl.run_scoped(copy, pltpu.HBM((8, 128), jnp.float32))

    interpret = pltpu.InterpretParams(allow_hbm_allocation_in_run_scoped=allowed)
    args = (numbers(8, 128),)
    if allowed:
        specs = {"in_specs": [NEAR], "out_specs": NEAR}
        check(kernel, f32(8, 128), *args, interpret=interpret, **specs)
    else:
        call = pl.pallas_call(kernel, out_shape=f32(8, 128), interpret=interpret)
        refused(call, *args, match="allocates HBM")


def test_an_index_array():
    def kernel(rows, x, o):
        o[...] = x[rows[...]]

    call = pl.pallas_call(kernel, out_shape=f32(4, 128), interpret=CHECKED)
    refused(call, jnp.int32([1, 0, 3, 3]), numbers(8, 128), match="array index")


# -- what it costs ----------------------------------------------------------------------------


def checks(call, *args):
    names = [i.name for i in program(call, *args).top.walk()]
    return {n for n in names if n.startswith("check_") or n in ("move_block", "get_padded")}


def test_nothing_is_checked_where_memory_is_not():
    def kernel(x, o):
        o[...] = x[pl.ds(pl.program_id(0), 8)]

    call = pl.pallas_call(
        kernel, out_shape=f32(16, 128), interpret=True, grid=(2,),
        out_specs=spec((8, 128), lambda i: (i * 3, 0)),
    )
    assert checks(call, numbers(8, 128)) == set()


def test_blocks_that_go_by_the_grid_are_known_to_be_inside():
    def kernel(x, y, o):
        o[...] = x[...] @ y[...]

    call = pl.pallas_call(
        kernel, out_shape=f32(16, 256), interpret=CHECKED, grid=(2, 2, 1),
        in_specs=[
            spec((8, 128), lambda i, j, k: (i, k)),
            spec((128, 128), lambda i, j, k: (k, j)),
        ],
        out_specs=spec((8, 128), lambda i, j, k: (i, j)),
    )
    assert checks(call, numbers(16, 128), numbers(128, 256)) == set()


CORES = "num_cores_or_threads" if jax.__version_info__ >= (0, 9) else "num_cores_per_device"
ORDERS = [{"random_seed": 1}, {"random_seed": 7}, {CORES: 2}, {CORES: 3, "random_seed": 2}]


@pytest.mark.parametrize("asked", ORDERS)
@pytest.mark.parametrize("semantics", [("parallel", "arbitrary"), ("parallel", "parallel")])
def test_the_order_of_cells_and_the_cores_that_run_them(asked, semantics):
    """Each cell writes what the one before it on its core left in scratch memory."""

    def kernel(o_ref, last):
        o_ref[...] = jnp.full_like(o_ref, last[0])
        last[0] = 10 * pl.program_id(0) + pl.program_id(1)

    def f():
        return pl.pallas_call(
            kernel, grid=(5, 2), out_specs=pl.BlockSpec((8, 128), lambda i, j: (i, j)),
            out_shape=jax.ShapeDtypeStruct((40, 256), jnp.int32),
            scratch_shapes=[pltpu.SMEM((1,), jnp.int32)],
            interpret=pltpu.InterpretParams(**asked),
            compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
        )()  # fmt: skip

    (got,) = Executable(passes.optimise(lower(jax.make_jaxpr(f)())))()
    np.testing.assert_array_equal(got, np.asarray(f()))


def test_cores_that_wait_share_the_hbm_that_they_allocate():
    options = pltpu.InterpretParams(allow_hbm_allocation_in_run_scoped=True)

    def body(refs):
        @pl.core_map(pltpu.create_tensorcore_mesh("x", num_cores=2), interpret=options)
        def _():
            def scoped(common, ready):
                @pl.when(jax.lax.axis_index("x") == 0)
                def _():
                    pltpu.sync_copy(refs[0], common)
                    signal(ready, 1, core_index=1)

                @pl.when(jax.lax.axis_index("x") == 1)
                def _():
                    wait(ready, 1)
                    pltpu.sync_copy(common, refs[1])

            pl.run_scoped(scoped, pltpu.HBM((8, 128), jnp.float32), REGULAR)

    def f(x):
        return pl.run_state(body)((x, jnp.zeros_like(x)))[1]

    x = numbers(8, 128)
    (got,) = run(f, x)
    compare(got, np.asarray(jax.jit(f)(x)))
    compare(got, np.asarray(x))


def test_each_core_has_its_own_copy_of_an_input_that_is_written_to():
    def kernel(count_ref, o_ref):
        o_ref[...] = jnp.full_like(o_ref, count_ref[0])
        count_ref[0] += 1

    def f(count):
        return pl.pallas_call(
            kernel, grid=(5,), in_specs=[pl.BlockSpec(memory_space=SMEM)],
            out_specs=spec((8, 128), lambda i: (i, 0)),
            out_shape=jax.ShapeDtypeStruct((40, 128), jnp.int32),
            interpret=pltpu.InterpretParams(**{CORES: 2}),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        )(count)  # fmt: skip

    (got,) = run(f, jnp.int32([7]))
    compare(got, np.asarray(jax.jit(f)(jnp.int32([7]))))
    assert sorted(got[::8, 0]) == [7, 7, 8, 8, 9]


signal = getattr(pl, "semaphore_signal", None) or pltpu.semaphore_signal
wait = getattr(pl, "semaphore_wait", None) or pltpu.semaphore_wait
REGULAR, DMA = pltpu.SemaphoreType.REGULAR, pltpu.SemaphoreType.DMA


def test_cores_of_a_grid_that_wait_for_one_another():
    """Each cell waits until both cores have come as far; what is read is ordered by that."""

    cells = 4

    def kernel(x_ref, o_ref, both_ref, mine, sem, copied):
        i = pl.program_id(0)
        mine[...] = x_ref[...] * 2
        pltpu.make_async_copy(mine, both_ref.at[i], copied).start()
        pltpu.make_async_copy(mine, both_ref.at[i], copied).wait()
        signal(sem, 1, core_index=0)
        signal(sem, 1, core_index=1)
        wait(sem, 2)
        pltpu.make_async_copy(both_ref.at[i], mine, copied).start()
        pltpu.make_async_copy(both_ref.at[i], mine, copied).wait()
        o_ref[...] = mine[...]

    def f(x):
        row = spec((8, 128), lambda i: (i, 0))
        return pl.pallas_call(
            kernel, grid=(cells,), in_specs=[row], out_specs=[row, ANYWHERE],
            out_shape=[f32(8 * cells, 128), f32(cells, 8, 128)],
            scratch_shapes=[VMEM((8, 128), jnp.float32), REGULAR, DMA],
            interpret=pltpu.InterpretParams(**{CORES: 2}),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        )(x)  # fmt: skip

    x = numbers(8 * cells, 128)
    plain = program(f, x)
    assert any(i.name == "programs" for i in plain.top.walk())
    for each, want in zip(run(f, x), jax.jit(f)(x), strict=True):
        compare(each, np.asarray(want))


# -- a TPU of two cores, without an interpreter ---------------------------------------------------


def on_two_cores(f, *args):
    """The results on two cores, which are the same optimised and not."""
    plain = lower(jax.make_jaxpr(f)(*args), tpu_cores=2)
    arrays = list(map(np.asarray, args))
    got = Executable(plain)(*arrays)
    optimised = passes.optimise(plain)
    for a, b in zip(Executable(optimised)(*arrays), got, strict=True):
        compare(a, b)
    return got


def counting(grid, semantics, **kwargs):
    """Each cell gives how many cells its core has run, itself included, since the scratch memory
    was new, which is NaN."""

    def kernel(o_ref, count):
        count[0] = jnp.where(jnp.isnan(count[0]), 0, count[0]) + 1
        o_ref[...] = jnp.full_like(o_ref, count[0])

    return lambda: pl.pallas_call(
        kernel, grid=grid, out_specs=pl.BlockSpec((8, 128), lambda *at: (at[0], at[1])),
        out_shape=f32(8 * grid[0], 128 * grid[1]), scratch_shapes=[VMEM((1,), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics), **kwargs,
    )()  # fmt: skip


@pytest.mark.parametrize("semantics, grid, want", [
    (("parallel", "arbitrary"), (4, 2), [[1, 2], [3, 4], [1, 2], [3, 4]]),
    (("core_parallel", "arbitrary"), (2, 3), [[1, 2, 3], [1, 2, 3]]),
    (("parallel", "arbitrary"), (3, 2), [[1, 2], [3, 4], [1, 2]]),
    (("parallel", "parallel"), (1, 4), [[1, 2, 1, 2]]),
    (("parallel", "arbitrary"), (1, 2), [[1, 2]]),
    (("arbitrary", "parallel"), (2, 2), [[1, 2], [3, 4]]),
    (("arbitrary", "arbitrary"), (4, 1), [[1], [2], [3], [4]]),
])  # fmt: skip
def test_the_cores_of_a_tpu_share_the_first_axis_of_a_grid(semantics, grid, want):
    (got,) = on_two_cores(counting(grid, semantics))
    np.testing.assert_array_equal(got[::8, ::128], want)


@pytest.mark.parametrize("interpret", [True, CHECKED])
def test_an_interpreter_has_one_core(interpret):
    f = counting((4, 1), ("parallel", "arbitrary"), interpret=interpret)
    (got,) = on_two_cores(f)
    np.testing.assert_array_equal(got[::8, ::128], [[1], [2], [3], [4]])


def test_a_sum_that_starts_again_on_each_core():
    def kernel(x_ref, o_ref, total):
        @pl.when(pl.program_id(1) == 0)
        def _():
            total[...] = jnp.zeros_like(total)

        total[...] += x_ref[...]
        o_ref[...] = total[...]

    f = pl.pallas_call(
        kernel, grid=(5, 3), in_specs=[spec((8, 128), lambda i, k: (i, k))],
        out_specs=spec((8, 128), lambda i, k: (i, 0)), out_shape=f32(40, 128),
        scratch_shapes=[VMEM((8, 128), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
    )
    x = numbers(40, 384)
    (got,) = on_two_cores(f, x)
    np.testing.assert_array_equal(got, np.asarray(x).reshape(40, 3, 128).sum(1))


def test_cores_of_a_tpu_that_wait_for_one_another():
    def kernel(x_ref, o_ref, both_ref, sem, copied):
        core = pl.program_id(0)
        pltpu.make_async_copy(x_ref, both_ref.at[core], copied).start()
        pltpu.make_async_copy(x_ref, both_ref.at[core], copied).wait()
        signal(sem, 1, core_index=1 - core)
        wait(sem, 1)
        pltpu.make_async_copy(both_ref.at[1 - core], o_ref, copied).start()
        pltpu.make_async_copy(both_ref.at[1 - core], o_ref, copied).wait()

    def f(x):
        row = spec((8, 128), lambda i: (i, 0))
        return pl.pallas_call(
            kernel, grid=(2,), in_specs=[row], out_specs=[row, ANYWHERE],
            out_shape=[f32(16, 128), f32(2, 8, 128)], scratch_shapes=[REGULAR, DMA],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("core_parallel",)),
        )(x)

    x = numbers(16, 128)
    got, _ = on_two_cores(f, x)
    np.testing.assert_array_equal(got, np.roll(np.asarray(x), 8, 0))
