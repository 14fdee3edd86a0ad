"""What programs know of one another, and when two accesses are a race."""

from __future__ import annotations

import numpy as np
import pytest

from pallas_shim.evaluator.machine.clocks import Clocks, Spot

A, B, C = (1, 0), (1, 1), (1, 2)
SPOT = Spot("kernel", "user.py:1", lambda: "user.py:7", ["device 0", "device 1", "device 2"])


class Watched:
    """Clocks, some memory and a semaphore, and what is found."""

    def __init__(self):
        self._found: list = []
        self.clocks = Clocks(self._found.append)
        for program in (A, B, C):
            self.clocks.enter(program)
        self.memory = np.zeros((8, 8))
        self.semaphores = np.zeros(2, np.int32)

    @property
    def found(self):
        self.clocks.decide()
        return self._found

    def touch(self, program, key=..., writes=True, chosen=None, value=None):
        """``chosen``: the elements, as a mask; ``value``: None for one that wasn't there."""
        numbers = None if chosen is None else np.flatnonzero(chosen)
        view = self.memory[key]
        self.clocks.touch(program, self.memory, view, writes, SPOT, "x_ref", numbers)
        if writes:
            new = view + 1 if value is None else np.full_like(view, value)
            view[...] = new if chosen is None else np.where(chosen, new, view)

    def signal(self, program, count=1, at=0):
        self.clocks.add(program, self.semaphores[at : at + 1], count)

    def wait(self, program, count=1, at=0, decrement=True):
        self.clocks.take(program, self.semaphores[at : at + 1], count, decrement)

    def copy(self, program, key=..., count=64, at=0):
        self.clocks.start(program, SPOT, 1)
        with self.clocks.step_of_last(0):
            self.touch(program, key)
            self.signal(program, count, at)


@pytest.fixture
def watched():
    return Watched()


def test_accesses_that_nothing_orders(watched):
    watched.touch(A)
    watched.touch(B, writes=False)
    (finding,) = watched.found
    assert (finding.kind, finding.rule, finding.ref) == ("races", "unordered", "x_ref")
    assert [a.program for a in finding.accesses] == ["device 1", "device 0"]


def test_a_signal_and_its_wait_order_them(watched):
    watched.touch(A)
    watched.signal(A)
    watched.wait(B)
    watched.touch(B)
    assert not watched.found
    watched.touch(A)
    assert len(watched.found) == 1


def test_what_is_known_is_passed_on(watched):
    watched.touch(A)
    watched.signal(A, at=0)
    watched.wait(B, at=0)
    watched.signal(B, at=1)
    watched.wait(C, at=1)
    watched.touch(C)
    assert not watched.found


def test_reads_are_no_race(watched):
    for program in (A, B, C):
        watched.touch(program, writes=False)
    assert not watched.found


@pytest.mark.parametrize(
    "one, two, race",
    [
        (np.s_[0:4], np.s_[4:8], False),
        (np.s_[0:5], np.s_[4:8], True),
        (np.s_[0::2], np.s_[1::2], False),
        (np.s_[:, 0:3], np.s_[:, 3:], False),
        (np.s_[:, 2], np.s_[3, :], True),
        (np.s_[::2, 1::2], np.s_[:, ::2], False),
    ],
)
def test_elements_are_compared_exactly(watched, one, two, race):
    watched.touch(A, one)
    watched.touch(B, two)
    assert bool(watched.found) == race


def test_either_of_two_could_have_signalled(watched):
    """One count was taken, and two programs have signalled: neither is sure to have come first."""
    watched.touch(A)
    watched.signal(A)
    watched.signal(B)
    watched.wait(C, 1)
    watched.touch(C)
    assert len(watched.found) == 1


def test_both_have_signalled(watched):
    watched.touch(A, 0)
    watched.touch(B, 1)
    watched.signal(A)
    watched.signal(B)
    watched.wait(C, 2)
    watched.touch(C)
    assert not watched.found


def test_the_signals_of_one_program_come_in_order(watched):
    watched.touch(A, 0)
    watched.signal(A)
    watched.touch(A, 1)
    watched.signal(A)
    watched.wait(B)
    watched.touch(B, 0)
    assert not watched.found
    watched.touch(B, 1)
    assert len(watched.found) == 1
    watched.wait(B)
    watched.touch(B, 1)
    assert len(watched.found) == 1


def test_a_wait_that_leaves_the_count(watched):
    watched.touch(A)
    watched.signal(A)
    watched.wait(B, decrement=False)
    watched.touch(B)
    watched.wait(C)
    assert not watched.found


def test_a_copy_is_under_way_until_its_wait(watched):
    watched.copy(A)
    watched.touch(A, writes=False)
    (finding,) = watched.found
    assert finding.rule == "copy-not-awaited"
    watched.wait(A, 64)
    watched.touch(A)
    assert len(watched.found) == 1


def test_copies_on_one_semaphore_end_in_any_order(watched):
    watched.copy(A, np.s_[0:4])
    watched.copy(A, np.s_[4:8])
    watched.wait(A, 64)
    watched.touch(A, np.s_[0:4])
    assert len(watched.found) == 1
    watched.wait(A, 64)
    watched.touch(A, np.s_[4:8])
    assert len(watched.found) == 1


def test_two_copies_to_one_place(watched):
    watched.copy(A, at=0)
    watched.copy(A, at=1)
    assert [f.rule for f in watched.found] == ["copy-unordered"]


def test_a_meeting_orders_all(watched):
    watched.touch(A)
    for program in (A, B, C):
        watched.clocks.come(program, "barrier")
    for program in (A, B, C):
        watched.clocks.met(program, "barrier", 3)
    watched.touch(B)
    assert not watched.found


def test_many_accesses_are_forgotten_once_all_know_of_them(watched):
    for step in range(300):
        program, other = (A, B) if step % 2 else (B, A)
        watched.touch(program, np.s_[step % 8, step // 8 % 8, None])
        watched.signal(program)
        watched.wait(other)
    assert not watched.found
    ((_, touches),) = watched.clocks.buffers.values()
    assert len(touches) <= 64


# -- single elements, by masks and indices --------------------------------------------------------


EVEN = np.arange(64).reshape(8, 8) % 2 == 0


@pytest.mark.parametrize(
    "one, two, race",
    [
        (EVEN, ~EVEN, False),
        (EVEN, EVEN, True),
        (EVEN, np.arange(64).reshape(8, 8) == 6, True),
        (EVEN & False, EVEN, False),
        (EVEN, None, True),
        (EVEN & (np.arange(8) > 5), None, True),
    ],
)
def test_chosen_elements_are_compared_exactly(watched, one, two, race):
    watched.touch(A, chosen=one)
    watched.touch(B, chosen=two)
    assert bool(watched.found) == race


def test_chosen_elements_and_a_strided_view(watched):
    watched.touch(A, chosen=EVEN)
    watched.touch(B, np.s_[:, 1::2])
    assert not watched.found
    watched.touch(B, np.s_[:, 0::2])
    assert len(watched.found) == 1


# -- equal values ---------------------------------------------------------------------------------


def test_all_may_write_the_same(watched):
    for program in (A, B, C):
        watched.touch(program, value=7)
    assert not watched.found
    watched.touch(B, value=8)
    assert watched.found


def test_only_the_elements_that_differ_race(watched):
    watched.touch(A, np.s_[0:4], value=7)
    watched.memory[4:] = 1
    watched.touch(B, value=7)
    assert not watched.found


def test_a_read_of_what_all_write(watched):
    watched.touch(A, value=7)
    watched.touch(A, writes=False)
    watched.touch(B, value=7)
    assert not watched.found


def test_a_read_of_what_was_there_before_all_wrote(watched):
    """Another order shows it what the other writes."""
    watched.touch(A, writes=False)
    watched.touch(A, value=7)
    watched.touch(A, writes=False)
    watched.touch(B, value=7)
    assert len(watched.found) == 1


def test_an_equal_value_after_another(watched):
    """Whoever reads it may see what was there between."""
    watched.touch(A, value=7)
    watched.touch(B, value=7)
    watched.touch(B, value=8)
    watched.touch(B, value=7)
    assert watched.found


def test_what_was_added_before_a_semaphore_was_handed_on_may_be_anything(watched):
    watched.copy(A)
    handed_on = np.ones(1, np.int32)  # a copy of the semaphore's count
    watched.clocks.take(B, handed_on, 1, True)
    watched.touch(B)
    watched.copy(C, ..., 64)
    assert [finding.rule for finding in watched.found] == ["copy-unordered"]  # that of C only
