"""Products of middling size leave BLAS's other threads alone, and its setting as it was."""

from __future__ import annotations

import concurrent.futures
import ctypes
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


# -- products that are added to what is there ------------------------------------------------------


def parts(real):
    """A BLAS that adds products of more than half of the terms part by part."""

    def gemm(*args):
        *front, terms, one, x, x_step, y, y_step, beta, to, step = args
        half = terms // 2
        rest = (to, step)
        real(*front, half, one, x, x_step, y, y_step, beta, *rest)
        real(*front, terms - half, one, x + 4 * half, x_step, y + 4 * half, y_step, 1.0, *rest)

    return gemm


def keeping_signs(real):
    """A BLAS that makes -0 where another one adds that to zero."""

    def gemm(*args):
        real(*args)
        if not args[-3]:
            ctypes.c_float.from_address(args[-2]).value = -0.0

    return gemm


@pytest.mark.parametrize("wrong", [parts, keeping_signs])
def test_a_blas_that_rounds_otherwise_is_not_used(monkeypatch, wrong):
    if not blas.adds_exactly(np.dtype(np.float32), 96):
        pytest.skip("NumPy's BLAS adds no products")
    blas._adds_exactly.cache_clear()
    monkeypatch.setattr(blas, "_gemms", {"f": wrong(blas._gemms["f"])})
    try:
        assert not blas.adds_exactly(np.dtype(np.float32), 96)
    finally:
        blas._adds_exactly.cache_clear()


@pytest.mark.parametrize("kind", "fd")
@pytest.mark.parametrize("terms", [2, 31, 128, 256, 320, 384, 448, 512])
def test_what_is_added_exactly_is(kind, terms):
    if not blas.adds_exactly(np.dtype(kind), terms):
        return
    rng = np.random.default_rng(0)
    for rows, columns in ((2, 3), (67, 131), (200, 300)):
        x, y, to = (rng.standard_normal(shape).astype(kind)
                    for shape in ((rows, terms), (terms, columns), (rows, columns)))  # fmt: skip
        want = to + x @ y
        assert blas.add_product(x, y, blas.place(to), keeps=True, is_shared=True)
        assert to.tobytes() == want.tobytes()


def test_integers_and_very_long_sums_are_not_added():
    assert not blas.can_add(np.dtype(np.int32))
    assert not blas.adds_exactly(np.dtype(np.int32), 2)
    assert not blas.adds_exactly(np.dtype(np.float32), 1 << 20)
