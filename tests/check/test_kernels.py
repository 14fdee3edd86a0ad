"""The kernels of the other tests, checked: nothing is found but what is there."""

from __future__ import annotations

import contextlib

import jax
import numpy as np
import pytest

from tests.check.harness import check
from tests.kernels import blocks, control, memory, numeric, refs, transforms
from tests.kernels.harness import abstract_tpu, cases
from tests.oracle import compare

CASES = cases(blocks, control, memory, numeric, refs, transforms)

# What these do on purpose, to see that it is as in JAX's interpreter.
WRONG = {
    "blocks.scalar_prefetch_that_cells_write_to": {"blocks/index-map-input-written"},
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
