"""Activation is whole or not at all."""

from __future__ import annotations

import os
import threading

import jax
import numpy as np
import pytest

import pallas_shim
from pallas_shim import patching
from pallas_shim.jax_compat.hooks import jit_entry
from pallas_shim.reports.uses import REPORT
from tests.interrupts import at_every_bytecode
from tests.shimmed import double, rungs

X = np.arange(8, dtype=np.float32)


@pytest.fixture
def inactive():
    was_active = pallas_shim.is_active()
    pallas_shim.deactivate()
    yield
    if was_active:
        pallas_shim.activate()


def is_free(lock) -> bool:
    taken: list[bool] = []

    def take():
        taken.append(lock.acquire(timeout=5))
        if taken[0]:
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return taken[0]


def test_an_exception_at_any_moment(inactive):
    environment = dict(os.environ)
    module, name = jit_entry.JIT_CALL
    stock = getattr(module, name)
    codes = {patching.activate.__code__, patching._Patch.__call__.__code__}
    ends = 0
    for _ in at_every_bytecode(pallas_shim.activate, codes, possible=True):
        ends += 1
        assert is_free(patching._lock)
        if pallas_shim.is_active():  # it came when all was done
            pallas_shim.deactivate()
        assert not patching._applied and getattr(module, name) is stock
        assert dict(os.environ) == environment, ends
    assert ends >= 4
    pallas_shim.deactivate()
    REPORT.clear()  # of other tests
    with pallas_shim.active():
        got = jax.jit(lambda x: double(x) + ends)(X)
        np.testing.assert_array_equal(np.asarray(got), 2 * X + ends)
        assert rungs() == {"numpy"}
    assert dict(os.environ) == environment
