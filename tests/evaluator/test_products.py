"""Stacks of products as fewer and larger ones, and their sums."""

from __future__ import annotations

import numpy as np
import pytest

from pallas_shim.evaluator import blas, products
from pallas_shim.evaluator.floating import as_xla


@pytest.fixture
def settings(monkeypatch):
    """What the number of threads was set to; it is 3 at first."""
    log = [3]
    monkeypatch.setattr(blas, "_threads", (lambda: log[-1], log.append))
    return log


@pytest.fixture
def no_gemms(monkeypatch):
    """A BLAS without functions that add products to what is there."""
    monkeypatch.setattr(blas, "_gemms", {})
    blas._adds_exactly.cache_clear()
    yield
    blas._adds_exactly.cache_clear()


def blocks_of(matrix, rows, columns):
    """A matrix as a stack of stacks of blocks, which shares its memory."""
    m, n = matrix.shape
    parts = matrix.reshape(m // rows, rows, n // columns, columns)
    return parts.transpose(0, 2, 1, 3)


def whole_numbers(*shape, seed=0):
    """Products of these are exact, in any order."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32)


SHAPES = {
    "rows": ((4, 32, 64), (1, 64, 48)),
    "columns": ((1, 32, 64), (4, 64, 48)),
    "rows and columns": ((3, 1, 32, 64), (1, 2, 64, 48)),
    "columns before rows": ((1, 3, 32, 64), (2, 1, 64, 48)),
    "a stack of both": ((2, 3, 1, 32, 64), (2, 1, 2, 64, 48)),
    "a stack between": ((3, 2, 1, 32, 64), (1, 2, 2, 64, 48)),
    "single rows": ((8, 1, 1, 128), (1, 4, 128, 128)),
    "single columns": ((8, 1, 128, 128), (1, 4, 128, 1)),
}


@pytest.mark.parametrize("order", ["as a stack", "as blocks", "reversed"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_products_of_stacks_are_those_of_their_members(shapes, order):
    x, y = (whole_numbers(*shape, seed=seed) for seed, shape in enumerate(shapes))
    want = np.matmul(x, y)
    if order == "reversed":
        x, y = x[..., ::-1].copy()[..., ::-1], y[..., ::-1].copy()[..., ::-1]
    elif order == "as blocks":
        x, y = (np.moveaxis(np.moveaxis(a, -2, 0).copy(), 0, -2) for a in (x, y))
    joined = products.product_of_stacks(*shapes)
    assert joined is not None
    np.testing.assert_array_equal(joined(x, y), want)
    for out in (
        np.empty_like(want), np.empty_like(joined(x, y)), np.empty((2, *want.shape), "f4")[1],
        np.empty((*want.shape, 2), "f4")[..., 0],
    ):  # fmt: skip
        assert joined(x, y, out=out) is out
        np.testing.assert_array_equal(out, want)


def test_blocks_of_matrices_are_not_copied(monkeypatch):
    x, y, out = whole_numbers(96, 256), whole_numbers(256, 128, seed=1), np.empty((96, 128), "f4")
    seen = []

    def multiply(a, b, out=None):
        seen.append(all(map(np.shares_memory, (a, b, out), (x, y, to))))
        return np.matmul(a, b, out=out)

    to = out
    monkeypatch.setattr(blas, "product", lambda *sizes: multiply)
    parts = [blocks_of(a, *size) for a, size in ((x, (32, 64)), (y, (64, 64)), (out, (32, 64)))]
    joined = products.product_of_stacks((3, 1, 32, 64), (1, 2, 64, 64))
    joined(parts[0][:, 1:2], parts[1][1:2], out=parts[2])
    np.testing.assert_array_equal(out, x[:, 64:128] @ y[64:128])
    assert seen == [True]


@pytest.mark.parametrize(
    "lhs, rhs",
    [
        ((4, 64, 64), (4, 64, 64)),  # nothing is shared
        ((1, 256, 256), (1, 256, 256)),  # one product
        ((256, 256), (256, 256)),
        ((4, 1, 8, 8), (1, 4, 8, 8)),  # small
    ],
)
def test_which_stacks_stay(lhs, rhs):
    assert products.product_of_stacks(lhs, rhs) is None


@pytest.mark.parametrize("shapes, alone", [
    (((4, 1, 128, 64), (1, 4, 64, 128)), True),
    (((4, 1, 128, 128), (1, 4, 128, 128)), False),
])  # fmt: skip
def test_joined_products_leave_the_other_threads_alone_for_longer(settings, shapes, alone):
    joined = products.product_of_stacks(*shapes)
    joined(*(np.ones(shape, np.float32) for shape in shapes))
    assert settings == ([3, 1, 3] if alone else [3])


# -- sums of products ------------------------------------------------------------------------------

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


def numbers(*shape, seed=0, dtype=F32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def same(x):
    return x


def added_up(start, pairs, dtype=F32, out=None):
    """What `sum_of_products` gives."""
    shapes = [x.shape for x in pairs[0]]
    return products.sum_of_products(*shapes, dtype, same, same)(start, pairs, out)


def one_by_one(start, pairs):
    """The same by products and sums."""
    shapes = [x.shape for x in pairs[0]]
    multiply = products.product_of_stacks(*shapes) or np.matmul
    total = np.float32(0) if start is None else start
    for x, y in pairs:
        total = total + multiply(x, y)
    return total


def is_equal(x, y):
    return x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes()


STACKS = {
    "one product": ((300, 100), (100, 300)),
    "joined": ((3, 1, 128, 64), (1, 4, 64, 256)),
    "apart": ((2, 256, 128), (2, 128, 257)),
    "joined and apart": ((2, 3, 1, 128, 64), (2, 1, 4, 64, 128)),
    "many terms": ((128, 700), (700, 130)),
    "few columns": ((4096, 512), (512, 5)),
}


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("shapes", STACKS.values(), ids=STACKS)
def test_sums_have_the_bits_of_products_and_additions(shapes, dtype, starts):
    lhs, rhs = shapes
    pairs = [(numbers(*lhs, seed=n, dtype=dtype), numbers(*rhs, seed=-n - 1 & 99, dtype=dtype))
             for n in range(3)]  # fmt: skip
    start = one_by_one(None, pairs[:1]) if starts else None
    want = as_xla(one_by_one, start, pairs)
    assert is_equal(as_xla(added_up, start, pairs, dtype), want)
    for out in (
        np.full_like(want, np.nan), np.full((2, *want.shape), np.nan, dtype)[1],
        np.full((*want.shape, 2), np.nan, dtype)[..., 0],
    ):  # fmt: skip
        assert as_xla(added_up, start, pairs, dtype, out) is out
        assert is_equal(out, want)
    if starts:  # in place
        assert as_xla(added_up, start, pairs, dtype, start) is start
        assert is_equal(start, want)


@pytest.mark.usefixtures("no_gemms")
def test_a_sum_without_such_a_function():
    x, y = numbers(300, 100), numbers(100, 300, seed=1)
    assert not blas.adds_exactly(F32, 100)
    for start in (None, numbers(300, 300, seed=2)):
        assert is_equal(added_up(start, [(x, y)] * 2), one_by_one(start, [(x, y)] * 2))


def lying(how, x):
    """The same numbers, laid out in another way."""
    if how == "transposed":
        return x.T.copy().T
    if how == "strided":
        return np.repeat(x, 2, axis=1)[:, ::2]
    if how == "unaligned":
        return np.frombuffer(b" " + x.tobytes(), x.dtype, offset=1).reshape(x.shape)
    return np.concatenate([x, x], axis=1)[:, : x.shape[1]]


@pytest.mark.parametrize("how", ["transposed", "strided", "unaligned", "part"])
def test_matrices_that_lie_in_any_way(how):
    x, y, start = numbers(300, 100), numbers(100, 300, seed=1), numbers(300, 300, seed=2)
    want = start + x @ y
    for pair in ((lying(how, x), y), (x, lying(how, y))):
        assert is_equal(added_up(start, [pair]), want)
    assert is_equal(added_up(lying(how, start), [(x, y)]), want)


def test_a_matrix_by_its_transpose():
    x = numbers(300, 100)
    assert is_equal(added_up(None, [(x, x.T)]), 0 + x @ x.T)


def test_operands_that_are_written_over():
    memory = numbers(2, 300, 300)
    want = memory[0] + memory[0] @ memory[1]
    assert is_equal(added_up(memory[0], [(memory[0], memory[1])], out=memory[0]), want)
    shifted = numbers(301, 300)
    want = shifted[1:] + memory[0] @ memory[1]
    assert is_equal(added_up(shifted[1:], [tuple(memory)], out=shifted[:-1]), want)


@pytest.mark.parametrize("start", [None, 0.0, -1.0])
def test_signs_of_zeros(start):
    """BLAS adds terms that are too small to -0, and makes 0 of that."""
    tiny = np.finfo(F32).tiny
    x, y = np.full((300, 100), -tiny, F32), np.full((100, 300), tiny, F32)
    if start is not None:
        start = np.full((300, 300), start, F32)
    want = as_xla(one_by_one, start, [(x, y)])
    assert is_equal(as_xla(added_up, start, [(x, y)]), want)
    zeros = np.zeros((300, 100), F32)
    assert is_equal(added_up(start, [(-zeros, y)] * 2), one_by_one(start, [(-zeros, y)] * 2))


def test_infinities_and_nans():
    x, y = numbers(300, 100), numbers(100, 300, seed=1)
    x[0, 0], x[1, 1], y[2, 2] = np.inf, np.nan, -np.inf
    want = as_xla(one_by_one, None, [(x, y)] * 2)
    np.testing.assert_array_equal(as_xla(added_up, None, [(x, y)] * 2), want)


@pytest.mark.parametrize("rows", [256, 1024])
def test_no_sum_is_subnormal(rows):
    """Whether the calling thread computes a product alone or with others."""
    x, y = np.full((rows, 64), 2.0**-70, F32), np.full((64, 512), 2.0**-64, F32)
    assert not as_xla(added_up, None, [(x, y)] * 2).view(np.uint32).any()


@pytest.mark.parametrize("rows, alone", [(512, True), (1024, False)])
def test_which_sums_one_thread_computes(settings, rows, alone):
    x, y = np.ones((rows, 64), np.float32), np.ones((64, 256), np.float32)
    assert (added_up(None, [(x, y)] * 2) == 128).all()
    assert set(settings) == ({3, 1} if alone else {3})
    assert settings[-1] == 3


@pytest.mark.parametrize("shapes, pays", [
    (((512, 128), (128, 512)), True),
    (((4, 1, 128, 128), (1, 4, 128, 128)), True),  # joined
    (((4, 128, 128), (4, 128, 128)), False),  # small
    (((1, 4096), (4096, 4096)), False),  # a vector
    (((4096, 4096), (4096, 1)), False),
    (((4096, 1), (1, 4096)), False),  # no sum
])  # fmt: skip
def test_which_sums_pay(shapes, pays):
    assert products.pays_to_add(*shapes) == pays


@pytest.mark.usefixtures("no_gemms")
@pytest.mark.parametrize("shapes", [
    ((4, 1, 128, 64), (1, 4, 64, 128)), ((8, 1, 128, 64), (1, 4, 64, 128)),
    ((256, 128), (128, 256)), ((512, 128), (128, 256)),
])  # fmt: skip
def test_a_sum_uses_the_threads_of_its_products(settings, shapes):
    """BLAS rounds long sums otherwise if threads share them."""
    pair = [np.ones(shape, F32) for shape in shapes]
    added_up(None, [pair])
    of_sum = set(settings)
    del settings[1:]
    multiply = products.product_of_stacks(*shapes) or blas.product(*shapes[0][-2:], shapes[1][-1])
    multiply(*pair)
    assert set(settings) == of_sum
