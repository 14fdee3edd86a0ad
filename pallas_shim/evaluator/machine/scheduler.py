"""The scheduler: runs programs in turns, one at a time, until all have ended.

A program is a generator. It yields a `Request` where it has to wait, and is resumed when the
request is served. Only one program runs at a time, so it sees memory change only where it yields.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple

from pallas_shim.evaluator.machine.order import OWN_ORDER, Order, RunState


class Wait(NamedTuple):
    """A program that waits for ever, what for, and the user's ``file:line (function)``."""

    program: str
    what: str
    where: str | None


class Deadlock(RuntimeError):
    """Programs wait, and none can go on. The message names each one and what it waits for.

    ``alone``: the program is of a kernel that talks to no other program.
    """

    def __init__(
        self,
        message: str,
        waits: Sequence[Wait] = (),
        alone: bool = False,
    ) -> None:
        super().__init__(message)
        self.waits, self.alone = tuple(waits), alone


Program = Generator["Request", Any, None]


class Request:
    """A place where a program waits. ``source`` gives the line in the user's code."""

    # Whether the scheduler serves the request anyway, once no program can go on otherwise.
    patient = False

    def __init__(self, source: Callable[[], str | None]) -> None:
        self.source = source

    def ready(self) -> bool:
        """Whether the program can go on."""
        raise NotImplementedError

    def answer(self) -> Any:
        """The value that the program gets when it is resumed."""
        return None

    def describe(self) -> str:
        """Names what the program waits for. The text follows "waits for" in messages."""
        raise NotImplementedError


class Count(Request):
    """A wait for a semaphore to reach a count. ``read`` gives its current count. ``address``
    identifies the semaphore."""

    def __init__(
        self, source: Any, name: str, read: Callable[[], int], needed: int, address: int = 0
    ) -> None:
        super().__init__(source)
        self.name, self.read, self.needed, self.address = name, read, needed, address

    def ready(self) -> bool:
        return self.read() >= self.needed

    def describe(self) -> str:
        return f"{self.name}, which has {self.read()} and needs {self.needed}"


class TurnRequest(Request):
    """Lets the other programs run until each waits, and then goes on."""

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self._asked = False

    def ready(self) -> bool:
        asked, self._asked = self._asked, True
        return asked

    def describe(self) -> str:
        return "its turn"


class YieldPoint(Request):
    """A place where the program could let others run, and needn't."""

    def ready(self) -> bool:
        return True

    def describe(self) -> str:
        return "nothing"


class Board:
    """Holds what the members of one meeting bring, by rank."""

    def __init__(self, size: int) -> None:
        self.brought: list[Any] = [None] * size
        self.missing = set(range(size))
        self.results: Sequence[Any] | None = None


class Meet(Request):
    """A meeting: no program goes on before all members have come.

    ``key`` identifies the meeting and the group. ``combine`` takes what the members brought, in the
    order of ranks, and returns the result of each. ``patient``: if some members never come, the
    others go on without them.
    """

    def __init__(
        self, source: Any, name: str, key: Any, rank: int, members: Sequence[str], bring: Any,
        combine: Callable[[list[Any]], Sequence[Any]], patient: bool,
    ) -> None:  # fmt: skip
        super().__init__(source)
        self.name, self.key, self.rank, self.members = name, key, rank, members
        self.bring, self.combine, self.patient = bring, combine, patient
        self.board: Board | None = None

    def arrive(self, boards: dict[Any, Board]) -> None:
        board = boards.get(self.key)
        if board is None:
            board = boards[self.key] = Board(len(self.members))
        self.board = board
        board.brought[self.rank] = self.bring
        board.missing.discard(self.rank)
        if not board.missing:
            board.results = self.combine(board.brought)
            del boards[self.key]  # the next meeting with this key is another one

    def ready(self) -> bool:
        return self.board is not None and self.board.results is not None

    def answer(self) -> Any:
        assert self.board is not None
        return None if self.board.results is None else self.board.results[self.rank]

    def describe(self) -> str:
        assert self.board is not None
        missing = [self.members[rank] for rank in sorted(self.board.missing)]
        return f"{self.name}, to which {_listed(missing)} didn't come"


class Spawn(Request):
    """Starts programs, and waits until they have ended."""

    def __init__(self, source: Any, programs: Sequence[tuple[str, Program]]) -> None:
        super().__init__(source)
        self.programs = programs
        self.left = len(programs)

    def ready(self) -> bool:
        return not self.left

    def describe(self) -> str:
        return "its own programs"


class _Task:
    __slots__ = ("name", "parent", "program", "request")

    def __init__(self, name: str, program: Program, parent: Spawn | None) -> None:
        self.name, self.program, self.parent = name, program, parent
        self.request: Request | None = None


def run_programs(
    programs: Iterable[tuple[str, Program]], order: Order | RunState = OWN_ORDER
) -> None:
    """Runs programs to their ends. Each has a name for messages.

    Raises:
      Deadlock: no program can go on, and some haven't ended.
    """
    run = order if isinstance(order, RunState) else RunState(order)
    tasks = [_Task(name, program, None) for name, program in programs]
    boards: dict[Any, Board] = {}
    try:
        if run.order.decides:
            _in_any_order(tasks, boards, run)
        else:
            _in_own_order(tasks, boards, run)
    finally:
        for task in tasks:
            task.program.close()


def _in_own_order(tasks: list[_Task], boards: dict[Any, Board], run: RunState) -> None:
    while tasks:
        # One at a time: a program may take from a semaphore the count that another waited for.
        ran = False
        for task in list(tasks):
            if task.request is None or task.request.ready() or _served(task, run):
                _advance(task, tasks, boards)
                ran = True
        if not ran and not _release(tasks, boards):
            raise _deadlock(tasks)


def _in_any_order(tasks: list[_Task], boards: dict[Any, Board], run: RunState) -> None:
    task: _Task | None = None
    while tasks:
        ready = [t for t in tasks if t.request is None or t.request.ready()]
        if task is not None and task in ready and isinstance(task.request, YieldPoint):
            others = [t for t in ready if t is not task]
            task = [task, *others][run.choose(1 + len(others), False)]
        elif ready or run.copies:
            chosen = run.choose(len(ready) + len(run.copies), True)
            if chosen >= len(ready):
                run.step(run.copies[chosen - len(ready)])
                continue
            task = ready[chosen]
        elif _release(tasks, boards):
            continue
        else:
            raise _deadlock(tasks)
        _advance(task, tasks, boards, stops=True)


def _served(task: _Task, run: RunState) -> bool:
    """Whether a program that waits for copies can go on after these happen, which then do."""
    request = task.request
    if not isinstance(request, Count):
        return False
    while not request.ready():
        if not run.serve(request.address):
            return False
    return True


def _release(tasks: list[_Task], boards: dict[Any, Board]) -> bool:
    """Releases the programs whose patient meeting can't be completed. Returns whether any was."""
    patient = [t for t in tasks if t.request is not None and t.request.patient]
    for task in patient:
        assert isinstance(task.request, Meet)
        boards.pop(task.request.key, None)
    for task in patient:
        _advance(task, tasks, boards)
    return bool(patient)


def _advance(
    task: _Task, tasks: list[_Task], boards: dict[Any, Board], stops: bool = False
) -> None:
    """Runs one program until it waits again or ends. ``stops``: or until it could let others
    run."""
    answer = None if task.request is None else task.request.answer()
    while True:
        try:
            request = task.program.send(answer)
        except StopIteration:
            tasks.remove(task)
            if task.parent is not None:
                task.parent.left -= 1
            return
        task.request = request
        if isinstance(request, Spawn):
            tasks += [_Task(name, program, request) for name, program in request.programs]
            return
        if isinstance(request, Meet):
            request.arrive(boards)
        if not request.ready() or stops and isinstance(request, YieldPoint):
            return
        answer = request.answer()


def _deadlock(tasks: Sequence[_Task]) -> Deadlock:
    waits = [
        Wait(task.name, request.describe(), request.source())
        for task in tasks
        if (request := task.request) is not None and not isinstance(request, Spawn)
    ]
    lines = [
        f"  {program} waits for {what}" + (f" ({where})" if where else "")
        for program, what, where in waits
    ]
    message = "\n".join(["deadlock: no program can go on", *lines,
                         "Each wait needs a signal, or a copy, that arrives"])  # fmt: skip
    return Deadlock(message, waits)


def _listed(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
