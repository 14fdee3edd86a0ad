"""The kernels of the other tests, checked: nothing is found but what is there."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tests.check.harness import check
from tests.kernels import blocks, control, memory, numeric, refs, transforms
from tests.kernels.harness import abstract_tpu, cases
from tests.oracle import compare

CASES = cases(blocks, control, memory, numeric, refs, transforms)

# What these do on purpose, to see that it is as in JAX's interpreter.
WRONG = {
    # On a TPU, each cell sees what the one before it wrote.
    "blocks.scalar_prefetch_that_cells_write_to": {
        "blocks/index-map-input-written", "bounds/block-outside"
    },
    "memory.copies_of_dynamic_size": {"uninitialized/never-written"},
    "memory.copies_of_elements_by_arrays_of_indices": {"uninitialized/never-written"},
    "memory.copies_of_rows_by_indices": {"uninitialized/never-written"},
    "refs.a_load_larger_than_its_ref": {"bounds/outside-ref"},
    "refs.an_alias_in_blocks_past_its_end": {"bounds/block-outside"},
    "refs.constant_starts_that_stick_out_of_a_view": {"bounds/outside-ref"},
    "refs.constant_strided_slices_that_stick_out": {"bounds/outside-ref"},
    "refs.indices_outside_beside_strided_slices": {"bounds/outside-ref"},
    "refs.integer_and_array_indices": {"bounds/outside-ref"},
    "refs.masked_load_and_store": {"uninitialized/never-written"},
    "refs.masked_tpu_store": {"uninitialized/never-written"},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:the Pallas kernel")
def test_kernel(name):
    case = CASES[name]
    f, args, *expected = case.build()
    with abstract_tpu() if case.tpu else contextlib.nullcontext():
        checked = check(f, *args)
    assert set(checked.rules) == WRONG.get(name, set()), checked.findings
    assert not checked.not_checked
    for got, want in zip(checked.results, jax.tree.leaves(expected), strict=False):
        compare(np.asarray(got), np.asarray(want), ulp=case.ulp, rtol=case.rtol)


def first_of_two(x, calls_back=False):
    """The first of two cells starts a copy, and the second waits for it: a flag tells which is
    which. interpret=True shows each cell the flag as it was."""

    def kernel(flag_ref, x_ref, o_ref, got_ref, semaphore):
        copy = pltpu.make_async_copy(x_ref, got_ref, semaphore)
        first = flag_ref[0] == 1
        flag_ref[0] = 0
        o_ref[...] = jnp.full_like(o_ref, first)

        @pl.when(first)
        def _():
            copy.start()

        @pl.when(pl.program_id(0) == 1)
        def _():
            copy.wait()

        if calls_back:
            pl.debug_print("a cell")

    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, grid=(2,), in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        out_specs=pl.BlockSpec((8, 128), lambda i, flag: (i, 0)),
        scratch_shapes=[pltpu.VMEM((8, 128), jnp.float32), pltpu.SemaphoreType.DMA],
    )
    return pl.pallas_call(
        kernel, jax.ShapeDtypeStruct((16, 128), jnp.float32), grid_spec=grid_spec, interpret=True
    )(jnp.ones(1, jnp.int32), x)


def test_scalars_that_a_kernel_changes_stay_changed_for_the_checks():
    checked = check(first_of_two, jnp.ones((8, 128)))
    assert not checked.findings and not checked.not_checked
    np.testing.assert_array_equal(checked.results[0], np.ones((16, 128)))


def test_a_function_that_cannot_run_twice_for_its_scalars(capfd):
    checked = check(lambda x: first_of_two(x, True), jnp.ones((8, 128)))
    assert not checked.findings
    ((_, reason),) = checked.not_checked
    assert "scalar prefetch" in reason
    np.testing.assert_array_equal(checked.results[0], np.ones((16, 128)))
    assert capfd.readouterr().out.count("a cell") == 2


@pytest.mark.parametrize("used", [False, True])
def test_a_result_that_nothing_uses_is_not_looked_at(used):
    def kernel(x_ref, o_ref, left_ref):
        o_ref[...] = x_ref[...]

    out = jax.ShapeDtypeStruct((8, 128), jnp.float32)

    def f(x):
        both = pl.pallas_call(kernel, [out, out], interpret=True)(x)
        return both if used else both[0]

    checked = check(f, jnp.ones((8, 128)))
    assert checked.rules == ["uninitialized/never-written"] * used
    assert used or not any(i.name == "check" for i in checked.program.top.walk())
