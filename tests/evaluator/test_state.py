"""What a thread or the process has set is as before, whatever ends a run, and whenever."""

from __future__ import annotations

import ctypes
import gc
import signal
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jax import lax

from pallas_shim import gc_pause
from pallas_shim.evaluator import blas, call_stack
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.floating import as_xla
from pallas_shim.evaluator.lower import lower
from pallas_shim.gc_pause import gc_paused
from tests.interrupts import Interrupt, at_every_bytecode

SMALL, HALF = np.float32(2e-38), np.float32(0.5)
SQUARE = np.ones((64, 64), np.float32)  # a product that `blas` has one thread compute


def state() -> tuple[object, ...]:
    threads = blas._threads[0]() if blas._threads is not None else None
    return (np.geterr(), bool(SMALL * HALF > 0), gc.isenabled(), threads, sys.getrecursionlimit())


def program() -> Executable:
    def f(x):
        return lax.fori_loop(0, 3, lambda i, x: x @ x / 64 + i, x) * 1e-38

    return Executable(lower(jax.make_jaxpr(f)(SQUARE)))


EXECUTABLE = program()
WANTED = EXECUTABLE(SQUARE)[0]


def run() -> np.ndarray:
    return gc_paused(EXECUTABLE, SQUARE)[0]


def works() -> bool:
    return bool((run() == WANTED).all())


def inner() -> None:
    pass


FUNCTIONS = (as_xla, gc_paused, call_stack.with_room, inner)


def nested() -> None:
    gc_paused(as_xla, lambda: gc_paused(as_xla, inner))


@pytest.mark.parametrize("possible", (False, True))
def test_an_exception_at_any_bytecode(possible):
    before = state()
    codes = {f.__code__ for f in FUNCTIONS}
    ends = 0
    for raised in at_every_bytecode(nested, codes, possible=possible):
        ends += 1
        assert isinstance(raised, Interrupt)
        assert state() == before, ends
    assert ends > (10 if possible else 30)
    assert works()


def test_an_exception_wherever_a_signal_raises_in_a_run():
    before = state()
    codes = {f.__code__ for f in (*FUNCTIONS, Executable.__call__, blas._alone)}
    ends = 0
    for raised in at_every_bytecode(run, codes, possible=True):
        ends += 1
        assert isinstance(raised, Interrupt)
        assert state() == before, ends
        assert not blas._inside
    assert ends > 10
    assert works()


class Alarms:
    """Timers that raise Interrupt in the main thread, wherever it is inside `run`: ``left`` more
    times, each soon after the one before, which may still be on its way out."""

    def __init__(self) -> None:
        self.left = 0

    def set(self, delay: float, times: int) -> None:
        self.left = times
        signal.setitimer(signal.ITIMER_REAL, delay)

    def ring(self, number: int, frame) -> None:
        inside = False
        while frame is not None and not inside:
            inside, frame = frame.f_code is run.__code__, frame.f_back
        self.left -= inside
        if self.left:
            signal.setitimer(signal.ITIMER_REAL, 1e-5 if inside else 2e-4)
        if inside:
            raise Interrupt


@pytest.fixture
def alarms():
    alarms = Alarms()
    before = signal.signal(signal.SIGALRM, alarms.ring)
    yield alarms
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.timeout(120, method="thread")  # the other method has the same signal
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_signals(alarms):
    before = state()
    once = min(_seconds(run) for _ in range(5))
    interrupted = 0
    for number in range(2000):
        alarms.set(1e-6 + (number % 100) / 100 * once, 1 + number % 3)
        while alarms.left:
            try:
                run()
            except Interrupt:
                interrupted += 1
                assert state() == before, number
    assert interrupted > 1000
    assert works()


def _seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def test_exceptions_from_another_thread():
    before = state()
    found: list[object] = []
    raised = 0
    inside = stop = False  # no locks, which an exception may leave locked

    def work() -> None:
        nonlocal raised, inside
        mine = state()
        while not stop:
            try:
                # The other thread raises only after this, once for each time, so no exception
                # arrives outside the try.
                inside = True
                while not stop:
                    run()
            except Interrupt:
                if state() != mine:
                    found.append(state())
                raised += 1

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    while raised < 500 and not found:
        while not inside and thread.is_alive():
            time.sleep(0)
        assert thread.is_alive()
        inside, wanted = False, raised + 1
        raise_in(ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupt))
        # An exception is lost where Python can't pass it on, in a callback or a `__del__`.
        lost = time.monotonic() + 10
        while raised < wanted and thread.is_alive() and not inside:
            inside = time.monotonic() > lost
            time.sleep(0)
    stop = True
    thread.join(30)
    assert not thread.is_alive() and not found
    assert state() == before
    assert works()


def test_collection_that_is_off_stays_off():
    gc.disable()
    try:
        gc_paused(inner)
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert gc_pause._pausing == set()
