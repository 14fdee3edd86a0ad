"""The watch sees what code does that was not read, in its own thread, each time anew."""

from __future__ import annotations

import gc
import os
import sys
import threading
import types

import jax.numpy as jnp
import pytest

from pallas_shim.cache.watch import ThreadWatch


def functions(source):
    made = types.ModuleType("users")
    exec(source, vars(made))
    return made


READ = """
import os, random
def other():
    return random.random()
def lines():
    while True:
        yield
"""
SEEN = {
    "lambda other: abs(-1) + len('a')": None,
    "lambda other: other()": "users.other",
    "lambda other: os.getpid()": "posix.getpid",
    "lambda other: [1].append(2)": None,
    "lambda other: random.random()": "random",
    "lambda other: jnp.sin(0.5)": None,
    "lambda other: [next(lines) for _ in '1']": "users.lines",
}


def watched(f, *args):
    """What the watch finds of a call of ``f``, which was read."""
    codes = [f.__code__, *(c for c in f.__code__.co_consts if isinstance(c, types.CodeType))]
    found = types.SimpleNamespace(codes=[(code, None, None) for code in codes])
    with ThreadWatch(found) as watch:
        f(*args)
    return watch.problem


@pytest.mark.parametrize("text", SEEN)
def test_what_was_not_read_is_seen(text):
    users = functions(READ)
    lines = users.lines()
    next(lines)
    jnp.sin(0.5)  # what it imports, pytest imports
    f = eval(text, {"os": os, "random": users.random, "jnp": jnp, "lines": lines})
    for _ in range(2):  # as often as it is watched
        problem = watched(f, users.other)
        if SEEN[text] is None:
            assert problem is None
        else:
            assert problem is not None and SEEN[text] in problem


def test_other_threads_are_not_watched():
    users = functions("def other(): return 1")
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            users.other()

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        assert watched(lambda: sum(range(100_000))) is None
    finally:
        stop.set()
        thread.join()
    assert "users.other" in watched(lambda other: other(), users.other)


def test_two_threads_are_watched_at_once():
    users = functions("def other(): return 1")
    together, found = threading.Barrier(2), {}

    def run(name):
        with ThreadWatch(types.SimpleNamespace(codes=[])) as watch:
            together.wait(10)
            users.other()
            together.wait(10)
        found[name] = watch.problem

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("one", "two"):
        assert "users.other" in (found[name] or "")


def test_the_watch_leaves_nothing_behind():
    assert watched(lambda: abs(-1)) is None
    assert sys.getprofile() is None and gc.isenabled()
    if sys.version_info >= (3, 12):
        assert sys.monitoring.get_tool(3) is None and sys.monitoring.get_tool(4) is None


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python has no sys.monitoring")
def test_without_a_free_tool_nothing_is_kept():
    for tool in (3, 4):
        sys.monitoring.use_tool_id(tool, "somebody")
    try:
        assert "other tools use sys.monitoring" in str(watched(lambda: 1))
    finally:
        for tool in (3, 4):
            sys.monitoring.free_tool_id(tool)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="profilers don't matter")
def test_under_a_profiler_nothing_is_kept():
    sys.setprofile(lambda *_: None)
    try:
        assert "profiler" in watched(lambda: 1)
    finally:
        sys.setprofile(None)
