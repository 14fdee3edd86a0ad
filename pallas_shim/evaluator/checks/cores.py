"""The checks of a kernel on the cores of a mesh, each of which runs one function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from pallas_shim.evaluator.checks import prune
from pallas_shim.evaluator.checks.copies import Flights
from pallas_shim.evaluator.checks.lowering import (
    OBJECT,
    Aspect,
    Checker,
    Memory,
    enter_cell,
    is_undefined,
)
from pallas_shim.evaluator.checks.outputs import check_result
from pallas_shim.evaluator.checks.races import History
from pallas_shim.evaluator.checks.run import AccessSite
from pallas_shim.evaluator.checks.shadow import NEVER, Shadow
from pallas_shim.evaluator.program import Instruction, Value


class CoreOutputs:
    """The checks that cores, of all kinds, write the results of their kernel. ``refs``: the
    results' memory, which is new."""

    def __init__(
        self, checker: Checker, name: str, source: str | None, refs: Sequence[Value]
    ) -> None:
        self.checker = checker
        self.name, self.source = name, source
        self.shadows = {
            ref: Aspect()
            for ref in refs
            if checker.follows_codes and is_undefined(ref.ref) and not ref.ref.key_ndim
        }
        for aspect in self.shadows.values():
            aspect.needed = True
        self._activation = Value(OBJECT)

    def enter(self) -> None:
        """Emits what has to be there before the first core."""
        self.checker.define_activation(self._activation, self.name, self.source)
        for ref, aspect in self.shadows.items():
            shape = ref.ref.shape
            self.checker.define(
                aspect.value, "state", functools.partial(Shadow, shape, NEVER), aspect
            )

    def result(self, ref: Value, value: Value) -> Value:
        """Emits the check of a result, and returns the result as the program uses it."""
        shadow = self.shadows.get(ref)
        if shadow is None:
            return value
        name = self.checker.lowering.names.get(ref)
        number, source = self.checker.next_number(), self.checker.lowering.source
        site = AccessSite(number, name, "leaves", source)
        return check_result(self.checker, self._activation, shadow, site, NEVER, value)


class CoreChecks:
    """The checks of the function of a core while it is lowered.

    ``refs`` is the memory that all cores reach, and ``shadows`` the shadows of some of it.
    ``sizes``: of the axes of the cores' mesh. ``waits``: they may wait for one another.
    """

    def __init__(
        self,
        checker: Checker,
        name: str,
        source: str | None,
        refs: Sequence[Value],
        sizes: Sequence[int],
        waits: bool,
        shadows: Mapping[Value, Aspect],
    ) -> None:
        self.checker = checker
        self.shadows = shadows
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
        if indices:
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
        memory.codes = self.shadows.get(ref)
        if self._races:
            memory.history = Aspect()
            self._histories.append((memory.history, lambda: History(shape)))

    def finish(self, cells: Sequence[Instruction]) -> list[Instruction]:
        """Emits what has to be there before the first core. Returns the cells without checks that
        nothing needs."""
        for aspect, make in self._histories:
            self.checker.define(aspect.value, "state", make, aspect)
        return prune.unneeded(prune.proven(cells))

