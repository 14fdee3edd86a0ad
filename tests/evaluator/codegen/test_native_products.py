"""Native products of integers give NumPy's bits, in each way that a processor may have."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise
from tests.fuzz.natively import compare_natively

pytest.importorskip("llvmlite")

from pallas_shim.evaluator.codegen import native  # noqa: E402
from pallas_shim.evaluator.codegen.native import machine, products  # noqa: E402

# What a processor has: nothing that is known, or more and more.
WAYS = {
    "none": (),
    "sse2": ("sse2",),
    "avx2": ("sse2", "avx2"),
    "avxvnni": ("sse2", "avx2", "avxvnni"),
    "avx512": ("sse2", "avx2", "avx512bw"),
    "avx512vnni": ("sse2", "avx2", "avx512bw", "avx512vnni"),
}
MATRICES = (((1,), (0,)), ((), ()))


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    needed = frozenset(WAYS[request.param])
    if needed and not needed <= machine.features():
        pytest.skip("this processor doesn't have that")
    monkeypatch.setattr(products, "features", lambda: needed)
    return request.param


def check(f, *args):
    """Native code of a function gives NumPy's bits, and calls no product."""
    with jax.enable_x64(True):
        program = optimise(lower(jax.make_jaxpr(f)(*args)))
    lowering, _ = native.source(program)
    assert "dot_general" not in lowering.called
    assert compare_natively(program, [np.asarray(arg) for arg in args]) == ""


def check_products(cases):
    """The same of products: (operands, dimension numbers, the result's dtype)."""

    def f(operands):
        return [
            lax.dot_general(x, y, dimensions, preferred_element_type=out)
            for (x, y), (_, dimensions, out) in zip(operands, cases, strict=True)
        ]

    leaves, tree = jax.tree.flatten([operands for operands, *_ in cases])
    check(lambda *leaves: f(jax.tree.unflatten(tree, leaves)), *leaves)


def extremes(dtype, *shape, seed=0):
    """Half of the numbers are the least and the greatest, and a line of each kind only these."""
    source = np.random.default_rng(seed)
    if dtype == "bool":
        return source.integers(0, 2, shape).astype(bool)
    info = np.iinfo(dtype)
    made = source.integers(info.min, info.max, shape, dtype, endpoint=True)
    ends = np.where(source.integers(0, 2, shape), info.min, info.max).astype(dtype)
    made = np.where(source.integers(0, 2, shape), ends, made)
    for number, end in enumerate((info.min, info.max)):
        for axis in range(len(shape)):
            np.moveaxis(made, axis, 0)[number : number + 1] = end
    return made


TYPES = (
    *[(x, y, "int32") for x in ("int8", "uint8") for y in ("int8", "uint8")],
    ("int16", "int16", "int32"), ("int16", "uint8", "int16"), ("bool", "int8", "int32"),
    ("int8", "int8", "int8"), ("uint8", "uint8", "uint8"), ("int8", "int8", "int64"),
    ("uint16", "uint16", "uint32"), ("int32", "int32", "int32"), ("int64", "int64", "int64"),
)  # fmt: skip


def test_types(way):
    """With a rest of rows, columns and terms, and all of the extremes."""
    cases = []
    for left, right, out in TYPES:
        cases.append(((extremes(left, 9, 7), extremes(right, 7, 37, seed=1)), MATRICES, out))
    check_products(cases)


SIZES = ((1, 1, 1), (1, 5, 3), (3, 4, 16), (8, 8, 64), (300, 3, 2), (2, 70, 65))
DTYPES = ("int8", "int16", "int32")


def test_sizes(way):
    cases = []
    for number, (rows, terms, columns) in enumerate(SIZES):
        dtype = DTYPES[number % 3]
        x, y = extremes(dtype, rows, terms), extremes(dtype, terms, columns, seed=1)
        cases.append(((x, y), MATRICES, "int32"))
    check_products(cases)


DIMENSIONS = (
    ((9, 20), (33, 20), (((1,), (1,)), ((), ()))),
    ((20, 9), (20, 33), (((0,), (0,)), ((), ()))),
    ((20, 9), (33, 20), (((0,), (1,)), ((), ()))),
    ((12,), (12,), (((0,), (0,)), ((), ()))),
    ((5, 12), (12,), (((1,), (0,)), ((), ()))),
    ((3, 2, 9, 20), (3, 2, 20, 17), (((3,), (2,)), ((0, 1), (0, 1)))),
    ((9, 3, 20), (20, 17, 3), (((2,), (0,)), ((1,), (2,)))),
    ((4, 5, 6), (6, 5, 7), (((1, 2), (1, 0)), ((), ()))),
    ((4, 6, 5), (7, 6, 5), (((1,), (1,)), ((2,), (2,)))),
    ((2, 3, 4), (4, 5, 6), (((2,), (0,)), ((), ()))),
    ((3, 4), (3, 4), (((), ()), ((0, 1), (0, 1)))),
)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dimensions(dtype):
    """In the way that this processor has."""
    check_products([
        ((extremes(dtype, *left), extremes(dtype, *right, seed=1)), dimensions, "int32")
        for left, right, dimensions in DIMENSIONS
    ])


@pytest.mark.parametrize("shape", [(2, 2048), (2, 600)])
def test_many_terms_and_columns(shape):
    """Several panels at once, and rows that would drive one another out of a cache."""
    rows, terms = shape
    y = extremes("int8", terms, 32 * 12, seed=1)
    check_products([((extremes("int8", rows, terms), y), MATRICES, "int32")])


def test_parts_of_matrices():
    """Operands that are views, and results that go on."""

    def f(x, y):
        a = jnp.dot(x[1:10, 2:25:2], y.T[3:15], preferred_element_type=jnp.int32)
        return a, jnp.dot(a * 2 + 1, a.T), (a > 0).sum(1)

    check(f, extremes("int8", 12, 30), extremes("int8", 19, 20, seed=1))


@pytest.mark.parametrize("last", ["arbitrary", "parallel"])
def test_blocks_of_a_grid(last):
    """A loop over cells, and one matrix for many cells."""

    def kernel(x_ref, y_ref, out_ref, sums_ref):
        @pl.when(pl.program_id(2) == 0)
        def _():
            sums_ref[...] = jnp.zeros_like(sums_ref)

        sums_ref[...] += jnp.dot(x_ref[...], y_ref[...], preferred_element_type=jnp.int32)
        out_ref[...] = sums_ref[...].astype(jnp.float32) * 0.5

    terms = 16 if last == "arbitrary" else 32
    f = pl.pallas_call(
        kernel,
        jax.ShapeDtypeStruct((24, 40), jnp.float32),
        grid=(3, 2, 32 // terms),
        in_specs=[
            pl.BlockSpec((8, terms), lambda i, j, k: (i, k)),
            pl.BlockSpec((terms, 20), lambda i, j, k: (k, j)),
        ],
        out_specs=pl.BlockSpec((8, 20), lambda i, j, k: (i, j)),
        scratch_shapes=[pltpu.VMEM((8, 20), jnp.int32)],
        interpret=True,
    )
    check(f, extremes("int8", 24, 32), extremes("int8", 32, 40, seed=1))
