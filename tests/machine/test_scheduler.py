"""The scheduler alone: programs are generators, memory is a dictionary."""

from __future__ import annotations

import pytest

from pallas_shim.evaluator.machine import scheduler
from pallas_shim.evaluator.machine.order import Order
from pallas_shim.evaluator.machine.scheduler import Count, Deadlock, Meet, Spawn, TurnRequest

ORDERS = [Order(), *map(Order, range(6))]


def here():
    return "user.py:7"


def count(memory, name, needed):
    return Count(here, name, lambda: memory.get(name, 0), needed)


def meet(name, rank, size, bring, combine, patient=False):
    members = [f"program {i}" for i in range(size)]
    return Meet(here, name, name, rank, members, bring, combine, patient)


@pytest.mark.parametrize("order", ORDERS)
def test_a_ring_of_signals(order):
    memory: dict = {}
    seen = []

    def program(me, n):
        if me:
            yield count(memory, me, 1)
        seen.append(me)
        memory[(me + 1) % n] = 1
        yield count(memory, 0, 1)

    scheduler.run_programs([(str(me), program(me, 5)) for me in range(5)], order)
    assert seen == list(range(5))


@pytest.mark.parametrize("order", ORDERS)
def test_what_one_takes_another_waits_for(order):
    """Two want the same count of one semaphore; the second gets it from the first."""
    memory, took = {"s": 1}, []

    def program(me):
        yield count(memory, "s", 1)
        memory["s"] -= 1
        took.append(me)
        yield TurnRequest(here)
        memory["s"] += 1

    scheduler.run_programs([(str(me), program(me)) for me in range(3)], order)
    assert sorted(took) == [0, 1, 2] and memory["s"] == 1


@pytest.mark.parametrize("order", ORDERS)
def test_meetings_repeat(order):
    got: list[list] = [[] for _ in range(3)]

    def program(me):
        for round in range(4):
            answer = yield meet("sum", me, 3, me + round, lambda brought: [sum(brought)] * 3)
            got[me].append(answer)

    scheduler.run_programs([(str(me), program(me)) for me in range(3)], order)
    assert got == [[3, 6, 9, 12]] * 3


@pytest.mark.parametrize("order", ORDERS)
def test_programs_start_others_and_wait_for_them(order):
    memory: dict = {}
    done = []

    def child(me, i):
        memory[me, i] = 1
        yield count(memory, (1 - me, i), 1)

    def program(me):
        yield Spawn(here, [(f"{me}{i}", child(me, i)) for i in range(2)])
        done.append(me)

    scheduler.run_programs([(str(me), program(me)) for me in range(2)], order)
    assert sorted(done) == [0, 1]


@pytest.mark.parametrize("order", ORDERS)
def test_the_patient_go_on_when_nothing_else_can(order):
    steps = []

    def comes():
        yield meet("end", 0, 2, None, lambda brought: brought, patient=True)
        steps.append("on")

    def stays_away():
        yield TurnRequest(here)
        steps.append("ended")

    scheduler.run_programs([("a", comes()), ("b", stays_away())], order)
    assert steps == ["ended", "on"]


@pytest.mark.parametrize("order", ORDERS)
def test_a_deadlock_names_everyone_that_waits(order):
    closed = []

    def waits(name):
        try:
            yield count({"x": 1}, "x", 2)
        finally:
            closed.append(name)

    def ends():
        yield TurnRequest(here)

    def misses():
        yield meet("psum", 0, 3, None, lambda brought: brought)

    with pytest.raises(Deadlock) as raised:
        scheduler.run_programs(
            [("one", waits("one")), ("two", ends()), ("three", misses())], order
        )
    text = str(raised.value)
    assert "one waits for x, which has 1 and needs 2 (user.py:7)" in text
    assert "three waits for psum, to which program 1 and program 2 didn't come" in text
    assert "two" not in text and closed == ["one"]


def test_an_error_of_one_ends_all():
    ended = []

    def fails():
        yield TurnRequest(here)
        raise KeyError("this")

    def waits():
        try:
            yield count({}, "never", 1)
        finally:
            ended.append(True)

    with pytest.raises(KeyError, match="this"):
        scheduler.run_programs([("a", fails()), ("b", waits())])
    assert ended == [True]


def test_a_seed_gives_the_same_order_again_and_seeds_differ():
    def order_of(order):
        seen = []

        def program(me):
            for _ in range(3):
                seen.append(me)
                yield TurnRequest(here)

        scheduler.run_programs([(str(me), program(me)) for me in range(4)], order)
        return tuple(seen)

    found = {seed: order_of(Order(seed)) for seed in range(8)}
    assert found == {seed: order_of(Order(seed)) for seed in range(8)}
    assert len(set(found.values())) > 4
    assert order_of(Order()) == (0, 1, 2, 3) * 3
