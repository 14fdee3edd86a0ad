from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas as pl

from pallas_shim.evaluator import blas, products
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise
from pallas_shim.evaluator.passes.grid import grid_batching
from pallas_shim.evaluator.passes.sums_of_products import sum_products
from pallas_shim.evaluator.program import PURE, Effects, Operation, RefType
from pallas_shim.evaluator.verify import operations

from .programs import check_pass, instructions, names

SUM = "sum_of_products"
RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 48, 64)).astype(np.float32)
Y = RNG.standard_normal((3, 64, 80)).astype(np.float32)
START = RNG.standard_normal((48, 80)).astype(np.float32)


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    monkeypatch.setattr(products, "_WORTH_ADDING", 0)


def test_a_sum():
    def f(start, *matrices):
        for x, y in zip(matrices[:3], matrices[3:], strict=True):
            start = start + x @ y
        return start

    assert check_pass(sum_products, f, START, *X, *Y) == [SUM]


def test_the_product_may_come_first():
    def f(start, x, y, z):
        return (x @ y + z @ y) + (z @ y + start)

    assert check_pass(sum_products, f, START, *X[:1], Y[0], X[1]).count(SUM) == 2


def test_a_sum_that_starts_with_zeros():
    def f(x, y, z, w):
        return (jnp.zeros_like(START) + x @ y) + z @ w

    args = X[0], Y[0], X[1], Y[1]
    assert check_pass(sum_products, f, *args) == [SUM]
    (made,) = instructions(sum_products(lower(jax.make_jaxpr(f)(*args))))
    assert len(made.ins) == 4 and not made.operation.params["starts"]


def test_a_sum_that_starts_with_minus_zeros():
    def f(x, y):
        return -np.zeros_like(START) + x @ y

    program = sum_products(lower(jax.make_jaxpr(f)(X[0], Y[0])))
    assert instructions(program)[-1].operation.params["starts"]


def test_narrow_floats_are_widened():
    def f(start, x, y):
        return start + jnp.dot(x, y, preferred_element_type=jnp.float32)

    x, y = (a[0].astype(ml_dtypes.bfloat16) for a in (X, Y))
    assert check_pass(sum_products, f, START, x, y) == [SUM]


def test_stacks():
    def f(start, x, y):
        dims = (((2,), (1,)), ((0,), (0,)))
        return start + lax.dot_general(x, y, dims) + lax.dot_general(x, y, dims)

    assert check_pass(sum_products, f, np.stack([START] * 3), X, Y) == [SUM]


def test_products_of_other_types_are_sums_of_their_own():
    def f(start, x, y):
        return start + x[0] @ y[0] + x[1, :, :32] @ y[1, :32]

    assert check_pass(sum_products, f, START, X, Y).count(SUM) == 2


def test_matrices_with_memory_of_their_own_go_one_by_one():
    def f(start, x, y, z):
        return start + jnp.exp(x) @ y + jnp.exp(z) @ y

    assert check_pass(sum_products, f, START, X[0], Y[0], X[1]).count(SUM) == 2


def test_zeros_of_any_type():
    def f(start, x, y):
        return start + x @ y, jnp.zeros((2, 3), np.complex64), jnp.zeros(4, jnp.bfloat16)

    assert SUM in check_pass(sum_products, f, START, X[0], Y[0])


@pytest.mark.parametrize("f", [
    lambda s, x, y: (s + x[0] @ y[0], x[0] @ y[1]),  # stays: it isn't added
    lambda s, x, y: (lambda p: (s + p, p))(x[0] @ y[0]),  # it is used twice
    lambda s, x, y: (s[0] + x[0] @ y[0], x[0] @ y[1]),
    lambda s, x, y: s + (x[0].astype(jnp.bfloat16) @ y[0].astype(jnp.bfloat16)),
    lambda s, x, y: s.astype(jnp.int32) + x[0].astype(jnp.int32) @ y[0].astype(jnp.int32),
    lambda s, x, y: jnp.tensordot(s, s, 0)[0, 0] + jnp.tensordot(x[0], y[0], (1, 0)),
])  # fmt: skip
def test_a_product_that_stays(f):
    assert "dot_general" in check_pass(sum_products, f, START, X, Y)


def test_large_ones_only(monkeypatch):
    monkeypatch.setattr(products, "_WORTH_ADDING", 1 << 23)
    assert SUM not in check_pass(sum_products, lambda s, x, y: s + x @ y, START, X[0], Y[0])


# -- in kernels ------------------------------------------------------------------------------------


def matmul(rows, terms, columns, block):
    """A product of matrices by blocks, which goes along the terms."""

    def kernel(x, y, out):
        @pl.when(pl.program_id(2) == 0)
        def _():
            out[...] = jnp.zeros_like(out)

        out[...] += x[...] @ y[...]

    return pl.pallas_call(
        kernel, jax.ShapeDtypeStruct((rows, columns), np.float32),
        grid=(rows // block, columns // block, terms // block),
        in_specs=[pl.BlockSpec((block, block), lambda i, j, k: (i, k)),
                  pl.BlockSpec((block, block), lambda i, j, k: (k, j))],
        out_specs=pl.BlockSpec((block, block), lambda i, j, k: (i, j)), interpret=True,
    )  # fmt: skip


def test_a_sum_that_is_written_out_goes_to_the_output():
    f = matmul(256, 384, 256, 128)
    args = [RNG.standard_normal(shape).astype(np.float32) for shape in ((256, 384), (384, 256))]
    lowered = lower(jax.make_jaxpr(f)(*args))
    program, without = optimise(lowered), optimise(lowered, skip={"sums_of_products"})
    assert "add" not in names(program) and "dot_general" not in names(program)
    (made,) = [i for i in instructions(program) if i.name == SUM]
    assert made.operation.effects.writes == (0,) and len(made.ins) == 7
    (got,), (want,) = Executable(program)(*args), Executable(without)(*args)
    assert got.tobytes() == want.tobytes()


def test_a_sum_in_a_loop_is_added_to_in_place(monkeypatch):
    monkeypatch.setattr(grid_batching, "_MOST_WRITTEN_OUT", 2)
    f = matmul(256, 384, 256, 128)
    args = [RNG.standard_normal(shape).astype(np.float32) for shape in ((256, 384), (384, 256))]
    lowered = lower(jax.make_jaxpr(f)(*args))
    program, without = optimise(lowered), optimise(lowered, skip={"sums_of_products"})
    (made,) = [i for i in instructions(program) if i.name == SUM]
    assert made.operation.effects.writes == (0,) and made.operation.params["starts"]
    (got,), (want,) = Executable(program)(*args), Executable(without)(*args)
    assert got.tobytes() == want.tobytes()


def test_a_product_does_not_move_past_a_write():
    def f(x, y):
        def kernel(x_ref, y_ref, out_ref, seen_ref):
            product = x_ref[...] @ y_ref[...]
            seen_ref[...] = jnp.ones_like(seen_ref)
            out_ref[...] = seen_ref[...] + product

        shape = jax.ShapeDtypeStruct((48, 80), np.float32)
        return pl.pallas_call(kernel, (shape, shape), interpret=True)(x, y)

    program = optimise(lower(jax.make_jaxpr(f)(X[0], Y[0])))
    got, _ = Executable(program)(X[0], Y[0])
    np.testing.assert_array_equal(got, 1 + X[0] @ Y[0])


def test_blas_adds_it_up(monkeypatch):
    if not blas.adds_exactly(np.dtype(np.float32), 128):
        pytest.skip("NumPy's BLAS adds no products")
    f, calls = matmul(256, 256, 256, 128), []
    add = blas.add_product

    def noted(x, y, to, keeps, is_shared):
        calls.append((x.shape, y.shape, keeps))
        return add(x, y, to, keeps, is_shared)

    monkeypatch.setattr(blas, "add_product", noted)
    x, y = np.ones((2, 256, 256), np.float32)
    program = optimise(lower(jax.make_jaxpr(f)(x, y)))
    assert (Executable(program)(x, y)[0] == 256).all()
    assert calls == [((256, 128), (128, 256), False), ((256, 128), (128, 256), True)]


@pytest.mark.parametrize("change, error", [
    (lambda ins: ins[:2], "aren't pairs"),
    (lambda ins: (ins[1], *ins[1:]), "it starts with"),
    (lambda ins: (*ins, ins[2], ins[1]), "different types"),
])  # fmt: skip
@pytest.mark.parametrize("stored", [False, True])
def test_what_is_no_sum(change, error, stored):
    (made,) = instructions(
        sum_products(lower(jax.make_jaxpr(lambda s, x, y: s + x @ y)(START, X[0], Y[0])))
    )
    operation = made.operation
    assert operations.wrong_with(operation) is None
    ins, outs, effects, params = change(operation.ins), operation.outs, PURE, operation.params
    if stored:
        ref = RefType(outs[0].shape, outs[0].dtype, "vmem")
        ins, outs, effects = (ref, *ins), (), Effects(writes=(0,))
        params = {**params, "path": (), "direct": operation.fn}
    wrong = Operation(SUM, params, ins, outs, operation.fn, effects)
    assert error in str(operations.wrong_with(wrong))
