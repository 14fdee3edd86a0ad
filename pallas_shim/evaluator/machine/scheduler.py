"""The scheduler: runs programs in turns, one at a time, until all have ended.

A program is a generator that yields a `Request` where it can't go on, and is resumed when that is
served. Nothing else runs meanwhile, so a program sees memory change only where it yields.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple


class Deadlock(RuntimeError):
    """Programs wait, and none can go on. The message names each, and what it waits for."""


class Order(NamedTuple):
    """In which order programs run that all could.

    ``seed``: None for their own order; a number for one drawn anew at every switch, always the
    same for the same seed.
    """

    seed: int | None = None


OWN_ORDER = Order()

Program = Generator["Request", Any, None]


class Request:
    """Where a program stands still. ``source`` is the line that it stands at."""

    # Whether it is served, at the latest, when nothing else can go on.
    patient = False

    def __init__(self, source: Callable[[], str | None]) -> None:
        self.source = source

    def ready(self) -> bool:
        """Whether the program can go on."""
        raise NotImplementedError

    def answer(self) -> Any:
        """What the program is resumed with."""
        return None

    def describe(self) -> str:
        """What is waited for, after "waits for"."""
        raise NotImplementedError


class Count(Request):
    """A wait for a semaphore to reach a count; ``read`` gives what it has."""

    def __init__(self, source: Any, name: str, read: Callable[[], int], needed: int) -> None:
        super().__init__(source)
        self.name, self.read, self.needed = name, read, needed

    def ready(self) -> bool:
        return self.read() >= self.needed

    def describe(self) -> str:
        return f"{self.name}, which has {self.read()} and needs {self.needed}"


class Turn(Request):
    """Lets the others run to where they stand still, and then goes on."""

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self._asked = False

    def ready(self) -> bool:
        asked, self._asked = self._asked, True
        return asked

    def describe(self) -> str:
        return "its turn"


class Board:
    """Where the members of one meeting leave what they bring, by their ranks."""

    def __init__(self, size: int) -> None:
        self.brought: list[Any] = [None] * size
        self.missing = set(range(size))
        self.results: Sequence[Any] | None = None


class Meet(Request):
    """A meeting: nobody goes on before all have come.

    ``key`` names the meeting and the group; ``combine`` makes of what was brought, in the order of
    ranks, what each takes away. ``patient``: if some never come, those that did go on.
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
            del boards[self.key]  # the next meeting of this name is another one

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


def run_programs(programs: Iterable[tuple[str, Program]], order: Order = OWN_ORDER) -> None:
    """Runs programs, each with the name that messages call it, to their ends.

    Raises:
      Deadlock: none can go on, and some haven't ended.
    """
    tasks = [_Task(name, program, None) for name, program in programs]
    draw = None if order.seed is None else random.Random(order.seed)
    boards: dict[Any, Board] = {}
    try:
        while tasks:
            # Looked at one by one: what one takes from a semaphore another may have waited for.
            going = list(tasks) if draw is None else draw.sample(tasks, len(tasks))
            ran = False
            for task in going:
                if task.request is None or task.request.ready():
                    _advance(task, tasks, boards)
                    ran = True
                    if draw is not None:
                        break
            if not ran and not _release(tasks, boards):
                raise Deadlock(_explain(tasks))
    finally:
        for task in tasks:
            task.program.close()


def _release(tasks: list[_Task], boards: dict[Any, Board]) -> bool:
    """Has those go on that wait only for others to come too; whether there are such."""
    patient = [t for t in tasks if t.request is not None and t.request.patient]
    for task in patient:
        assert isinstance(task.request, Meet)
        boards.pop(task.request.key, None)
    for task in patient:
        _advance(task, tasks, boards)
    return bool(patient)


def _advance(task: _Task, tasks: list[_Task], boards: dict[Any, Board]) -> None:
    """Runs one program to where it stands still again."""
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
        if not request.ready():
            return
        answer = request.answer()


def _explain(tasks: Sequence[_Task]) -> str:
    lines = []
    for task in tasks:
        request = task.request
        if request is None or isinstance(request, Spawn):
            continue
        where = request.source()
        place = f" ({where})" if where else ""
        lines.append(f"  {task.name} waits for {request.describe()}{place}")
    return "\n".join(["deadlock: no program can go on", *lines,
                      "Each wait needs a signal, or a copy, that arrives"])  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
