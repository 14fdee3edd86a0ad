"""No way to change what a function computes makes the function cache give the old number."""

from __future__ import annotations

import json
import sys

import pytest

from tests.processes.conftest import Python
from tests.processes.ways_to_change import READ, REFUSED, WAYS

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
        before = vars(owner).get(key, getattr(owner, key, missing))
        put = functools.partial(setattr, owner)
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
for number in map(int, sys.argv[1].split(",")):
    try:
        results[number] = importlib.import_module(f"way_{number}").call(x)
    except Exception as error:
        results[number] = f"{type(error).__name__}: {error}"
open(sys.argv[2], "w").write(json.dumps(results))
"""


PARTS = 3


@pytest.fixture(scope="module", params=range(PARTS))
def found(request, source, tmp_path_factory):
    """Of some ways: what the first process gave, and the second one; the third one, changed as the
    second, without a cache; and a last one, unchanged. And what became of the programs. The last
    two have only the ways that are `READ`."""
    python = Python(sys.executable, {"PYTHONPATH": str(source / "sitecustomize_pkg")})
    project = tmp_path_factory.mktemp("ways")
    (project / "script.py").write_text(SCRIPT)
    ways = dict(list(enumerate(WAYS.values()))[request.param :: PARTS])
    read = [number for number, way in ways.items() if way.expected == READ]
    for number, way in ways.items():
        (project / f"way_{number}.py").write_text(
            MODULE.format(
                setup=way.setup, number=number, expression=way.expression, around=way.around
            )
        )

    def run(name: str, numbers, changed: bool, cache: str):
        place = project / name
        place.mkdir()
        (place / "switch.py").write_text(f"CHANGED = {changed}\n")
        got = python.run(
            project / "script.py", ",".join(map(str, numbers)), place / "out.json", cwd=place,
            PYTHONPATH=str(place), PALLAS_NUMPY="1", PALLAS_NUMPY_CACHE=cache,
            PALLAS_NUMPY_REPORT=str(place / "report.json"),
        )  # fmt: skip
        assert got.returncode == 0, got.stderr
        rows = json.loads((place / "report.json").read_text())["kernels"]
        became = {row["function"]: str(row["cache"]) for row in rows}
        values = json.loads((place / "out.json").read_text())
        return {int(n): (value, became.get(f"f_{n}", "")) for n, value in values.items()}

    cache = str(project / "cache")
    first = run("first", ways, False, cache)
    second = run("second", ways, True, cache)
    return first, second, run("fresh", read, True, "0"), run("again", read, False, cache)


NAMES = list(WAYS)


def test_there_are_many():
    assert len(WAYS) >= 300


def test_no_number_is_stale(found):
    first, second, fresh, _ = found
    assert {NAMES[n]: became for n, (_, became) in second.items() if became == "read"} == {}
    numbers = {n: second[n][0] for n in fresh}
    assert numbers == {n: value for n, (value, _) in fresh.items()}
    assert [NAMES[n] for n in fresh if first[n][0] == second[n][0]] == []


def test_each_is_read_or_refused_as_the_table_says(found):
    first, second, _, again = found
    wrong = {}
    for n in first:
        (_, one), (value, two), expected = first[n], second[n], WAYS[NAMES[n]].expected
        if expected == READ:
            right = (one, two, again[n][1]) == ("written", "written", "read")
        elif expected == REFUSED:
            right = one.startswith("not kept") and two.startswith("not kept")
        else:  # what was put there may not even run
            right = two.startswith("not kept") or isinstance(value, str)
        if not right:
            wrong[NAMES[n]] = first[n], second[n]
    assert wrong == {}
