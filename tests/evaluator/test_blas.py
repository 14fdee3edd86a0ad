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
