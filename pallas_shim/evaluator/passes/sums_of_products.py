"""Sums of products: adds large products of matrices to a sum in one operation, without arrays
between.

A kernel that goes along the terms of a product in blocks adds up the products of blocks. If grid
batching has written those out, the sum of all is one operation.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from pallas_shim.evaluator import products, registry, scalar_types
from pallas_shim.evaluator.builder import Builder
from pallas_shim.evaluator.passes.rewrite import with_regions
from pallas_shim.evaluator.program import (
    Instruction,
    Operation,
    Program,
    Region,
    Value,
    make_instruction,
)

NAME = "sum_of_products"


def sum_products(program: Program) -> Program:
    # Few programs have a large product.
    if not any(map(_is_large_product, program.top.walk())):
        return program
    registry.load()
    return Program(program.name, _Sums(program).region(program.top))


class _Sums:
    def __init__(self, program: Program) -> None:
        self.uses = Counter(program.top.uses())
        self.zeros: set[Value] = set()  # made by a broadcast
        self.views = set(program.top.params)  # values that take no memory of their own
        self.builder = Builder()

    def region(self, region: Region) -> Region:
        body: list[Instruction | None] = []
        # Where products and sums of products are made that have one use. None moves past a write,
        # since an operand may be a view of memory.
        made: dict[Value, int] = {}
        for instruction in region.body:
            operation, ins, outs, regions, _ = instruction
            if regions:
                instruction = with_regions(instruction, list(map(self.region, regions)))
            if regions or operation.effects.writes or operation.effects.io:
                made.clear()
            elif operation.name in ("add", "add_any"):
                instruction = self.sum(instruction, body, made) or instruction
            elif operation.name in ("broadcast_in_dim", "broadcast_to") and self.is_zero(ins[0]):
                self.zeros.add(outs[0])
            if operation.view:
                self.views.update(outs)
            if instruction.name == NAME or _is_large_product(instruction):
                if self.uses[outs[0]] == 1:
                    made[outs[0]] = len(body)
            body.append(instruction)
        kept = [i for i in body if i is not None and self.needs(i)]
        return Region(region.params, tuple(kept), region.results)

    def needs(self, instruction: Instruction) -> bool:
        """Whether an instruction is more than zeros that nothing uses any more."""
        outs = instruction.outs
        return not outs or outs[0] not in self.zeros or self.uses[outs[0]] > 0

    def sum(
        self, add: Instruction, body: list[Instruction | None], made: dict[Value, int]
    ) -> Instruction | None:
        """An instruction that does what an addition does, and those before it, which leave
        ``body``."""
        (out,) = add.outs
        if any(value.type != out.type for value in add.ins):
            return None
        for start, summand in (add.ins, add.ins[::-1]):
            product = _taken(body, made, summand)
            if product is None or product.name != "dot_general":
                continue
            matrices, params = product.ins, product.operation.params
            before = _taken(body, made, start)
            starts = not self.is_zero(start)
            ins = (start, *matrices) if starts else matrices
            if not starts:
                self.uses[start] -= 1
            if before is not None and self.can_grow(before, product):
                body[made[start]] = None
                starts, ins = before.operation.params["starts"], (*before.ins, *matrices)
            body[made[summand]] = None
            types = tuple([value.type for value in ins])
            operation = self.builder.operation(
                NAME, types, (out.type,), {"starts": starts, **params}
            )
            return make_instruction((operation, ins, add.outs, (), add.source))
        return None

    def can_grow(self, before: Instruction, product: Instruction) -> bool:
        """Whether a sum can have a product more. Its matrices then stay until all are added."""
        if not _adds_alike(before.operation, product.operation):
            return False
        matrices = before.ins[before.operation.params["starts"] :]
        return all(x in self.views or x.const is not None for x in matrices)

    def is_zero(self, value: Value) -> bool:
        if value.const is None:
            return value in self.zeros
        is_float = value.const.dtype.char in "fd"
        return is_float and not (value.const.any() or np.signbit(value.const).any())


def _taken(
    body: list[Instruction | None], made: dict[Value, int], value: Value
) -> Instruction | None:
    """What made a value, if it can be taken away."""
    return body[made[value]] if value in made else None


def _adds_alike(before: Operation, product: Operation) -> bool:
    """Whether a sum of products adds up products like this one."""
    if before.name != NAME:
        return False
    starts = before.params["starts"]
    return (
        before.params == {"starts": starts, **product.params}
        and before.ins[starts : starts + 2] == product.ins
    )


def _is_large_product(instruction: Instruction) -> bool:
    """Whether it is a large product of matrices of floats, of which the sums aren't rounded."""
    operation = instruction.operation
    if operation.name != "dot_general" or operation.outs[0].dtype.char not in "fd":
        return False
    (lhs, rhs), (out,) = operation.ins, operation.outs
    numbers = operation.params["dimension_numbers"]
    for x, *used in zip((lhs, rhs), *numbers, strict=True):
        if len(products.others(len(x.shape), *used)) != 1 or not scalar_types.is_float(x.dtype):
            return False
        if np.promote_types(scalar_types.wide(x.dtype), out.dtype) != out.dtype:
            return False
    return products.pays_to_add(*products.stacks(lhs.shape, rhs.shape, numbers))
