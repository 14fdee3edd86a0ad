"""The order of programs and copies: the decisions of a run, which another run can make again.

A run decides at each place where a machine could go on in several ways: which program runs, and
whether a copy that is under way takes its next step. The order of a run says how it decides.
"""

from __future__ import annotations

import contextlib
import contextvars
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from pallas_shim.evaluator.machine.clocks import Clocks


class Order(NamedTuple):
    """The order in which programs run and copies happen.

    ``seed``: a number draws each decision, and equal numbers draw the same. None: the programs take
    turns in their own order. ``late``: a copy happens when a program waits for it, not when it is
    started; a seed draws this, too. ``choices``: the first decisions, each as the number of the
    alternative; the run goes on with the program that runs, as long as it can, after the last one.

    Only programs that were lowered for it (`lower.lower`, ``timed``) have copies that happen later
    than they start, and switch where they needn't.
    """

    seed: int | None = None
    late: bool = False
    choices: tuple[int, ...] | None = None

    def __str__(self) -> str:
        """The text that `parse` reads."""
        if self.choices is not None:
            return "choices:" + ",".join(map(str, self.choices))
        if self.seed is not None:
            return str(self.seed)
        return "late" if self.late else "early"

    @property
    def decides(self) -> bool:
        """Whether there are decisions. Otherwise the order is fixed."""
        return self.seed is not None or self.choices is not None

    @property
    def eager(self) -> bool:
        """Whether a copy happens when it is started."""
        return not self.late and not self.decides


def parse(text: str) -> Order:
    """The order of a text: "early", "late", a number to draw from, or "choices:" and numbers.

    Raises:
      ValueError: it is none of these.
    """
    if text in ("early", "late"):
        return Order(late=text == "late")
    kind, colon, numbers = text.partition(":")
    if colon and kind == "choices":
        return Order(choices=tuple(map(int, filter(None, numbers.split(",")))))
    return Order(int(text))


OWN_ORDER = Order()
LATE = Order(late=True)


class Decision(NamedTuple):
    """One decision among some ``alternatives``. ``forced``: the program that ran can't go on.
    Otherwise the first alternative is that it does."""

    alternatives: int
    chosen: int
    forced: bool


class TimedStep(NamedTuple):
    """A step of a copy. ``address``: the semaphore to which it adds, or None."""

    run: Callable[[], None]
    address: int | None


class CopyUnderWay:
    """A copy under way, with the steps that it has yet to take."""

    __slots__ = ("steps",)

    def __init__(self, steps: Sequence[TimedStep]) -> None:
        self.steps = list(steps)


class RunState:
    """The state of one run: its decisions so far, and the copies under way, the oldest first.

    ``watch``: follows what programs know and touch, if they are watched for races.
    """

    def __init__(self, order: Order = OWN_ORDER, watch: Clocks | None = None) -> None:
        self.order = order
        self.watch = watch
        self.decisions: list[Decision] = []
        self.copies: list[CopyUnderWay] = []
        self._draw = None if order.seed is None else random.Random(order.seed)

    def choose(self, count: int, forced: bool) -> int:
        """Decides among some alternatives."""
        if count == 1:
            return 0
        if self._draw is not None:
            if forced:
                chosen = self._draw.randrange(count)
            else:  # a run that nearly always switched would keep no copy under way for long
                chosen = self._draw.choice((0, self._draw.randrange(1, count)))
        else:
            choices, at = self.order.choices or (), len(self.decisions)
            chosen = min(choices[at], count - 1) if at < len(choices) else 0
        self.decisions.append(Decision(count, chosen, forced))
        return chosen

    def start(self, copy: CopyUnderWay) -> None:
        if self.order.eager:
            for number, step in enumerate(copy.steps):
                if self.watch is None:
                    step.run()
                    continue
                with self.watch.step_of_last(number):
                    step.run()
            return
        self.copies.append(copy)
        self.pass_by()

    def pass_by(self) -> None:
        """Lets copies go on after the program has started one, or has waited. Copies that could
        have gone on before that are no other order."""
        while self.copies and self.order.decides:
            chosen = self.choose(1 + len(self.copies), False)
            if chosen == 0:
                return
            self.step(self.copies[chosen - 1])

    def step(self, copy: CopyUnderWay) -> None:
        """Takes the next step of a copy."""
        step = copy.steps.pop(0)
        if not copy.steps:
            self.copies.remove(copy)
        step.run()

    def serve(self, address: int) -> bool:
        """Has the oldest copy that adds to a semaphore do so. Returns whether there was one."""
        for copy in self.copies:
            if any(step.address == address for step in copy.steps):
                while True:
                    adds = copy.steps[0].address == address
                    self.step(copy)
                    if adds:
                        return True
        return False

    def wait(self, count: Callable[[], int], address: int, needed: int) -> bool:
        """Waits for a semaphore where no other program can add to it. Returns whether it has the
        count needed at the end."""
        while count() < needed:
            if not self.order.decides:
                if not self.serve(address):
                    return False
            elif self.copies:
                self.step(self.copies[self.choose(len(self.copies), True)])
            else:
                return False
        self.pass_by()
        return True

    def land(self) -> None:
        """Ends all copies, at the end of a kernel."""
        while self.copies:
            self.step(self.copies[0])


_RUN: contextvars.ContextVar[RunState] = contextvars.ContextVar("run")


def current() -> RunState:
    """The run that is going on in this thread, or one in the programs' own order."""
    return _RUN.get(None) or RunState()


@contextlib.contextmanager
def running(order: Order, watch: Clocks | None = None) -> Iterator[RunState]:
    """A context in which programs run in this order, and are watched for races."""
    run = RunState(order, watch)
    token = _RUN.set(run)
    try:
        yield run
    finally:
        _RUN.reset(token)
