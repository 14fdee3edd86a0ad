"""The walk for passes that look at one instruction and at those that made its operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from pallas_shim.evaluator import registry
from pallas_shim.evaluator.builder import Builder
from pallas_shim.evaluator.passes.rewrite import (
    Substitution,
    substitute,
    with_operands,
    with_regions,
)
from pallas_shim.evaluator.program import (
    ArrayType,
    Instruction,
    Program,
    Region,
    Value,
)


class Peephole:
    """Walks a program forwards, offering each instruction to the method for its name.

    A method returns the value that stands for the instruction's result, or None to keep the
    instruction; it may emit others with ``builder``. What is no longer needed is left to dead code.
    """

    methods: ClassVar[Mapping[str, Callable[[Any, Instruction], Value | None]]]

    def __init__(self) -> None:
        registry.load()
        self.replaced: Substitution = {}
        self.builder = Builder()

    @classmethod
    def run(cls, program: Program) -> Program:
        return Program(program.name, cls().region(program.top))

    def region(self, region: Region) -> Region:
        replaced, methods = self.replaced, self.methods
        with self.builder.block() as body:
            for instruction in with_operands(region.body, replaced):
                operation, _, outs, regions, source = instruction
                if regions:
                    instruction = with_regions(instruction, [self.region(r) for r in regions])
                method = methods.get(operation.name)
                if method is not None and type(outs[0].type) is ArrayType:
                    self.builder.source = source
                    same = method(self, instruction)
                    if same is not None:
                        replaced[outs[0]] = same
                        continue
                body.append(instruction)
        return Region(region.params, tuple(body), substitute(region.results, replaced))
