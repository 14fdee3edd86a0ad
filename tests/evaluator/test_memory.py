"""Paths into memory: what is written is read back, and nothing else changes."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_shim.evaluator import memory
from pallas_shim.evaluator.dynamic_slices import DynamicSlices
from pallas_shim.evaluator.scalar_types import bit_width
from pallas_shim.jax_compat.state import Bitcast, Index, Reshape, Slice, Transpose


@st.composite
def paths(draw):
    """A shape, a path of views, and the values of its dynamic leaves."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    start, path, leaves = shape, [], []
    for kind in draw(st.lists(st.sampled_from(["index", "transpose", "reshape"]), max_size=3)):
        if kind == "index":
            dims = []
            for dim in shape:
                size = draw(st.integers(1, dim))
                at = draw(st.integers(0, dim - size))
                if draw(st.booleans()):
                    leaves.append(np.int32(at))
                    at = memory.Dynamic(len(leaves) - 1)
                    stride = 1
                else:
                    stride = draw(st.integers(1, 2))
                    size = (size - 1) // stride + 1
                if size == 1 and draw(st.booleans()):
                    dims.append(at)
                else:
                    dims.append(Slice(at, size, stride))
            path.append(Index(tuple(dims)))
            shape = tuple(d.size for d in dims if isinstance(d, Slice))
        elif kind == "transpose":
            permutation = tuple(draw(st.permutations(range(len(shape)))))
            path.append(Transpose(permutation))
            shape = tuple(shape[i] for i in permutation)
        else:
            shape = draw(st.sampled_from([(-1,), (1, -1), (-1, 1), shape]))
            size = int(np.prod(memory.viewed_type(start, np.dtype("i4"), tuple(path))[0]))
            shape = tuple(size if d == -1 else d for d in shape)
            path.append(Reshape(shape))
    return start, tuple(path), leaves


@settings(max_examples=300, derandomize=True, deadline=None)
@given(paths())
def test_a_store_changes_exactly_what_a_load_reads(case):
    shape, path, leaves = case
    dtype = np.dtype(np.int32)
    ids = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    touched = memory.viewer(shape, dtype, path)(ids, *leaves)
    assert (touched.shape, touched.dtype) == memory.viewed_type(shape, dtype, path)
    memory_before = -ids - 1
    array = memory_before.copy()
    value = np.arange(touched.size, dtype=dtype).reshape(touched.shape) + 1000
    memory.writer(shape, dtype, path)(array, value, *leaves)
    np.testing.assert_array_equal(memory.viewer(shape, dtype, path)(array, *leaves), value)
    untouched = ~np.isin(ids, touched)
    np.testing.assert_array_equal(array[untouched], memory_before[untouched])


@pytest.mark.parametrize(
    "narrow, wide",
    [
        ("int16", "int32"),
        ("uint8", "int32"),
        ("int8", "int16"),
        (ml_dtypes.uint4, "int32"),
        (ml_dtypes.int4, "int8"),
    ],
)
def test_a_bitcast_packs_rows_as_jax_does(narrow, wide):
    import jax.numpy as jnp
    from jax import lax

    narrow, wide = np.dtype(narrow), np.dtype(wide)
    ratio = bit_width(wide) // bit_width(narrow)
    x = np.random.default_rng(0).integers(0, 100, (2, 8, 5)).astype(np.int8).astype(narrow)
    grouped = jnp.asarray(x).reshape(2, 8 // ratio, ratio, 5).swapaxes(-1, -2)
    want = np.asarray(lax.bitcast_convert_type(grouped, wide))
    got = memory.pack_rows(x, wide)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(memory.unpack_rows(got, narrow), x)


def test_a_store_through_a_bitcast_between_types_of_four_bits():
    block = np.zeros((8, 6), ml_dtypes.int4)[:, ::2]
    path = (Bitcast(np.dtype(ml_dtypes.uint4)), Index((1, Slice(0, 3, 1))))
    memory.writer(block.shape, block.dtype, path)(block, np.array([1, 8, 15], ml_dtypes.uint4))
    np.testing.assert_array_equal(block[1].astype(int), [1, -8, -1])
    got = memory.viewer(block.shape, block.dtype, path)(block)
    np.testing.assert_array_equal(got.astype(int), [1, 8, 15])


def test_a_store_through_a_widening_bitcast_of_a_strided_block():
    whole = np.zeros((8, 6), np.int16)
    block = whole[:, ::2]
    path = (Bitcast(np.dtype(np.int32)), Index((1, Slice(0, 3, 1))))
    memory.writer(block.shape, block.dtype, path)(block, np.int32([1 << 16, 2, 3]))
    np.testing.assert_array_equal(whole[3, ::2], [1, 0, 0])
    np.testing.assert_array_equal(whole[2, ::2], [0, 2, 3])
    assert not whole[:, 1::2].any()


@pytest.mark.parametrize("row", [5, memory.Dynamic(0), Slice(memory.Dynamic(0), 2, 1)])
@pytest.mark.parametrize("column", [3, Slice(1, 4, 2), Slice(memory.Dynamic(1), 3, 1)])
def test_an_index_of_a_widening_bitcast_chooses_before_it_packs(row, column):
    leaves = (np.int32(5), np.int32(2))
    narrow, wide = np.dtype(np.uint8), np.dtype(np.int32)
    small = np.random.default_rng(0).integers(0, 256, (2, 40, 8)).astype(narrow)
    path = (Bitcast(wide), Index((1, row, column)))
    index = memory.viewer((2, 10, 8), wide, path[1:])
    want = index(memory.pack_rows(small, wide), *leaves)
    got = memory.viewer(small.shape, narrow, path)(small, *leaves)
    np.testing.assert_array_equal(got, want)
    changed = small.copy()
    memory.writer(small.shape, narrow, path)(changed, ~want, *leaves)
    packed = memory.pack_rows(small, wide)
    index(packed, *leaves)[...] = ~want
    np.testing.assert_array_equal(memory.pack_rows(changed, wide), packed)

    # Far more rows than fit into memory.
    huge = np.broadcast_to(small[:, :1], (2, 1 << 40, 8))
    huge_path = (Bitcast(wide), Index((1, row, column)), Index((0,) * want.ndim))
    for read in (memory.viewer(huge.shape, narrow, huge_path), _cut(huge.shape, narrow, huge_path)):
        got = read(huge, *leaves)
        at = column.start if isinstance(column, Slice) else column
        at = 2 if isinstance(at, memory.Dynamic) else at
        assert got == np.repeat(small[1, :1, at], 4).view(wide)


@pytest.mark.parametrize(
    "row",
    [
        5,
        memory.Dynamic(0),
        Slice(8, 8, 1),
        Slice(3, 7, 2),
        Slice(39, 1, 1),
        Slice(memory.Dynamic(0), 2, 1),
        Slice(memory.Dynamic(0), 6, 1),
    ],
)
@pytest.mark.parametrize("column", [3, memory.Dynamic(1), Slice(1, 4, 2), Slice(0, 8, 1)])
@pytest.mark.parametrize("outer", [1, Slice(memory.Dynamic(2), 2, 1)])
@pytest.mark.parametrize("at", [0, 5, 7, 38, 39, 50, -1])
def test_an_index_of_a_narrowing_bitcast_chooses_before_it_unpacks(row, column, outer, at):
    leaves = (np.int32(at), np.int32(2), np.int32(1))
    narrow, wide = np.dtype(np.uint8), np.dtype(np.int32)
    large = np.random.default_rng(0).integers(-(2**31), 2**31, (3, 10, 8), dtype=wide)
    path = (Bitcast(narrow), Index((outer, row, column)))
    index = memory.viewer((3, 40, 8), narrow, path[1:])
    want = index(memory.unpack_rows(large, narrow), *leaves)
    assert memory.viewed_type(large.shape, wide, path) == (want.shape, narrow)
    for read in (memory.viewer(large.shape, wide, path), _cut(large.shape, wide, path)):
        got = read(large, *leaves)
        np.testing.assert_array_equal(got, want)
    changed = large.copy()
    memory.writer(large.shape, wide, path)(changed, ~want, *leaves)
    unpacked = memory.unpack_rows(large, narrow)
    index(unpacked, *leaves)[...] = ~want
    np.testing.assert_array_equal(memory.unpack_rows(changed, narrow), unpacked)


def test_an_index_of_a_narrowing_bitcast_needs_no_memory_for_the_rest():
    row = np.random.default_rng(0).integers(-(2**31), 2**31, (1, 8), dtype=np.int32)
    huge = np.broadcast_to(row, (1 << 40, 8))
    path = (Bitcast(np.dtype(np.int16)), Index((Slice(memory.Dynamic(0), 2, 1), Slice(0, 8, 1))))
    got = memory.viewer(huge.shape, huge.dtype, path)(huge, np.int32(6))
    np.testing.assert_array_equal(got, memory.unpack_rows(row, np.dtype(np.int16)))


def _cut(shape, dtype, path):
    cut = DynamicSlices(shape, dtype, path)
    return lambda ref, *leaves: cut.read(ref, leaves)


@pytest.mark.parametrize(
    "dtype, want",
    [
        ("int8", -128),
        ("uint16", 0),
        ("int16", 0),
        ("bool", False),
        (ml_dtypes.int4, -8),
        ("float32", np.nan),
        (ml_dtypes.bfloat16, np.nan),
        (ml_dtypes.float8_e4m3fn, np.nan),
    ],
)
def test_uninitialised_memory(dtype, want):
    got = np.full((2,), memory.filler(np.dtype(dtype)), dtype).astype(np.float64)
    np.testing.assert_array_equal(got, np.float64(want))


@pytest.mark.parametrize("start", range(-12, 13))
@pytest.mark.parametrize("size", [1, 3, 10])
def test_starts_are_clamped_as_xla_does(start, size):
    from jax import lax

    x = np.arange(10, dtype=np.int32)
    want = np.asarray(lax.dynamic_slice(x, (start,), (size,)))
    at = memory.clamped(start, 10, size)
    np.testing.assert_array_equal(x[at : at + size], want)
