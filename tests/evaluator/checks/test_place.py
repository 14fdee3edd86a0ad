"""Places against memory itself: a store of all bits changes the elements that a place names."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.checks.place import RefElements, SizedPlace, place_of
from pallas_shim.evaluator.memory import Chosen, Dynamic
from pallas_shim.jax_compat.state import Bitcast, Index, Reshape, Slice, Transpose

INT8, INT16, INT32 = (np.dtype(f"i{size}") for size in (1, 2, 4))
BF16 = np.dtype(ml_dtypes.bfloat16)

# shape, dtype, path, leaves
PATHS = {
    "whole": ((4, 8), INT32, (), ()),
    "slice": ((8, 16), INT32, (Index((Slice(2, 3, 1), Slice(0, 16, 1))),), ()),
    "strides": ((9, 16), INT32, (Index((Slice(1, 4, 2), Slice(3, 3, 5))),), ()),
    "integer": ((8, 16), INT32, (Index((5, Slice(4, 8, 1))),), ()),
    "element": ((8, 16), INT32, (Index((5, 7)),), ()),
    "dynamic": ((8, 16), INT32, (Index((Slice(Dynamic(0), 3, 1), Dynamic(1))),), (4, 9)),
    "nested": (
        (8, 16), INT32,
        (Index((Slice(2, 6, 1), Slice(0, 8, 2))), Index((Slice(1, 2, 2), Slice(3, 4, 1)))), (),
    ),
    "transposed": (
        (4, 8), INT32, (Transpose((1, 0)), Index((Slice(2, 3, 1), Slice(0, 4, 1)))), (),
    ),
    "reshaped": ((4, 8), INT32, (Reshape((8, 4)), Index((Slice(3, 3, 1), 2))), ()),
    "reshaped_slice": (
        (4, 8), INT32,
        (Index((Slice(1, 2, 1), Slice(0, 4, 1))), Reshape((8,)), Index((Slice(2, 3, 1),))), (),
    ),
    "same_width": ((4, 8), BF16, (Bitcast(INT16), Index((Slice(0, 2, 1), 3))), ()),
    "wider": ((8, 16), INT8, (Bitcast(INT32), Index((Slice(1, 1, 1), Slice(2, 3, 1)))), ()),
    "wider_whole": ((8, 4), INT16, (Bitcast(INT32),), ()),
    "narrower": ((4, 8), INT32, (Bitcast(INT8), Index((Slice(5, 2, 1), Slice(1, 4, 1)))), ()),
}  # fmt: skip


def touched(shape, dtype, path, leaves):
    """The elements that a store of all bits changes."""
    data = np.zeros(shape, dtype)
    part, wide = memory.viewed_type(shape, dtype, path)
    ones = np.full(part, -1, f"i{wide.itemsize}").view(wide)
    memory.writer(shape, dtype, path)(data, ones, *leaves)
    return data.view(f"i{dtype.itemsize}") != 0


@pytest.mark.parametrize("name", PATHS)
def test_what_a_store_changes(name):
    shape, dtype, path, leaves = PATHS[name]
    want = touched(shape, dtype, path, leaves)
    place = place_of(shape, dtype, path, [()] * len(leaves))
    entries = np.zeros(shape, np.uint8)
    place.write(entries, leaves, 1)
    np.testing.assert_array_equal(entries.astype(bool), want)
    assert place.read(want.astype(np.uint8), leaves).all()
    assert not place.read((~want).astype(np.uint8), leaves).any()
    assert place.outside(leaves) is None
    assert place.whole == want.all()
    view = place.view(np.empty(shape, np.uint8), leaves)
    assert view is None or view.size == want.sum()


@pytest.mark.parametrize(
    "path, leaves, outside",
    [
        ((Index((Slice(Dynamic(0), 4, 1), 0)),), (5,), (0, 5, 8, 8)),
        ((Index((Slice(Dynamic(0), 4, 1), 0)),), (-1,), (0, -1, 2, 8)),
        ((Index((0, Dynamic(0))),), (16,), (1, 16, 16, 16)),
        ((Index((Slice(2, 3, 1), Slice(0, 16, 1))), Index((Dynamic(0), 0))), (3,), (0, 3, 3, 3)),
        ((Index((Chosen(0), Slice(0, 16, 1))),), (np.array([1, 9, 2]),), (0, 9, 9, 8)),
    ],
)
def test_what_is_outside(path, leaves, outside):
    place = RefElements((8, 16), INT32, path, [np.shape(leaf) for leaf in leaves])
    assert tuple(place.outside(leaves)) == outside
    assert not place.proven
    entries = np.zeros((8, 16), np.uint8)
    place.write(entries, leaves, 1)  # of what is inside


def test_elements_that_are_masked_out_may_be_outside():
    place = RefElements((8,), INT32, (Index((Slice(Dynamic(0), 4, 1),)),), [()], masked=True)
    mask = np.array([False, False, True, True])
    assert place.outside((-2, mask)) is None
    assert tuple(place.outside((-3, mask))) == (0, -1, -1, 8)
    entries = np.zeros(8, np.uint8)
    place.write(entries, (-2, mask), 1)
    np.testing.assert_array_equal(entries, [1, 1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(place.read(entries, (-2, mask)), [0, 0, 1, 1])


def test_arrays_of_indices_stand_where_numpy_has_them():
    shape = (3, 4, 5)
    at, to = np.array([[0, 2], [1, 1]]), np.array([[4, 0], [3, 2]])
    for dims in (
        (Chosen(0), Slice(1, 2, 1), Chosen(1)),
        (Slice(0, 2, 2), Chosen(0), Chosen(1)),
        (Chosen(0), Chosen(1), Slice(0, 5, 1)),
    ):
        place = RefElements(shape, INT32, (Index(dims),), [(2, 2), (2, 2)])
        numbers = np.arange(60).reshape(shape)
        key = tuple(
            (at, np.minimum(to, 3) if dims[2:] == (Slice(0, 5, 1),) else to)[dim.leaf]
            if isinstance(dim, Chosen)
            else slice(dim.start, dim.start + (dim.size - 1) * dim.stride + 1, dim.stride)
            for dim in dims
        )
        leaves = (at, key[dims.index(Chosen(1))])
        np.testing.assert_array_equal(place.read(numbers, leaves), numbers[key])


def test_a_slice_of_a_size_that_only_the_run_knows_ends_with_its_ref():
    path = (Index((Slice(Dynamic(0), Dynamic(1), 1), Slice(0, 4, 1))),)
    place = place_of((8, 4), INT32, path, [(), ()])
    assert isinstance(place, SizedPlace)
    assert place.read(np.ones((8, 4), np.uint8), (2, 3)).shape == (3, 4)
    assert place.read(np.ones((8, 4), np.uint8), (6, 5)).shape == (2, 4)
    assert place.count((6, 5)) == 20  # what a semaphore counts
    assert place.outside((6, 5)) is None
