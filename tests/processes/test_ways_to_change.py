"""No way to change what a function computes makes the function cache give the old number."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests.processes.conftest import Python, rows_of
from tests.processes.more_ways_to_change import LIBRARY
from tests.processes.ways import READ, REFUSED
from tests.processes.ways_to_change import WAYS

MODULE = """
import argparse, array, builtins, collections, collections.abc, contextvars, dataclasses
import datetime, decimal, enum, fractions, functools, inspect, io, itertools, logging, math
import numbers, operator, pathlib, queue, random, re, string, struct, threading, types, typing
import uuid, warnings, weakref
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
    if {around!r}.startswith("with "):
        with eval({around!r}[len("with "):]):
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
from pallas_shim.cache import later
later.SECONDS = 100  # a busy machine may be slow
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


@pytest.fixture(scope="module")
def found(source, tmp_path_factory):
    """What the first process gave, and the second one, changed; and a last one, unchanged, of the
    ways that are `READ`. And what became of the programs."""
    python = Python(sys.executable, {"PYTHONPATH": str(source / "sitecustomize_pkg")})
    project = tmp_path_factory.mktemp("ways")
    (project / "script.py").write_text(SCRIPT)
    packages = project / "site-packages"
    packages.mkdir()
    (packages / "users_library.py").write_text(LIBRARY)
    ways = dict(enumerate(WAYS.values()))
    read = [number for number, way in ways.items() if way.expected == READ]
    for number, way in ways.items():
        (project / f"way_{number}.py").write_text(
            MODULE.format(
                setup=way.setup, number=number, expression=way.expression, around=way.around
            )
        )

    def run(name: str, numbers, changed: bool):
        place = project / name
        place.mkdir()
        (place / "switch.py").write_text(f"CHANGED = {changed}\n")
        got = python.run(
            project / "script.py", ",".join(map(str, numbers)), place / "out.json",
            cwd=place, timeout=600, PALLAS_NUMPY="1",
            PYTHONPATH=os.pathsep.join(map(str, (place, packages))),
            PALLAS_NUMPY_CACHE=str(project / "cache"),
            PALLAS_NUMPY_REPORT=str(place / "report.json"),
        )  # fmt: skip
        assert got.returncode == 0, got.stderr
        rows = rows_of(place / "report.json")
        became = {row["function"]: str(row["cache"]) for row in rows}
        values = json.loads((place / "out.json").read_text())
        return {int(n): (value, became.get(f"f_{n}", "")) for n, value in values.items()}

    return run("first", ways, False), run("second", ways, True), run("again", read, False)


NAMES = list(WAYS)
pytestmark = pytest.mark.timeout(600)  # for the three processes, on a busy machine


def test_there_are_many():
    assert len(WAYS) >= 300


def in_context(number: int) -> bool:
    """JAX need not compute anything else in another context."""
    return WAYS[NAMES[number]].around.startswith("with ")


def test_no_number_is_stale(found):
    first, second, again = found
    assert {NAMES[n]: became for n, (_, became) in second.items() if became == "read"} == {}
    assert [NAMES[n] for n in again if first[n][0] == second[n][0] and not in_context(n)] == []
    assert {NAMES[n] for n, (value, _) in again.items() if first[n][0] != value} == set()


def test_each_is_read_or_refused_as_the_table_says(found):
    first, second, again = found
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
