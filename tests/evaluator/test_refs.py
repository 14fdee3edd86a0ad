"""Paths into refs, as rules simplify them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_shim.evaluator import memory, refs
from pallas_shim.evaluator.program import RefType
from pallas_shim.jax_compat.state import Index, Slice
from tests.evaluator.test_memory import paths


def read(shape, path, leaves):
    ids = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    return memory.viewer(shape, ids.dtype, path)(ids, *leaves)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(paths(), st.data())
def test_a_normalised_path_leads_to_the_same(case, data):
    """Wherever its dynamic indices lie."""
    shape, path, leaves = case
    short = refs.normalised(RefType(shape, np.dtype(np.int32), "any"), path)
    assert len(short) <= len(path)
    moved = [np.int32(data.draw(st.integers(-9, 9))) for _ in leaves]
    for places in (leaves, moved):
        np.testing.assert_array_equal(read(shape, short, places), read(shape, path, places))


@pytest.mark.parametrize(
    "first, then, both",
    [
        ((memory.Dynamic(0), Slice(0, 8, 1)), (3,), (memory.Dynamic(0), 3)),
        ((1, Slice(2, 6, 1)), (Slice(1, 4, 1),), (1, Slice(3, 4, 1))),
        ((Slice(0, 4, 1), 5), (memory.Dynamic(0),), (memory.Dynamic(0), 5)),
        ((Slice(0, 2, 2), Slice(1, 3, 2)), (1, Slice(0, 2, 2)), (2, Slice(1, 2, 4))),
    ],
)
def test_an_index_of_an_index_is_one(first, then, both):
    ref = RefType((4, 8), np.dtype(np.int32), "any")
    assert refs.normalised(ref, (Index(first), Index(then))) == (Index(both),)


@pytest.mark.parametrize("first", [Slice(2, 6, 1), Slice(memory.Dynamic(1), 6, 1)])
def test_dynamic_indices_of_slices_are_clamped_one_by_one(first):
    ref = RefType((8,), np.dtype(np.int32), "any")
    path = (Index((first,)), Index((memory.Dynamic(0),)))
    assert refs.normalised(ref, path) == path
