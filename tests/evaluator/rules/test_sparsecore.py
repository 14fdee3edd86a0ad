"""SparseCore's vector units: JAX runs these on a TPU only, and its documentation defines them."""

import collections

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import tpu_sc as plsc

from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.rules import Unsupported
from tests.kernels import harness
from tests.oracle import compare

TPU, LANES = "TPU v5p", 8
RNG = np.random.default_rng(0)
DTYPES = (np.int32, np.float32)
MASKS = [np.ones(LANES, bool), np.zeros(LANES, bool), *(RNG.random((4, LANES)) < 0.5)]


def run(kernel, outs, *args):
    """The outputs of a kernel, which the evaluator's ways of running it agree on."""
    structs = [jax.ShapeDtypeStruct(np.shape(out), out.dtype) for out in outs]
    with harness.abstract_tpu(TPU):
        ways = harness.evaluate(pl.pallas_call(kernel, out_shape=structs), *args)
    for first, *others in zip(*ways, strict=True):
        for other in others:
            np.testing.assert_array_equal(first, other)
    return ways[0]


def check(kernel, want, *args):
    for got, expected in zip(run(kernel, want, *args), want, strict=True):
        compare(got, expected)


def lanes(dtype, low=-20, high=20):
    values = RNG.integers(low, high, LANES)
    return values.astype(dtype) if dtype != np.uint32 else values.astype(np.int32).view(np.uint32)


def sum_of(x, mask):
    return np.array([x[: i + 1][mask[: i + 1]].sum(dtype=x.dtype) for i in range(LANES)])


def extremum(pick):
    def of(x, mask):
        counted = [x[: i + 1][mask[: i + 1]] for i in range(LANES)]
        return np.array([pick(c) if c.size else x[i] for i, c in enumerate(counted)], x.dtype)

    return of


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name, want", [("cumsum", sum_of), ("cummax", extremum(np.max)), ("cummin", extremum(np.min))]
)
def test_scans(name, want, dtype):
    scan = getattr(plsc, name, None) or getattr(plsc, f"masked_{name}", None)
    for mask in MASKS if scan is not None else ():  # JAX 0.8 has one of them
        x = lanes(dtype)

        def kernel(x, mask, out):
            out[...] = scan(x[...], mask=mask[...])

        check(kernel, [want(x, mask).astype(dtype)], x, mask)


@pytest.mark.parametrize("dtype", DTYPES)
def test_occurrences(dtype):
    count = getattr(plsc, "scan_count", None) or plsc.unique
    for mask in MASKS:
        x = lanes(dtype, 0, 4)

        def kernel(x, mask, counts, last):
            counts[...], is_last = count(x[...], mask=mask[...])
            last[...] = is_last.astype(jnp.int32)

        seen: collections.Counter[np.generic] = collections.Counter()
        counts = []
        for value, counted in zip(x, mask, strict=True):
            seen[value] += bool(counted)
            counts.append(seen[value])
        last = [m and value not in x[i + 1 :][mask[i + 1 :]]
                for i, (value, m) in enumerate(zip(x, mask, strict=True))]
        want = [np.array(counts, np.int32), np.array(last, np.int32)]
        got_counts, got_last = run(kernel, want, x, mask)
        np.testing.assert_array_equal(got_counts[mask], want[0][mask])
        np.testing.assert_array_equal(got_last, want[1])


if hasattr(plsc, "sort_key_val"):  # JAX >= 0.9

    @pytest.mark.parametrize("descending", [False, True])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_sort(dtype, descending):
        keys, values = lanes(dtype, -3, 3), np.arange(LANES, dtype=np.float32)

        def order(mask):
            sign = -1 if descending else 1
            by = [(not m, sign * k.item() * m) for m, k in zip(mask, keys, strict=True)]
            return sorted(range(LANES), key=by.__getitem__)

        def kernel(keys, values, out, moved):
            pair = plsc.sort_key_val(keys[...], values[...], descending=descending)
            out[...], moved[...] = pair

        def masked(keys, values, mask, out, moved, left):
            out[...], moved[...], valid = plsc.sort_key_val(
                keys[...], values[...], mask=mask[...], descending=descending
            )
            left[...] = valid.astype(jnp.int32)

        at = order(MASKS[0])
        check(kernel, [keys[at], values[at]], keys, values)
        for mask in MASKS:
            at = order(mask)
            check(masked, [keys[at], values[at], np.int32(mask[at])], keys, values, mask)


@pytest.mark.parametrize("mask", MASKS)
def test_counts_of_a_mask(mask):
    def kernel(mask, count, first):
        count[...] = plsc.all_reduce_population_count(mask[...])
        first[...] = plsc.all_reduce_ffs(mask[...])

    at = list(mask).index(True) if mask.any() else LANES
    check(kernel, [np.full(LANES, mask.sum(), np.int32), np.full(LANES, at, np.int32)], mask)


@pytest.mark.parametrize("wide, narrow", [(np.float32, ml_dtypes.bfloat16), (np.int32, np.int16)])
def test_pack(wide, narrow):
    a, b = lanes(wide, -40000, 40000), lanes(wide, -40000, 40000)
    one, other = a.astype(narrow), b.astype(narrow)

    def kernel(a, b, *outs):
        for i, format in enumerate(plsc.PackFormat):
            outs[3 * i][...] = packed = plsc.pack(a[...], b[...], format=format)
            outs[3 * i + 1][...], outs[3 * i + 2][...] = plsc.unpack(packed, format=format)

    halves = [one.astype(wide), other.astype(wide)]
    packed = {"COMPRESSED": np.concatenate([one, other]).reshape(-1, 2),
              "INTERLEAVED": np.stack([one, other], 1).reshape(-1)}
    check(kernel, [x for f in plsc.PackFormat for x in (packed[f.name], *halves)], a, b)


@pytest.mark.parametrize("mask", MASKS)
def test_masked_access(mask):
    x, count = lanes(np.int32), mask.sum()

    def kernel(x, mask, expanded, compressed, added):
        expanded[...] = plsc.load_expanded(x.at[...], mask=mask[...])
        compressed[...] = jnp.full((LANES,), 7)
        plsc.store_compressed(compressed.at[...], x[...], mask=mask[...])
        added[...] = jnp.full((LANES,), 7)
        plsc.addupdate_compressed(added.at[...], x[...], mask=mask[...])
        plsc.addupdate(added.at[...], x[...])

    expanded, compressed, added = run(kernel, [x, x, x], x, mask)
    np.testing.assert_array_equal(expanded[mask], x[:count])
    rest = np.full(LANES - count, 7)
    np.testing.assert_array_equal(compressed, np.concatenate([x[mask], rest]))
    some = np.concatenate([x[mask] + 7, rest])
    np.testing.assert_array_equal(added, some + x)


@pytest.mark.parametrize("mask", [None, *MASKS])
def test_gather_and_scatter(mask):
    x, table = lanes(np.int32), RNG.integers(-9, 9, (3, 5)).astype(np.int32)
    rows, columns = RNG.integers(0, 3, LANES), RNG.integers(0, 5, LANES)
    at = [rows.astype(np.int32), columns.astype(np.int32)]
    if mask is not None:  # where it is false the indices mean nothing
        at[0] = np.where(mask, at[0], 1000).astype(np.int32)
    on = np.ones(LANES, bool) if mask is None else mask

    def kernel(x, table, rows, columns, mask_ref, taken, stored, added, part):
        indices = [rows[...], columns[...]]
        given = {} if mask is None else {"mask": mask_ref[...]}
        taken[...] = plsc.load_gather(table, indices, **given)
        stored[...], added[...] = table[...], table[...]
        plsc.store_scatter(stored, indices, x[...], **given)
        plsc.addupdate_scatter(added, indices, x[...], **given)
        part[...] = plsc.load_gather(table.at[1], [columns[...]], **given)

    stored, added = table.copy(), table.copy()
    for row, column, value in zip(rows[on], columns[on], x[on], strict=True):
        stored[row, column] = value
        added[row, column] += value
    got = run(kernel, [x, stored, added, x], x, table, *at, on)
    np.testing.assert_array_equal(got[0][on], table[rows, columns][on])
    np.testing.assert_array_equal(got[1], stored)
    np.testing.assert_array_equal(got[2], added)
    np.testing.assert_array_equal(got[3][on], table[1, columns][on])


def test_parallel_loop():
    x = RNG.integers(-9, 9, (6, LANES)).astype(np.int32)

    def kernel(x, bounds, doubled, total):
        # Without a carry JAX 0.10 takes the loop for dead code in some places.
        @plsc.parallel_loop(bounds[0], bounds[1], 2, carry=jnp.zeros((LANES,), jnp.int32))
        def sums(i, carry):
            doubled[i] = 2 * x[i]
            return carry + x[i]

        total[...] = sums

    got, total = run(kernel, [x, x[0]], x, np.int32([1, 6]))
    np.testing.assert_array_equal(got[1::2], 2 * x[1::2])
    np.testing.assert_array_equal(total, x[1::2].sum(0, dtype=np.int32))


def test_a_barrier_of_one_subcore_does_nothing():
    barrier = getattr(plsc, "subcore_barrier", None) or plsc.barrier

    def kernel(x, out):
        barrier()
        out[...] = x[...]

    x = lanes(np.int32)
    check(kernel, [x], x)


if hasattr(plsc, "fetch_and_add"):  # JAX >= 0.10

    def test_the_memory_of_other_subcores_is_refused():
        def kernel(out, scratch):
            out[0] = plsc.fetch_and_add(scratch.at[0], 1, subcore_id=1)

        smem = pltpu.SMEM((1,), jnp.int32)
        call = pl.pallas_call(kernel, out_shape=smem, scratch_shapes=[smem])
        with harness.abstract_tpu(TPU), pytest.raises(Unsupported, match="another subcore"):
            lower(jax.make_jaxpr(call)())
