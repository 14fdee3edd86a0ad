"""Indexing rules against JAX. Each check runs many cases through one compilation."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.rules import Unsupported
from tests.oracle import check_rule, is_float

DTYPES = [
    np.bool_, np.int8, np.uint32, np.float16, np.float32, np.complex64,
    ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
]  # fmt: skip
if jax.__version_info__ >= (0, 9):  # before, XLA transposes int4 wrongly and can't gather it
    DTYPES.append(ml_dtypes.int4)
MODES = ["clip", "fill", "promise_in_bounds"]
SCATTERS = [lax.scatter, lax.scatter_add, lax.scatter_sub, lax.scatter_mul, lax.scatter_min,
            lax.scatter_max]  # fmt: skip
names = {"ids": lambda d: np.dtype(d).name}
rng = np.random.default_rng(0)


def filled(shape, dtype=np.float32):
    """The numbers from 1 on: small enough to be told apart in most dtypes."""
    return (1 + np.arange(math.prod(shape)).reshape(shape)).astype(dtype)


def indices(low, high, shape, dtype=np.int32):
    return rng.integers(low, high, shape).astype(dtype)


# -- dynamic_slice and dynamic_update_slice ----------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, **names)
def test_dynamic_slices_for_every_dtype(dtype):
    def f(x, window, i, j):
        return (
            lax.dynamic_slice(x, (i, j), (2, 3)),
            lax.dynamic_update_slice(x, window, (i, j)),
        )

    check_rule(f, filled((4, 5), dtype), np.zeros((2, 3), dtype), np.int32(1), np.int32(2))


@pytest.mark.parametrize(
    "shape, size",
    [((), ()), ((0,), (0,)), ((7,), (3,)), ((4, 0), (2, 0)), ((3, 4, 5), (3, 2, 5)),
     ((2, 3, 4, 5), (1, 3, 2, 1))],
    ids=str,
)  # fmt: skip
def test_dynamic_slices_for_every_rank(shape, size):
    """Starts beyond both ends are clamped."""

    def f(x, window, starts):
        return [
            (lax.dynamic_slice(x, start, size), lax.dynamic_update_slice(x, window, start))
            for start in ([row[d] for d in range(len(shape))] for row in starts)
        ]

    check_rule(f, filled(shape), -filled(size), indices(-10, 10, (6, len(shape))))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32, np.int64, np.uint64], **names)
def test_starts_of_every_integer_dtype(dtype):
    info = np.iinfo(dtype)
    starts = np.array([0, 7, info.max, info.min, 120], dtype)

    def f(x, starts):
        raw = [[start] for start in starts]
        return [
            (
                lax.dynamic_slice_p.bind(x, *start, slice_sizes=(4,)),
                lax.dynamic_update_slice_p.bind(x, x[:4] * 0, *start),
            )
            for start in raw
        ]

    check_rule(f, filled((300,)), starts)


# -- gather ------------------------------------------------------------------------------------


def take(x, i, axis, mode):
    return x.at[(slice(None),) * axis + (i,)].get(mode=mode)


@pytest.mark.parametrize("dtype", DTYPES, **names)
def test_gather_for_every_dtype(dtype):
    def f(x, i):
        return [
            (
                take(x, i, 0, mode),
                take(x, i, 1, mode),
                jnp.take_along_axis(x, i[:, :5], axis=1, mode=mode),
                take(x, i[0, 0], 0, mode),
            )
            for mode in MODES
        ] + [x.at[i].get(mode="fill", fill_value=3)]

    check_rule(f, filled((4, 5), dtype), indices(-8, 8, (4, 6)))


@pytest.mark.parametrize("mode", MODES)
def test_take(mode):
    """Along each axis of arrays of every rank, by indices of several, some out of bounds."""

    def f(i, *xs):
        return [
            take(x, at, axis, mode)
            for x in xs
            for axis in range(x.ndim)
            for at in (i, i[0, 0], i[:0])
        ]

    arrays = [filled(shape) for shape in [(5,), (2, 3, 4), (2, 3, 1, 2)]]
    check_rule(f, indices(-6, 6, (3, 4)), *arrays)


@pytest.mark.parametrize("mode", MODES)
def test_take_along_axis_of_tiles(mode):
    """As kernels do on (8, 128) tiles."""

    def f(x, i, j):
        return (
            jnp.take_along_axis(x, i, axis=1, mode=mode),
            jnp.take_along_axis(x, j, axis=0, mode=mode),
            jnp.take_along_axis(x, i[:1], axis=1, mode=mode),
            jnp.take_along_axis(x, j[:, :1], axis=0, mode=mode),
            jnp.take_along_axis(x[None], i[None, :, :3], axis=2, mode=mode),
        )

    i, j = indices(-140, 140, (8, 128)), indices(-10, 10, (8, 128))
    check_rule(f, filled((8, 128)), i, j)
    check_rule(f, filled((8, 128)), i % 128, j % 8)


@pytest.mark.parametrize("mode", MODES)
def test_numpy_indexing(mode):
    def f(x, i, j):
        get = {"mode": mode}
        return (
            x.at[i, j].get(**get),
            x.at[i, :, j].get(**get),
            x.at[:, i].get(**get),
            x.at[:, i, None, j].get(**get),
            x.at[i[0], 1:, j].get(**get),
            x.at[..., i].get(**get),
            x.at[i[:, None], j[None], 2].get(**get),
            x.at[i[0], j[1]].get(**get),
            x.at[1, i, ::2].get(**get),
            x[i, j, i],
        )

    check_rule(f, filled((4, 3, 5)), indices(-6, 6, (3,)), indices(-6, 6, (3,)))


def test_windows_along_every_axis():
    """Several index components, windows that are kept and that cover the operand in part."""
    dnums = lax.GatherDimensionNumbers(
        offset_dims=(1, 2, 4), collapsed_slice_dims=(1,), start_index_map=(2, 0, 1, 3)
    )

    def f(x, i):
        return [
            lax.gather(x, i, dnums, slice_sizes, mode=mode)
            for mode in MODES
            for slice_sizes in [(2, 1, 3, 4), (5, 1, 1, 2), (5, 1, 6, 4), (2, 1, 6, 4)]
        ]

    i = indices(-2, 6, (2, 3, 4))
    check_rule(f, filled((5, 3, 6, 4)), i)
    check_rule(f, filled((5, 3, 6, 4)), i * 0)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32])
def test_positions_that_the_type_of_the_indices_cannot_hold(dtype):
    dnums = lax.GatherDimensionNumbers(
        offset_dims=(), collapsed_slice_dims=(0, 1), start_index_map=(0, 1)
    )

    def f(x, i):
        return [lax.gather(x, i, dnums, (1, 1), mode=mode) for mode in MODES], x[i[:, 1], i[:, 0]]

    x = filled((100, 90))
    for limit in (90, 120):
        check_rule(f, x, indices(0, limit, (40, 2)).astype(dtype))


def test_a_start_along_a_dimension_that_the_window_covers():
    """Clamped to 0, or out of bounds if it is not 0."""
    dnums = lax.GatherDimensionNumbers(
        offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0, 1)
    )

    def f(x, i):
        return [lax.gather(x, at, dnums, (1, 4), mode=mode) for mode in MODES for at in (i, i[1:2])]

    check_rule(f, filled((3, 4)), np.array([[0, 0], [1, 1], [2, -1], [3, 0]], np.int32))


@pytest.mark.parametrize("mode", MODES)
def test_batched_gathers(mode):
    """vmap makes batching dimensions of operand and indices, in any order."""

    def rows(x, i):
        return take(x, i, 0, mode)

    def window(x, i):
        return lax.dynamic_slice(x, (i[0], i[1]), (2, 1))

    def f(x, y, i):
        return (
            jax.vmap(rows)(x, i),
            jax.vmap(rows, in_axes=(1, None))(x, i[0]),
            jax.vmap(rows, in_axes=(None, 0))(x, i),
            jax.vmap(rows, in_axes=(0, 1), out_axes=1)(x, i[:, :4].T),
            jax.vmap(jax.vmap(rows), in_axes=(1, 0))(y, jnp.stack([i] * 2, 1)[:3]),
            jax.vmap(jax.vmap(rows, in_axes=(0, None)), in_axes=(0, 0))(y, i[:2]),
            jax.vmap(window)(y, i[:2]),
            jax.vmap(window, in_axes=(2, 0))(y, i),
            jax.vmap(window, in_axes=(None, 1))(x, i),
        )

    check_rule(f, filled((5, 4)), filled((2, 3, 5)), indices(-7, 7, (5, 6)))


def test_fill_values():
    def f(i, *xs):
        return [
            x.at[i].get(mode="fill", fill_value=value) for x in xs for value in (None, 1, 2.7)
        ]

    check_rule(f, indices(-4, 4, (5,)), *[filled((2, 2), d) for d in (np.int16, np.uint8, "f4")])


def raw_gather(x, i, mode):
    dnums = lax.GatherDimensionNumbers((), (0,), (0,))
    return lax.gather(x, i[:, None], dnums, (1,), mode=mode)


def raw_scatter(x, i, updates, mode):
    dnums = lax.ScatterDimensionNumbers((), (0,), (0,))
    return lax.scatter(x, i[:, None], updates, dnums, mode=mode)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32, np.int64, np.uint64], **names)
def test_indices_of_every_integer_dtype(dtype):
    """Their extremes included, and 64-bit ones that come back in bounds if they are narrowed."""
    info = np.iinfo(dtype)
    length = min(300, int(info.max))
    values = [v for v in (0, 5, info.max, info.min, 120, 2**31, 2**32 + 7) if v <= info.max]

    def f(x, i):
        return [
            result
            for mode in MODES
            for at in (i, i[2:3], i[-1:])
            for result in (raw_gather(x, at, mode), raw_scatter(x, at, x[: len(at)] + 900, mode))
        ]

    check_rule(f, filled((length,)), np.array(values, object).astype(dtype))


def test_one_index_that_cannot_count_the_operand_is_unsupported():
    """XLA compares it with the length modulo 256, if there is one; with several it does not."""

    def f(x, i):
        return raw_scatter(x, i, x[:1], "drop")

    with pytest.raises(Unsupported, match="scatter: .* uint8"):
        lower(jax.make_jaxpr(f)(filled((300,)), np.zeros(1, np.uint8)))


@settings(max_examples=10, derandomize=True, deadline=None)
@given(st.data())
def test_gather(data):
    shape, batch, index_map, collapsed, batching, sizes, offset_dims, i = draw_windows(data)
    dnums = lax.GatherDimensionNumbers(
        offset_dims=offset_dims,
        collapsed_slice_dims=collapsed,
        start_index_map=index_map,
        operand_batching_dims=tuple(of for of, _ in batching),
        start_indices_batching_dims=tuple(d for _, d in batching),
    )
    check_rule(
        lambda x, i: [lax.gather(x, i, dnums, sizes, mode=m) for m in MODES], filled(shape), i
    )


def draw_windows(data, min_ndim=0):
    """Any dimension numbers that JAX takes, and indices for them."""
    ndim = data.draw(st.integers(min_ndim, 4))
    shape = tuple(data.draw(st.integers(1, 5)) for _ in range(ndim))
    kinds = [data.draw(st.sampled_from(["kept", "kept", "collapsed", "batching"])) for _ in shape]
    collapsed = tuple(d for d in range(ndim) if kinds[d] == "collapsed")
    batched = tuple(d for d in range(ndim) if kinds[d] == "batching")
    extra = data.draw(st.lists(st.integers(1, 3), max_size=2))
    places = data.draw(st.permutations(range(len(batched) + len(extra))))
    batch = [0] * len(places)
    for place, length in zip(places, [shape[d] for d in batched] + extra, strict=True):
        batch[place] = length
    batching = tuple(zip(batched, places, strict=False))
    sizes = tuple(
        data.draw(st.integers(0 if data.draw(st.integers(0, 9)) == 0 else 1, n)) if k == "kept"
        else 1
        for n, k in zip(shape, kinds, strict=True)
    )
    candidates = data.draw(st.permutations([d for d in range(ndim) if d not in batched]))
    index_map = tuple(d for d in candidates if d in collapsed or data.draw(st.booleans()))
    kept = ndim - len(collapsed) - len(batched)
    offset_dims = tuple(sorted(data.draw(st.permutations(range(len(batch) + kept)))[:kept]))
    i = indices(-2, 6, (*batch, len(index_map)))
    return shape, batch, index_map, collapsed, batching, sizes, offset_dims, i


# -- scatter -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, **names)
def test_scatter_for_every_dtype(dtype):
    """With many duplicates: narrow floats are rounded after each of them, as XLA does."""
    dtype = np.dtype(dtype)
    scatters = SCATTERS
    if dtype == np.bool_:
        scatters = [lax.scatter, lax.scatter_min, lax.scatter_max]
    elif dtype.kind == "c":
        scatters = SCATTERS[:4]
    x, updates = filled((7, 3), dtype), (rng.standard_normal((40, 3)) * 2).astype(dtype)
    if is_float(dtype):
        special = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0]).astype(dtype)
        updates[:12, 2] = np.repeat(special, 2)
        x[:, 2] = np.resize(special, 7)

    def f(x, i, updates):
        dnums = lax.ScatterDimensionNumbers((1,), (0,), (0,))
        return [
            scatter(x, at[:, None], updates[: len(at)], dnums, mode="drop")
            for scatter in scatters
            for at in (i, i[:1])
        ]

    check_rule(f, x, indices(-1, 8, (40,)), updates)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_extrema_know_the_signs_of_zeros(zero):
    x, updates = np.full((6,), zero, np.float32), np.array([0.0, -0.0] * 3, np.float32)

    def f(x, updates):
        i = jnp.array([0, 1, 2, 2, 4, 3])
        return x.at[i].max(updates), x.at[i].min(updates)

    check_rule(f, x, updates)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("unique", [False, True])
def test_numpy_updates(mode, unique):
    """With unique_indices=True JAX is only promised something; no promise is broken here."""

    def f(x, i, j, v):
        how = {"mode": mode, "unique_indices": unique}
        return (
            x.at[i, j].set(v[0, 0], **how),
            x.at[i, :, j].add(v[:3, :3, 0], **how),
            x.at[:, i].multiply(v[:4, :3], **how),
            x.at[..., i].min(v[:4, :3, :3], **how),
            x.at[i[:, None], j[None], 2].max(v[0, :3, :3], **how),
            x.at[i[0], j[1]].set(v[0, 0], **how),
            x.at[i[0]].add(-1.5, **how),
            x.at[1, i, ::2].subtract(2, **how) if hasattr(x.at[0], "subtract") else x,
            x.at[i[0], 1:, j].set(v[:3, :2, 0], **how),
            x.at[i[:0]].set(0, **how),
        )

    i = np.array([2, 1, -9], np.int32)
    check_rule(f, filled((4, 3, 5)), i, i[::-1].copy(), -filled((5, 5, 5)))


@pytest.mark.parametrize("mode", MODES)
def test_overlapping_windows(mode):
    """A window that sticks out is moved or dropped as a whole, and later windows win."""

    def f(x, i, updates):
        dnums = lax.ScatterDimensionNumbers((1, 2), (), (1, 0))
        return [scatter(x, i, updates, dnums, mode=mode) for scatter in SCATTERS]

    i = indices(-2, 6, (30, 2))
    check_rule(f, filled((6, 5)), i, rng.standard_normal((30, 3, 2)).astype(np.float32))


@pytest.mark.parametrize("mode", MODES)
def test_batched_scatters(mode):
    def at_add(x, i, v):
        return x.at[i].add(v, mode=mode)

    def at_set(x, i, v):
        return x.at[i].set(v, mode=mode)

    def window(x, i, v):
        return lax.dynamic_update_slice(x, v, (i[0], i[1]))

    def f(x, y, i, v):
        return (
            jax.vmap(at_add)(x, i, v),
            jax.vmap(at_set, in_axes=(1, 0, 0))(x, i[:4], v[:4]),
            jax.vmap(at_set, in_axes=(0, 1, 1), out_axes=1)(x, i[:, :5], v[:, :5]),
            jax.vmap(jax.vmap(at_add, in_axes=(0, None, 0)))(y, i[:2], y[:, :, 0]),
            jax.vmap(jax.vmap(at_set, in_axes=(0, 0, None)))(y, jnp.stack([i] * 3, 1)[:2], v[:2]),
            jax.vmap(window)(y, i[:2], -y[:, :2, :3]),
            jax.vmap(window, in_axes=(2, 0, None))(y, i, -y[:2, :2, 0]),
        )

    v = rng.standard_normal((5, 6)).astype(np.float32)
    check_rule(f, filled((5, 4)), filled((2, 3, 5)), indices(-7, 7, (5, 6)), v)


def test_scatter_apply():
    """The function is applied once for each time that an element is named."""

    def f(x, i):
        dnums = lax.ScatterDimensionNumbers((1,), (0,), (0,))
        return (
            x.at[i].apply(lambda v: v * 2 + 1),
            lax.scatter_apply(x, i[:, None], jnp.sign, dnums, update_shape=(6, 3)),
        )

    check_rule(f, filled((4, 3)), np.array([0, 2, 2, -1, 9, 0], np.int32))


@settings(max_examples=10, derandomize=True, deadline=None)
@given(st.data())
def test_scatter(data):
    # XLA can't compile a scatter into a scalar.
    shape, batch, index_map, collapsed, batching, sizes, window_dims, i = draw_windows(data, 1)
    dnums = lax.ScatterDimensionNumbers(
        update_window_dims=window_dims,
        inserted_window_dims=collapsed,
        scatter_dims_to_operand_dims=index_map,
        operand_batching_dims=tuple(of for of, _ in batching),
        scatter_indices_batching_dims=tuple(d for _, d in batching),
    )
    window = iter(sizes[d] for d in range(len(shape)) if d not in (*collapsed, *dict(batching)))
    outer = iter(batch)
    update_shape = [
        next(window) if d in window_dims else next(outer)
        for d in range(len(batch) + len(window_dims))
    ]

    def f(x, i, updates):
        return [s(x, i, updates, dnums, mode=m) for m in MODES for s in SCATTERS[:2]]

    check_rule(f, filled(shape), i, rng.standard_normal(update_shape).astype(np.float32))


# -- both --------------------------------------------------------------------------------------


def test_key_arrays_keep_the_words_of_a_key_together():
    def f(words, i):
        keys = jax.random.wrap_key_data(words)
        results = (
            lax.dynamic_slice(keys, (i[0], i[1]), (2, 1)),
            lax.dynamic_update_slice(keys, keys[:1, :2], (i[0], i[1])),
            keys.at[i].get(mode="clip"),
            keys.at[:, i].get(mode="clip"),
            keys.at[i, i].get(mode="clip"),
            keys.at[i[0], i[1]].get(mode="clip"),
            keys.at[i].set(keys[:2], mode="clip"),
            keys.at[i, i].set(keys[0, :2], mode="drop"),
        )
        return [jax.random.key_data(k) for k in results]

    check_rule(f, filled((3, 4, 2), np.uint32), np.array([1, 3], np.int32))


def test_a_mode_that_XLA_does_not_know_is_unsupported():
    def f(x, i):
        return raw_gather(x, i, "one_hot")

    with pytest.raises(Unsupported, match="gather: the mode ONE_HOT"):
        lower(jax.make_jaxpr(f)(filled((3,)), np.zeros(2, np.int32)))


def test_operands_are_left_alone():
    x, i, v = filled((4, 3)), np.array([1, 1], np.int32), -filled((2, 3))
    before = x.copy()
    check_rule(lambda x, i, v: (x.at[i].set(v), x.at[i].add(v), x[i], x[i[0]]), x, i, v)
    np.testing.assert_array_equal(x, before)
