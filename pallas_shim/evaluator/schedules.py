"""Runs a program in several orders of its programs and copies, and says whether results differ.

The first orders are those in which copies happen as early and as late as they can. Then come those
in which a program runs as long as it can, those that switch once where they needn't, twice, and so
on (iterative context bounding): that finds most faults in few runs, and ends if there are no more
orders. If there are more than may be tried, half of the runs are drawn by seeds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.findings import Finding
from pallas_shim.evaluator.machine import operations, order
from pallas_shim.evaluator.machine.order import LATE, OWN_ORDER, Decision, Order
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.jax_compat.callbacks import CALLBACK_PRIMITIVES

_DECIDES = frozenset({operations.COPY, operations.PASS_BY, operations.AWAIT, operations.MEET})

# The rule of a finding that says so.
ORDER_DEPENDENT = "order-dependent"


class Explored(NamedTuple):
    """The outcomes of several orders.

    ``other``: an order whose results aren't those of the programs' own order, or None.
    ``difference`` says how. ``runs``: how many orders were tried. ``complete``: there are no more.
    """

    other: Order | None
    difference: str
    runs: int
    complete: bool


def explore(
    executable: Executable, args: Sequence[Any], count: int, seed: int = 0
) -> Explored:
    """Runs a program that was lowered with ``timed`` in up to ``count`` different orders.

    ``seed``: of the first order that is drawn.

    Raises:
      Exception: what the program raises in the programs' own order.
    """
    own = _Outcome(executable, args, OWN_ORDER)
    if own.error is not None:
        raise own.error
    runs, complete = 1, False
    for outcome in _outcomes(executable, args, count - 1, seed):
        if outcome is None:
            complete = True
            break
        runs += 1
        difference = own.difference(outcome)
        if difference is not None:
            return Explored(outcome.order, difference, runs, False)
    return Explored(None, "", runs, complete)


class _Outcome:
    """The outcome of a program in one order: its results, or an error."""

    def __init__(self, executable: Executable, args: Sequence[Any], in_order: Order) -> None:
        self.order = in_order
        self.results: list[Any] = []
        self.error: Exception | None = None
        with order.running(in_order) as run:
            try:
                self.results = executable.run(args)
            except Exception as error:
                self.error = error
        self.decisions: list[Decision] = run.decisions

    def difference(self, other: _Outcome) -> str | None:
        """The difference from another order's outcome, in words. None if there is none."""
        if other.error is not None:
            kind = type(other.error).__name__
            return f"in the order {other.order} it fails: {kind}: {other.error}"
        for number, (a, b) in enumerate(zip(self.results, other.results, strict=True)):
            parts = zip(a, b, strict=True) if type(a) is list else [(a, b)]
            for one, two in parts:
                one, two = np.asarray(one), np.asarray(two)
                if one.tobytes() != two.tobytes():
                    at = _first_difference(one, two)
                    return (
                        f"its result {number} is {one[at]!s} at {list(at)} in the order "
                        f"{self.order}, and {two[at]!s} in the order {other.order}"
                    )
        return None


def _first_difference(one: np.ndarray, two: np.ndarray) -> tuple[int, ...]:
    octets = [np.frombuffer(x.tobytes(), np.uint8).reshape(x.size, -1) for x in (one, two)]
    where = int((octets[0] != octets[1]).any(1).argmax())
    return tuple(map(int, np.unravel_index(where, one.shape)))


def _outcomes(
    executable: Executable, args: Sequence[Any], count: int, seed: int
) -> Iterator[_Outcome | None]:
    """The outcomes of up to ``count`` orders. None after the last one that there is."""
    if count > 0:
        yield _Outcome(executable, args, LATE)
    left = count - 1
    # Prefixes of decisions, by how often they switch where they needn't.
    waiting: list[tuple[int, int, tuple[int, ...]]] = [(0, 0, ())]
    number = 0
    # Half of them are drawn, unless those that wait may be all that there are.
    while waiting and left and (left > count // 2 or len(waiting) <= left):
        switches, _, choices = heapq.heappop(waiting)
        outcome = _Outcome(executable, args, Order(choices=choices))
        left -= 1
        yield outcome
        for at in range(len(choices), len(outcome.decisions)):
            decision = outcome.decisions[at]
            before = tuple(d.chosen for d in outcome.decisions[:at])
            for chosen in range(1, decision.alternatives):
                number += 1
                cost = switches + (not decision.forced)
                heapq.heappush(waiting, (cost, number, (*before, chosen)))
    if not waiting:
        yield None
    for number in range(seed, seed + left):
        yield _Outcome(executable, args, Order(number))


class Schedules(NamedTuple):
    """Which orders are tried: a ``number`` of them, drawn ones from ``seed`` on.

    ``kernels``: the names of the kernels, and ``source`` where the first of them is defined.
    ``skipped`` is called with a kernel and the reason why it isn't run in several orders.
    """

    number: int
    seed: int
    kernels: str
    source: str | None
    skipped: Callable[[str, str], None]


class ExploredExecutable(Executable):
    """An `Executable` whose calls are repeated in other orders.

    ``timed`` makes the program that can run in any order.
    """

    def __init__(
        self,
        executable: Executable,
        timed: Callable[[], Executable],
        schedules: Schedules,
        found: Callable[[Finding], None],
    ) -> None:
        self.program = executable.program
        self._run_once = executable
        self._make = timed
        self._timed: Executable | None = None
        self._schedules = schedules
        self._found = found
        self._done = False

    def run(self, args: Sequence[Any]) -> list[Any]:
        results = self._run_once.run(args)
        if not self._done:
            self._explore(args)
        return results

    def _explore(self, args: Sequence[Any]) -> None:
        number, seed, kernels, source, skipped = self._schedules
        if self._timed is None:
            reason = None
            if any(i.name in CALLBACK_PRIMITIVES for i in self.program.top.walk()):
                reason = "its function calls back to the host, so it can't be run again"
            try:
                self._timed = self._make()
            except Unsupported as unsupported:
                reason = str(unsupported)
            if reason is not None:
                self._done = True
                skipped(kernels, f"other orders of programs and copies: {reason}")
                return
        assert self._timed is not None
        if not any(i.name in _DECIDES for i in self._timed.program.top.walk()):
            self._done = True
            return
        explored = explore(self._timed, args, number, seed)
        if explored.other is not None:
            self._done = True
            self._found(
                Finding(
                    "races", ORDER_DEPENDENT, kernels,
                    "what it computes depends on the order of programs and copies: "
                    + explored.difference,
                    f"run it with PALLAS_NUMPY_SEED={explored.other} and with "
                    f"PALLAS_NUMPY_SEED={OWN_ORDER} to see both; wait for each copy and for each "
                    "program that writes before the memory is read or written again",
                    source=source,
                )
            )  # fmt: skip


class LateExecutable(Executable):
    """An `Executable` whose copies happen when they are waited for.

    Copies that happen at once are much faster, and make no difference to a right kernel. The first
    call finds out whether they make one. ``timed`` makes the program whose copies can be late.
    """

    def __init__(self, executable: Executable, timed: Callable[[], Executable]) -> None:
        self.program = executable.program
        self._at_once = executable
        self._late = OrderedExecutable(timed(), LATE)
        self._chosen: Executable | None = None

    def run(self, args: Sequence[Any]) -> list[Any]:
        if self._chosen is not None:
            return self._chosen.run(args)
        late = _Outcome(self._late, args, LATE)
        if late.error is not None:
            raise late.error
        if any(i.name in CALLBACK_PRIMITIVES for i in self.program.top.walk()):
            return late.results  # each call that is repeated would call back again
        early = _Outcome(self._at_once, args, OWN_ORDER)
        same = early.error is None and early.difference(late) is None
        self._chosen = self._at_once if same else self._late
        return late.results


class OrderedExecutable(Executable):
    """An `Executable` that always runs in one order. Its program was lowered with ``timed``."""

    def __init__(self, executable: Executable, asked: Order) -> None:
        self.program = executable.program
        self._run_once = executable
        self._asked = asked

    def run(self, args: Sequence[Any]) -> list[Any]:
        with order.running(self._asked):
            return self._run_once.run(args)

