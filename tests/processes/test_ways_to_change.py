"""No way to change what a function computes makes the function cache give the old number."""

from __future__ import annotations

import concurrent.futures
import json
import sys

import pytest

from tests.processes.conftest import Python
from tests.processes.ways_to_change import REFUSED, WAYS

MODULE = """
import argparse, array, builtins, collections, collections.abc, contextvars, dataclasses
import datetime, decimal, enum, fractions, functools, inspect, io, itertools, logging, math
import numbers, operator, pathlib, queue, random, re, string, struct, threading, types, typing
import uuid, weakref
import jax, jax.numpy as jnp, numpy as np, jax._src.nn.functions
from jax.experimental import pallas as pl
from jax._src.interpreters import ad, batching
import switch
CHANGED = switch.CHANGED

class sub(np.ndarray):
    def __new__(cls, k):
        made = np.zeros(2).view(cls)
        made.k = k
        return made

{setup}

def f_{number}(x):
    value = jnp.float32(1) * ({expression})
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] * 0
    return pl.pallas_call(kernel, out_shape=x, interpret=True)(x) + value

def call(x):
    def run():
        return float(jax.jit(f_{number})(x)[0])
    if not ({around!r} and CHANGED):
        return run()
    target, _, value = {around!r}.split("; ")[-1].partition(" = ")
    if target.endswith("]"):
        owner, key = target[:-1].rsplit("[", 1)
        owner, key = eval(owner), eval(key)
        before, put = owner[key], owner.__setitem__
        undo = lambda: put(key, before)
    else:
        owner, _, key = target.rpartition(".")
        owner = eval(owner)
        missing = object()
        before, put = vars(owner).get(key, getattr(owner, key, missing)), functools.partial(setattr, owner)
        had = key in vars(owner) or not isinstance(owner, type)
        undo = (lambda: put(key, before)) if had else (lambda: delattr(owner, key))
    put(key, eval(value))
    try:
        return run()
    finally:
        undo()
"""

SCRIPT = """
import importlib, json, sys
import jax, jax.numpy as jnp
from jax.experimental import pallas as pl
x = jnp.arange(1.0, 4.0)
results = {}
for number in range(int(sys.argv[1])):
    try:
        results[number] = importlib.import_module(f"way_{number}").call(x)
    except Exception as error:
        results[number] = f"{type(error).__name__}: {error}"
open(sys.argv[2], "w").write(json.dumps(results))
"""


@pytest.fixture(scope="module")
def found(source, tmp_path_factory):
    """Of each way: what the first process gave, and the second one, and one without a cache; and
    what became of the program in the first two."""
    python = Python(sys.executable, {"PYTHONPATH": str(source / "sitecustomize_pkg")})
    project = tmp_path_factory.mktemp("ways")
    (project / "script.py").write_text(SCRIPT)
    for number, way in enumerate(WAYS.values()):
        (project / f"way_{number}.py").write_text(
            MODULE.format(
                setup=way.setup, number=number, expression=way.expression, around=way.around
            )
        )

    def run(name: str, changed: bool, cache: str):
        place = project / name
        place.mkdir()
        (place / "switch.py").write_text(f"CHANGED = {changed}\n")
        got = python.run(
            project / "script.py", len(WAYS), place / "out.json", cwd=place,
            PYTHONPATH=str(place), PALLAS_NUMPY="1", PALLAS_NUMPY_CACHE=cache,
            PALLAS_NUMPY_REPORT=str(place / "report.json"),
        )  # fmt: skip
        assert got.returncode == 0, got.stderr
        rows = json.loads((place / "report.json").read_text())["kernels"]
        became = {row["function"]: row["cache"] for row in rows}
        return json.loads((place / "out.json").read_text()), became

    cache = str(project / "cache")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(run, "first", False, cache)
        fresh = pool.submit(run, "fresh", True, "0")
        second = pool.submit(run, "again", False, cache) if first.result() else None
        second, again = run("second", True, cache), second.result()
        return first.result(), second, fresh.result(), again


def test_there_are_many():
    assert len(WAYS) >= 300


def test_no_number_is_stale(found):
    (_, _), (second, became), (fresh, _), _ = found
    numbers = dict(enumerate(WAYS))
    stale = {
        numbers[int(n)]: (value, fresh[n], became.get(f"f_{n}"))
        for n, value in second.items()
        if value != fresh[n] and not WAYS[numbers[int(n)]].expected == REFUSED
        or (value != fresh[n] and became.get(f"f_{n}") == "read")
    }
    assert stale == {}
    hits = [numbers[int(n)] for n in second if became.get(f"f_{n}") == "read"]
    assert hits == []


def test_each_is_read_or_refused_as_the_table_says(found):
    (first, became_first), (second, became), _, (_, became_again) = found
    wrong = {}
    for number, (name, way) in enumerate(WAYS.items()):
        at = f"f_{number}"
        expected = ("written", "written", "read")
        got = (became_first.get(at), became.get(at), became_again.get(at))
        if way.expected == REFUSED and not way.around:
            if not all(str(each).startswith("not kept") for each in got):
                wrong[name] = got, first[str(number)], second[str(number)]
        elif way.around:
            if not isinstance(second[str(number)], str) and not str(got[1]).startswith("not kept"):
                wrong[name] = got, first[str(number)], second[str(number)]
        elif got != expected:
            wrong[name] = got, first[str(number)], second[str(number)]
    assert wrong == {}
