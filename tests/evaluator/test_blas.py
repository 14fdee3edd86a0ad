"""Products of middling size leave BLAS's other threads alone, and its setting as it was."""

from __future__ import annotations

import concurrent.futures
import os
import threading

import numpy as np
import pytest

from pallas_shim.evaluator import blas

MIDDLING = (128, 128, 128)


@pytest.fixture
def settings(monkeypatch):
    """What the number of threads was set to; it is 3 at first."""
    log = [3]
    monkeypatch.setattr(blas, "_threads", (lambda: log[-1], log.append))
    return log


@pytest.mark.parametrize(
    "sizes, alone",
    [
        (MIDDLING, True),
        ((16, 16, 16), False),
        ((1024, 1024, 1024), False),
        ((1, 256, 256), True),
        ((256, 64, 1), True),
        ((1, 64, 64), False),
    ],
)
def test_which_products_one_thread_computes(settings, sizes, alone):
    rows, terms, columns = sizes
    x, y = np.ones((2, rows, terms), np.float32), np.ones((terms, columns), np.float32)
    got = blas.product(*sizes)(x, y)
    np.testing.assert_array_equal(got, np.full((2, rows, columns), terms, np.float32))
    assert settings == ([3, 1, 3] if alone else [3])


def test_the_setting_comes_back_after_an_error(settings):
    with pytest.raises(ValueError):
        blas.product(*MIDDLING)(np.ones((2, 3)), np.ones((4, 5)))
    assert settings == [3, 1, 3]


def test_the_setting_comes_back_after_many_threads(settings):
    x = np.ones((128, 128), np.float32)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: blas.product(*MIDDLING)(x, x), range(200)):
            assert (result == 128).all()
    assert settings[-1] == 3 and set(settings) == {1, 3}


def test_numpys_own_library_is_found_and_set():
    if blas._threads is None:
        assert "openblas" not in str(np.show_config(mode="dicts")["Build Dependencies"]["blas"])
        return
    get, _ = blas._threads
    before = get()
    x = np.ones((128, 128), np.float32)
    blas.product(*MIDDLING)(x, x)
    assert get() == before >= 1


def test_after_a_fork(settings):
    """Whatever another thread was doing when the process forked."""
    x = np.ones((128, 128), np.float32)
    entered, leave = threading.Event(), threading.Event()

    class Slow(np.ndarray):
        def __array_ufunc__(self, *args, **kwargs):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=blas.product(*MIDDLING), args=(x.view(Slow), x))
    thread.start()
    entered.wait(10)
    child = os.fork()
    if not child:
        right = (blas.product(*MIDDLING)(x, x) == 128).all()
        os._exit(not (right and settings == [3, 1, 3, 1, 3]))
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# -- stacks of products as fewer and larger ones ---------------------------------------------------


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
    joined = blas.product_of_stacks(*shapes)
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
    joined = blas.product_of_stacks((3, 1, 32, 64), (1, 2, 64, 64))
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
    assert blas.product_of_stacks(lhs, rhs) is None


@pytest.mark.parametrize("shapes, alone", [
    (((4, 1, 128, 64), (1, 4, 64, 128)), True),
    (((4, 1, 128, 128), (1, 4, 128, 128)), False),
])  # fmt: skip
def test_joined_products_leave_the_other_threads_alone_for_longer(settings, shapes, alone):
    joined = blas.product_of_stacks(*shapes)
    joined(*(np.ones(shape, np.float32) for shape in shapes))
    assert settings == ([3, 1, 3] if alone else [3])
