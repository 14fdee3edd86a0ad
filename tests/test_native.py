"""When programs run natively, and what the report says of it."""

from __future__ import annotations

import itertools
import os
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_shim
from pallas_shim import dispatch, settings
from pallas_shim.dispatch import background, entering, native, plan
from pallas_shim.jax_compat import forks
from pallas_shim.reports.uses import REPORT
from tests.shimmed import double, only_row, setting, shim

__all__ = ["setting", "shim"]

numbers = itertools.count()
X = np.arange(-500, 500, dtype=np.int32)

installed = pytest.mark.skipif(not settings.llvm_is_installed(), reason="llvmlite isn't installed")


@pytest.fixture
def promoted(monkeypatch, shim, setting):
    """Programs have earned their code by their first run. Gives a function that calls a new one
    until its fate is known."""
    setting(native=True, cache=None, scope="kernels")
    monkeypatch.setattr(native.Way, "_price", lambda way, instructions: 0.0)
    monkeypatch.setattr(native, "_TINY", float("inf"))  # whichever is faster on this machine

    def call(calls: int = 8):
        REPORT.clear()

        def function(x):
            return double(x) * 3

        function.__name__ = f"function_{next(numbers)}"  # the report keeps those of one name
        f = call.last = jax.jit(function)
        for _ in range(calls):
            np.testing.assert_array_equal(np.asarray(f(X)), X * 6)
            if background._pool is not None:
                background._pool.submit(lambda: None).result()
        return only_row()

    return call


@pytest.fixture
def entered(promoted, monkeypatch):
    """A function that jit calls by itself, and a list that grows by each call that Python runs."""
    runs = []
    run = plan._run

    def counted(*args):
        runs.append(1)
        return run(*args)

    monkeypatch.setattr(plan, "_run", counted)
    row = promoted(8)
    assert row["native"].endswith(", called by jit itself"), row
    assert row["calls"] == 8 > len(runs)
    runs.clear()
    f = promoted.last
    f(X)
    assert not runs
    return f, runs


@installed
def test_calls_by_jit_itself_are_counted(entered):
    f, runs = entered
    REPORT.clear()
    out = [f(X + n) for n in range(20)]
    for n, result in enumerate(out):
        np.testing.assert_array_equal(np.asarray(result), (X + n) * 6)
        assert not result._committed and not result.weak_type
    row = only_row()
    assert row["calls"] == 20 and row["running_s"] > 0 and not runs


@installed
def test_other_arguments_take_another_way(entered):
    f, runs = entered
    np.testing.assert_array_equal(np.asarray(f(jnp.asarray(X[:7]))), X[:7] * 6)
    committed = jax.device_put(X, jax.devices()[0])
    result = f(committed)
    assert result._committed
    np.testing.assert_array_equal(np.asarray(result), X * 6)
    np.testing.assert_array_equal(np.asarray(f(X.astype(np.float32))), X * np.float32(6))
    assert len(runs) == 3
    np.testing.assert_array_equal(np.asarray(jax.vmap(f)(X.reshape(2, -1))).reshape(-1), X * 6)


@installed
def test_subnormals_are_zeros_when_jit_calls_it(shim, setting, monkeypatch):
    setting(native=True, cache=None, scope="kernels")
    monkeypatch.setattr(native.Way, "_price", lambda way, instructions: 0.0)
    f = jax.jit(lambda x: double(x) * np.float32(0.25))
    x = np.array([1.6e-38, -1.6e-38, 1.0], np.float32)  # the first two have subnormal halves
    for _ in range(8):
        out = f(x)
        if background._pool is not None:
            background._pool.submit(lambda: None).result()
    assert only_row()["native"].endswith(", called by jit itself")
    want = np.array([0.0, -0.0, 0.5], np.float32)
    assert native.same([np.asarray(out)], [want])


@installed
def test_an_observer_sees_each_call(entered):
    f, runs = entered

    class Observer:
        def planned(self, executable, function):
            return executable

        def ran(self, *args, **kwargs):
            pass

    dispatch.observe(Observer())
    try:
        f(X)
        f(X)
    finally:
        dispatch.observe(None)
    assert len(runs) == 2


@installed
def test_switched_off_while_jit_calls_it_itself(entered):
    f, runs = entered
    REPORT.clear()
    pallas_shim.deactivate()
    try:
        np.testing.assert_array_equal(np.asarray(f(X)), X * 6)
        assert not REPORT.rows()
    finally:
        pallas_shim.activate()
    np.testing.assert_array_equal(np.asarray(f(X)), X * 6)


@installed
def test_other_bits_when_jit_calls_it(promoted, monkeypatch):
    answers = iter([True] * native._COMPARED + [False])
    monkeypatch.setattr(native, "same", lambda *_: next(answers))
    row = promoted(10)
    assert row["native"].endswith("bug in pallas_shim: called by XLA, it gave other bits")


@installed
def test_a_forked_process_is_asked_itself(entered, monkeypatch):
    f, runs = entered
    entering.leave()
    monkeypatch.setattr(forks, "_is_lost", True)
    for _ in range(2):
        np.testing.assert_array_equal(np.asarray(f(X)), X * 6)
    assert len(runs) == 2


@installed
def test_a_program_that_has_earned_it_is_native(promoted, monkeypatch):
    runs = []

    def counted(run, values):
        runs.append(run)
        return run(values)

    monkeypatch.setattr(native, "as_xla", counted)
    # NumPy is as fast for so small a program.
    monkeypatch.setattr(native, "min", lambda times: -len(runs) + times[0] * 0, raising=False)
    row = promoted()
    assert len(runs) >= native._COMPARED
    assert row["native"].startswith(("native, ", "not native, since it is no faster"))
    assert row["calls"] == 8 and row["rung"] == "numpy"


@installed
def test_other_bits_keep_numpy(promoted, monkeypatch):
    monkeypatch.setattr(native, "same", lambda *_: False)
    assert "other bits" in promoted()["native"]


@installed
def test_what_cannot_be_native_says_why(promoted, monkeypatch):
    from pallas_shim.evaluator.codegen import native as code

    def refuse(*args):
        raise code.NotNative("exp of float32")

    monkeypatch.setattr(code, "compiled", refuse)
    assert promoted()["native"] == "not native: exp of float32"


def test_without_llvmlite_the_report_says_what_would_be_native(promoted, monkeypatch, setting):
    monkeypatch.setattr(settings, "llvm_is_installed", lambda: False)
    assert promoted(2)["native"] is None
    setting(report="1")
    assert promoted()["native"] == "would be native: pip install 'pallas_shim[native]'"


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_only_compilers_have_a_low_priority():
    def priority(_=""):
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    usual: list[int] = []
    done = threading.Event()
    background.later(lambda: (usual.append(priority()), done.set()))  # type: ignore[func-returns-value]
    assert done.wait(20)
    assert usual == [priority()]
    assert background.quietly(priority, "") == min(19, usual[0] + background._NICENESS)


@installed
def test_python_ends_before_llvm_begins(promoted, monkeypatch, caplog):
    class Ended:
        def submit(self, *args):
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(background, "_quiet_pool", Ended())
    assert promoted()["native"] is None
    assert not caplog.records


def test_switched_off(promoted, setting):
    setting(native=False)
    assert promoted()["native"] is None


@installed
def test_forced(shim, setting, monkeypatch):
    setting(native_force=True)
    f = jax.jit(lambda x: double(x) + 1)
    np.testing.assert_array_equal(np.asarray(f(X)), X * 2 + 1)
    assert only_row()["native"].startswith("native, compiled in")
    monkeypatch.setattr(native, "same", lambda *_: False)
    with pytest.raises(native.NativeError, match="gave other bits than NumPy"):
        f(X)


def test_forced_without_llvmlite(shim, setting, monkeypatch):
    setting(native_force=True)
    monkeypatch.setattr(settings, "llvm_is_installed", lambda: False)
    with pytest.raises(native.NativeError, match="needs llvmlite: pip install"):
        jax.jit(lambda x: double(x) + 2)(X)


@pytest.mark.parametrize(
    "a, b, equal",
    [
        ([0.0], [-0.0], False),
        ([np.nan], [-np.nan], True),
        ([np.nan], [1.0], False),
        ([1.0], [1.0], True),
    ],
)
def test_same_bits(a, b, equal):
    assert native.same([np.array(a, np.float32)], [np.array(b, np.float32)]) == equal
