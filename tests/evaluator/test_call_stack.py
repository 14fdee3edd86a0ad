from __future__ import annotations

import resource
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from pallas_shim.evaluator import execute, frames
from pallas_shim.evaluator.call_stack import with_room
from pallas_shim.evaluator.lower import lower


def test_it_gives_what_the_call_gives():
    given = with_room(lambda *args, **kwargs: (args, kwargs), 1, 2, three=3)
    assert given == ((1, 2), {"three": 3})
    with pytest.raises(ZeroDivisionError):
        with_room(lambda: 1 // 0)


def test_it_can_be_nested_and_go_deep():
    def down(n):
        return n if n == 0 else with_room(down, n - 1)

    def deep(n):
        return n if n == 0 else deep(n - 1)

    assert with_room(down, 50) == 0
    assert with_room(deep, sys.getrecursionlimit() // 2) == 0


def test_calls_at_no_depth_ask_the_system_for_memory():
    def nothing():
        pass

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(200):
            nothing()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def at_depths(n):
        return [faults(), *(at_depths(n - 1) if n else [])]

    assert max(with_room(at_depths, 300)) < 100


def chain(x, length):
    for _ in range(length):
        x = jnp.sin(x)
    return x


def loop(x, length):
    return lax.fori_loop(0, length, lambda _, x: jnp.sin(x) * x, x)


@pytest.mark.parametrize(
    ("f", "length", "emitted", "room"),
    [(chain, 20, False, 0), (chain, 300, False, 1), (loop, 10, False, 0), (loop, 300, False, 1),
     (loop, 300, True, 0)],
)  # fmt: skip
def test_programs_of_many_steps_run_with_room(monkeypatch, f, length, emitted, room):
    calls = []

    def noted(*args):
        calls.append(args)
        return with_room(*args)

    monkeypatch.setattr(frames, "with_room", noted)
    x = np.ones(3, np.float32)
    program = lower(jax.make_jaxpr(lambda x: f(x, length))(x))
    (got,) = execute.Executable(program, lambda loop: emitted)(x)
    assert len(calls) == room
    np.testing.assert_allclose(got, f(x, length), rtol=1e-4)
