"""Memory versions: the state of memory that a read sees."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from pallas_shim.evaluator.analysis.alias import AliasAnalysis
from pallas_shim.evaluator.program import Instruction, Region, Value


class MemoryVersions:
    """Counts, along a walk in program order, the states of each buffer.

    A read of a buffer in one version sees what any other read in that version sees.
    """

    def __init__(self, aliases: AliasAnalysis):
        self._aliases = aliases
        self._now: dict[Value, int] = {}
        self._count = itertools.count(1)

    def of(self, instruction: Instruction, positions: Iterable[int]) -> tuple[int, ...]:
        roots = self._aliases.roots(instruction, positions)
        return tuple([self._now.get(root, 0) for root in roots])

    def write(self, roots: Iterable[Value]) -> None:
        for root in roots:
            self._now[root] = next(self._count)

    def inside(self, instruction: Instruction) -> Iterable[Region]:
        """The regions of an instruction, each to be walked while it is the current one."""
        writes = self._aliases.within(instruction).writes
        if instruction.name == "switch":
            before = {root: self._now.get(root, 0) for root in writes}
            for region in instruction.regions:
                self._now.update(before)
                yield region
        else:
            # Any run of a loop's region may follow a run that wrote.
            self.write(writes)
            yield from instruction.regions
        self.write(writes)
