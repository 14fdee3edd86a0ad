"""A process that forks while another of its threads is in the middle of something."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from pallas_shim import patching, settings
from pallas_shim.dispatch import background, native, planning
from pallas_shim.evaluator import compiler
from pallas_shim.reports import uses
from pallas_shim.reports.uses import REPORT
from tests.shimmed import double, only_row, setting, shim

__all__ = ["setting", "shim"]

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork"),
    pytest.mark.filterwarnings("ignore:os.fork.. was called:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.usefixtures("shim"),
]

X = np.arange(8, dtype=np.float32)


def in_child(call) -> int | None:
    """The exit status of a forked process that ends when the call has: 0 if that gives a true
    value, 1 if it doesn't or raises; None if it had to be ended."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            os._exit(not call())
        os._exit(1)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


@contextlib.contextmanager
def elsewhere(call, entered: threading.Event, leave: threading.Event):
    """Another thread makes the call, which sets ``entered`` and waits for ``leave``."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    assert entered.wait(20)
    try:
        yield
    finally:
        leave.set()
        thread.join(20)


def test_while_another_thread_plans(monkeypatch):
    """It has our lock, and has turned garbage collection off."""
    np.testing.assert_array_equal(double(X), X + X)  # JAX has started
    entered, leave = threading.Event(), threading.Event()
    stock, planner = compiler.lower, []

    def slow(*args, **kwargs):
        if threading.current_thread() is not threading.main_thread():
            entered.set()
            assert leave.wait(60)
        return stock(*args, **kwargs)

    monkeypatch.setattr(compiler, "lower", slow)

    def run():
        planner.append(np.asarray(jax.jit(lambda x: double(x) + 1)(X)))

    def child():
        def kernel(x_ref, o_ref):
            o_ref[...] = jnp.sin(x_ref[...]) * 0 + 3

        out = jax.ShapeDtypeStruct(X.shape, X.dtype)
        got = jax.jit(lambda x: pl.pallas_call(kernel, out_shape=out, interpret=True)(x))(X)
        rows = REPORT.rows()
        return (np.asarray(got) == 3).all() and gc.isenabled() and rows[0]["rung"] == "numpy"

    with elsewhere(run, entered, leave):
        assert in_child(child) == 0
    np.testing.assert_array_equal(planner[0], 2 * X + 1)
    assert gc.isenabled()


@pytest.mark.parametrize("module", (planning, patching, uses))
def test_while_another_thread_has_a_lock(module):
    double(X)
    entered, leave = threading.Event(), threading.Event()
    lock = module._planning if module is planning else module._lock

    def hold():
        with lock:
            entered.set()
            leave.wait(60)

    def child():
        right = (np.asarray(jax.jit(lambda x: double(x))(X)) == 2 * X).all()
        patching.deactivate()
        patching.activate()
        return right and REPORT.rows()

    with elsewhere(hold, entered, leave):
        assert in_child(child) == 0


def test_inside_a_kernel():
    """The process that is forked goes on in the middle of the call, as its parent does."""
    statuses = []

    def host(x):
        child = os.fork()
        if not child:
            os._exit(not (np.asarray(jax.jit(lambda x: double(x) * 3)(X)) == 6 * X).all())
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        return x

    def kernel(x_ref, o_ref):
        shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
        o_ref[...] = jax.pure_callback(host, shape, x_ref[...])

    out = jax.ShapeDtypeStruct(X.shape, X.dtype)
    got = jax.jit(lambda x: pl.pallas_call(kernel, out_shape=out, interpret=True)(x))(X)
    np.testing.assert_array_equal(np.asarray(got), X)
    assert statuses == [0]


@contextlib.contextmanager
def background_stands_still():
    """The background's thread waits, and its queue grows."""
    entered, leave = threading.Event(), threading.Event()

    def stand():
        entered.set()
        leave.wait(60)

    background.later(stand)
    assert entered.wait(20)
    try:
        yield
    finally:
        leave.set()


def until(is_done) -> bool:
    end = time.monotonic() + 15
    while not is_done():
        if time.monotonic() > end:
            return False
    return True


def test_before_a_function_without_a_kernel_is_compiled(setting, monkeypatch):
    """XLA's threads aren't in the new process, so it can't compile there. A thread that asked it to
    would keep that process from ending."""
    setting(scope="all")
    f = jax.jit(lambda x: x * 5)
    f(X)
    later: list[object] = []
    monkeypatch.setattr(background, "later", later.append)

    def earned():
        for plans in list(planning._plans.values()):
            for plan in plans:
                if plan.trial is not None:
                    plan.trial._left = 0
        return [(np.asarray(f(X)) == 5 * X).all() for _ in range(3)] == [True] * 3

    assert in_child(lambda: earned() and not later) == 0
    assert earned() and len(later) == 1


@pytest.mark.skipif(not settings.llvm_is_installed(), reason="llvmlite isn't installed")
@pytest.mark.parametrize("when", ("queued", "lowered", "compiled", "compiled for long"))
def test_while_native_code_is_made(setting, monkeypatch, when):
    from pallas_shim.evaluator.codegen import native as code
    from pallas_shim.evaluator.codegen.native import machine

    setting(native=True, cache=None)
    monkeypatch.setattr(native.Way, "_price", lambda way, instructions: 0.0)
    entered = threading.Event()

    def slow(module, name):
        stock = getattr(module, name)

        def call(*args):
            if not entered.is_set():
                entered.set()
                time.sleep(0.3)
            return stock(*args)

        monkeypatch.setattr(module, name, call)

    if when == "lowered":
        slow(code, "source")
    if when == "compiled":
        slow(code, "object_code")
    if when == "compiled for long":
        slow(machine, "_target")  # with LLVM's lock
        monkeypatch.setattr(machine, "_PATIENCE", 0.01)
    f = jax.jit(lambda x: double(x) * 7)

    def is_decided(how="compiled in"):
        return (np.asarray(f(X)) == 14 * X).all() and how in (only_row()["native"] or "")

    def child():
        return until(lambda: is_decided("while LLVM" if "long" in when else "compiled in"))

    with background_stands_still() if when == "queued" else contextlib.nullcontext():
        f(X)
        assert when == "queued" or entered.wait(20)
        assert in_child(child) == 0
    assert until(is_decided)
