"""Copy elision: makes a load a view, if nothing overwrites the memory while the value is in use.

That holds if every use of the value, and of views of it, comes before the next write to its buffer,
and no use lets it leave the round of the region that loaded it.
"""

from __future__ import annotations

from bisect import bisect_right

from pallas_shim.evaluator.analysis.alias import AliasAnalysis, only_reads
from pallas_shim.evaluator.passes.rewrite import with_regions
from pallas_shim.evaluator.program import (
    PURE,
    Instruction,
    Operation,
    Program,
    RefType,
    Region,
    Value,
    make_instruction,
)


def elide_copies(program: Program) -> Program:
    walk = _CopyElision(AliasAnalysis(program))
    return Program(program.name, walk.region(program.top, top=True))


def _gives_ref(operation: Operation) -> bool:
    return any(type(out) is RefType for out in operation.outs)


class _Load:
    """A load that may become a view, and where in its region's body it was last used."""

    __slots__ = ("depth", "at", "last")

    def __init__(self, depth: int, at: int):
        self.depth = depth
        self.at = at
        self.last: float = at

    def escapes(self) -> None:
        self.last = float("inf")


class _CopyElision:
    def __init__(self, aliases: AliasAnalysis):
        self.aliases = aliases
        self.loads: dict[Value, _Load] = {}  # also under the values that are views of them
        self.at: list[int] = []  # the instruction we are at, of each enclosing region
        self.viewing: dict[Operation, Operation] = {}

    def region(self, region: Region, top: bool = False) -> Region:
        depth = len(self.at)
        self.at.append(0)
        body = list(region.body)
        loads: list[_Load] = []
        writes: dict[Value, list[int]] = {}
        for at, instruction in enumerate(body):
            self.at[depth] = at
            operation, ins, outs, regions, _ = instruction
            if self.loads:
                self.use(instruction)
            if regions:
                body[at] = with_regions(instruction, [self.region(r) for r in regions])
                for root in self.aliases.within(instruction).writes:
                    writes.setdefault(root, []).append(at)
            elif operation.effects is not PURE:
                for root in self.aliases.roots(instruction, operation.effects.writes):
                    writes.setdefault(root, []).append(at)
                if only_reads(operation) and "as_view" in operation.params:
                    load = self.loads[outs[0]] = _Load(depth, at)
                    loads.append(load)
        self.at[depth] = len(body)
        for value in region.results:
            returned = self.loads.get(value)
            if returned is None:
                continue
            # Results outlive the program, while the memory of the caller may change.
            if top and self.aliases.root(body[returned.at].ins[0]) in self.aliases.allocated:
                returned.last = max(returned.last, len(body))
            else:
                returned.escapes()
        self.at.pop()
        for load in loads:
            instruction = body[load.at]
            written = writes.get(self.aliases.root(instruction.ins[0]), ())
            following = bisect_right(written, load.at)
            if load.last < (written[following] if following < len(written) else float("inf")):
                body[load.at] = self.as_view(instruction)
        return Region(region.params, tuple(body), region.results)

    def use(self, instruction: Instruction) -> None:
        """Notes the uses of loaded values by one instruction."""
        operation, ins, outs, regions, _ = instruction
        for value in ins:
            load = self.loads.get(value)
            if load is None:
                continue
            if regions or operation.effects.io or _gives_ref(operation):
                load.escapes()
            elif load.last < self.at[load.depth]:
                load.last = self.at[load.depth]
            if operation.view and value is ins[0]:
                for out in outs:
                    self.loads[out] = load

    def as_view(self, instruction: Instruction) -> Instruction:
        operation, *rest = instruction
        viewing = self.viewing.get(operation)
        if viewing is None:
            params = {k: v for k, v in operation.params.items() if k != "as_view"}
            viewing = self.viewing[operation] = Operation(
                operation.name,
                params,
                operation.ins,
                operation.outs,
                operation.params["as_view"],
                operation.effects,
                view=True,
            )
        return make_instruction((viewing, *rest))
