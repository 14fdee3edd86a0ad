"""Native sums of products of floats give NumPy's bits, by BLAS's own function."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from pallas_shim.evaluator import blas, products
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise
from tests.fuzz.natively import compare_natively

pytest.importorskip("llvmlite")

from pallas_shim.evaluator.codegen import native  # noqa: E402

if not blas.adds_exactly(np.dtype(np.float32), 128):
    pytest.skip("NumPy's BLAS adds no products", allow_module_level=True)


@pytest.fixture(autouse=True)
def all_are_shared(monkeypatch):
    monkeypatch.setattr(products, "_JOINED_WORTH_SHARING", 1 << 22)
    monkeypatch.setattr(products, "_WORTH_ADDING", 1 << 22)


def matmul(x, y, block, starts=True, transposed=False, terms=128):
    (rows, most), columns = x.shape, y.shape[0 if transposed else 1]

    def kernel(x_ref, y_ref, out_ref):
        if starts:

            @pl.when(pl.program_id(2) == 0)
            def _():
                out_ref[...] = jnp.full_like(out_ref, starts - 1)

        other = y_ref[...].T if transposed else y_ref[...]
        out_ref[...] += x_ref[...] @ other

    right = pl.BlockSpec((terms, block), lambda i, j, k: (k, j))
    if transposed:
        right = pl.BlockSpec((block, terms), lambda i, j, k: (j, k))
    return pl.pallas_call(
        kernel, jax.ShapeDtypeStruct((rows, columns), x.dtype),
        grid=(rows // block, columns // block, most // terms),
        in_specs=[pl.BlockSpec((block, terms), lambda i, j, k: (i, k)), right],
        out_specs=pl.BlockSpec((block, block), lambda i, j, k: (i, j)), interpret=True,
    )(x, y)  # fmt: skip


def called(f, *args):
    """What native code of a function has NumPy do. It gives NumPy's bits."""
    with jax.enable_x64(True):
        program = optimise(lower(jax.make_jaxpr(f)(*args)))
    assert "sum_of_products" in [i.name for i in program.top.walk()]
    lowering, _ = native.source(program)
    assert compare_natively(program, [np.asarray(arg) for arg in args]) == ""
    return list(lowering.called)


def numbers(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("starts", [1, 3])  # with 0, or with 2
@pytest.mark.parametrize("terms", [128, 512])  # added by BLAS, or after it
def test_a_sum(dtype, starts, terms):
    x, y = numbers(256, 1024, dtype=dtype), numbers(1024, 384, dtype=dtype, seed=1)
    assert called(lambda x, y: matmul(x, y, 128, starts, terms=terms), x, y) == []


def test_one_product_alone():
    x, y = numbers(256, 512), numbers(512, 256, seed=1)
    assert called(lambda x, y: matmul(x, y, 128, terms=512), x, y) == []


def test_a_transposed_matrix():
    x, y = numbers(256, 384), numbers(512, 384, seed=1)
    assert called(lambda x, y: matmul(x, y, 128, transposed=True), x, y) == []


def test_a_matrix_by_its_transpose_is_left_to_numpy():
    x = numbers(512, 384)
    program = optimise(lower(jax.make_jaxpr(lambda x, y: matmul(x, y, 128, transposed=True))(x, x)))
    with pytest.raises(native.NotNative, match="sum_of_products"):
        native.source(program)


def test_tiny_numbers():
    """BLAS's threads compute with subnormal numbers, but leave none."""
    x, y = numbers(256, 256) * np.float32(2.0**-70), numbers(256, 256, seed=1)
    y *= np.float32(2.0**-60)
    assert called(lambda x, y: matmul(x, y, 128), x, y) == []


def test_infinities_and_nans():
    x, y = numbers(256, 256), numbers(256, 256, seed=1)
    x[0], x[1, 1], y[:, 2] = np.inf, np.nan, -np.inf
    assert called(lambda x, y: matmul(x, y, 128), x, y) == []


def test_narrow_floats_are_left_to_numpy():
    x, y = (jnp.asarray(numbers(256, 256, seed=n), jnp.bfloat16) for n in range(2))

    def f(x, y):
        def kernel(x_ref, y_ref, out_ref):
            out_ref[...] += jnp.dot(x_ref[...], y_ref[...], preferred_element_type=jnp.float32)

        return pl.pallas_call(
            kernel, jax.ShapeDtypeStruct((256, 256), jnp.float32), interpret=True
        )(x, y)

    with pytest.raises(native.NotNative, match="sum_of_products"):
        native.source(optimise(lower(jax.make_jaxpr(f)(x, y))))
