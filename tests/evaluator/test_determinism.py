"""The program of a jaxpr is always the same, wherever its values lie in memory. (A set of values is
in the order of their addresses.) Between processes: tests/processes/test_determinism.py."""

from __future__ import annotations

import functools
import random

import jax
import numpy as np
import pytest
from jax import lax

from pallas_shim.evaluator.compiler import make_program
from pallas_shim.evaluator.program import Operation, Region, Value
from tests.fuzz.check import GENERATORS
from tests.oracle import x64

# Not the programs of several devices: they need a mesh, and aren't kept.
KINDS = [kind for kind in GENERATORS if kind not in ("devices", "schedules")]
TILES = np.arange(8 * 4 * 6, dtype=np.int32).reshape(8, 4, 6)


def branching(*tiles):
    """A branch and a loop use many values that are computed as one stack."""
    squares = [tile * tile + 1 for tile in tiles]
    chosen = lax.cond(
        tiles[0][0, 0] > 0, lambda: functools.reduce(lax.sub, squares), lambda: squares[5]
    )
    more = [tile - 3 for tile in reversed(squares)]
    return lax.fori_loop(0, 3, lambda i, c: c * more[6] + more[1] - more[4] * more[3], chosen)


def with_hashes(monkeypatch, factor):
    """Sets of what a program consists of get another order."""
    for kind in (Value, Region, Operation):
        monkeypatch.setattr(kind, "__hash__", lambda x: (id(x) >> 4) * factor % (1 << 61))


@pytest.mark.parametrize("kind", ["branching", *KINDS])
def test_a_program_does_not_depend_on_the_order_of_sets(kind, monkeypatch):
    if kind == "branching":
        function, args, is_x64 = branching, list(TILES), False
    else:
        call = GENERATORS[kind][1](random.Random(1))
        function, args, is_x64 = call.function, call.args, call.pool.x64
    with x64(is_x64):
        jaxpr = jax.make_jaxpr(function)(*args)
        texts = []
        for factor in (1, 0x9E3779B97F4A7C15, 0x5851F42D4C957F2D):
            with monkeypatch.context() as patch:
                with_hashes(patch, factor)
                texts.append(str(make_program(jaxpr, name=kind)))
    assert texts[0] == texts[1] == texts[2]
