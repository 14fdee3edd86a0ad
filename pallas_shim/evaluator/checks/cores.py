"""The checks of a kernel on the cores of a mesh, each of which runs one function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pallas_shim.evaluator.checks import prune
from pallas_shim.evaluator.checks.copies import Flights
from pallas_shim.evaluator.checks.lowering import Aspect, Checker, Memory, enter_cell
from pallas_shim.evaluator.checks.races import History
from pallas_shim.evaluator.program import Instruction, Value


class CoreChecks:
    """The checks of the function of a core while it is lowered.

    ``refs`` is the memory that all cores reach. ``count`` cores run at the same time. ``waits``:
    they may wait for one another.
    """

    def __init__(
        self,
        checker: Checker,
        name: str,
        source: str | None,
        refs: Sequence[Value],
        sizes: Sequence[int],
        waits: bool,
    ) -> None:
        self.checker = checker
        self.name = name
        self.source = source
        self.refs = [ref for ref in dict.fromkeys(refs) if not ref.ref.key_ndim]
        self.sizes = sizes
        self._histories: list[tuple[Aspect, Callable[[], History]]] = []
        several = any(size > 1 for size in sizes)
        self._races = several and not waits and checker.checks("races")

    @contextmanager
    def core(self, indices: Sequence[Value]) -> Iterator[None]:
        """A context in which the function of a core is lowered."""
        checker = self.checker
        outer = checker.activation, checker.kernel, dict(checker.memory)
        checker.kernel = self.name
        checker.activation = checker.activate(self.name, self.source)
        checker.emit(
            "cell", [checker.activation, *indices],
            enter_cell(self.sizes, range(len(self.sizes))),
        )  # fmt: skip
        for ref in self.refs:
            self._follow(ref)
        try:
            yield
        finally:
            checker.activation, checker.kernel, checker.memory = outer

    def _follow(self, ref: Value) -> None:
        checker = self.checker
        memory = Memory(checker.lowering.names.get(ref, "a ref"))
        checker.memory[ref] = memory
        shape = ref.ref.shape
        if ref.ref.space.startswith("semaphore"):
            return  # the caller's, which may have started copies on it
        if checker.checks("sync"):
            memory.flights = Aspect()
            checker.define(memory.flights.value, "state", lambda: Flights(shape), memory.flights)
        if self._races:
            memory.history = Aspect()
            self._histories.append((memory.history, lambda: History(shape)))

    def finish(self, cells: Sequence[Instruction]) -> list[Instruction]:
        """Emits what has to be there before the first core. Returns the cells without checks that
        nothing needs."""
        for aspect, make in self._histories:
            self.checker.define(aspect.value, "state", make, aspect)
        return prune.unneeded(prune.proven(cells))

