from __future__ import annotations

import resource
import sys

import pytest

from pallas_shim.evaluator.stack import with_room


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
