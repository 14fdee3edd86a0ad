"""Arrays as lists of the parts that the programs of a mesh hold.

If only the programs of a mesh use an array, or they made it, the list of its parts, in the order of
the mesh, may replace it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pallas_shim.evaluator.machine.operations import PROGRAMS
from pallas_shim.evaluator.program import Instruction, Program, Value

# For each dimension of an array, the axes of the mesh along which it is cut, the slowest first.
Names = tuple[tuple[Any, ...], ...]


def split(
    shape: Sequence[int], names: Names, sizes: Mapping[Any, int], coordinates: Mapping[Any, int]
) -> tuple[slice, ...]:
    """The slices that select a program's part of an array, given the program's coordinates."""
    key = []
    for dim, axes in zip(shape, names, strict=True):
        index, parts = 0, 1
        for axis in axes:
            index = index * sizes[axis] + coordinates[axis]
            parts *= sizes[axis]
        count = dim // parts
        key.append(slice(index * count, (index + 1) * count))
    return tuple(key)


def all_coordinates(sizes: Mapping[Any, int]) -> list[dict[Any, int]]:
    """The coordinates of all programs along some axes. The last axis is the fastest."""
    return [dict(zip(sizes, map(int, at), strict=True)) for at in np.ndindex(*sizes.values())]


# -- at the ends of a program ---------------------------------------------------------------------


def results(program: Program) -> dict[int, Names]:
    """How results are cut, by position. Lists only results that programs of a mesh made and that
    nothing else uses."""
    top = program.top
    uses = Counter(top.uses())
    made = {
        value: names
        for instruction in _on_meshes(program)
        for value, names in zip(instruction.outs, instruction.operation.params["names_out"],
                                strict=True)
    }  # fmt: skip
    return {
        position: made[value]
        for position, value in enumerate(top.results)
        if value in made and uses[value] == 1
    }


def parameters(program: Program) -> dict[int, Names]:
    """How parameters are cut, by position. Lists only those that programs of a mesh alone use."""
    top = program.top
    cuts: dict[Value, set[Names]] = {}
    taken: Counter[Value] = Counter()
    for instruction in _on_meshes(program):
        for value, names in zip(instruction.ins[1:], instruction.operation.params["names_in"],
                                strict=True):  # fmt: skip
            cuts.setdefault(value, set()).add(names)
            taken[value] += 1
    uses = Counter(top.uses())
    return {
        position: next(iter(cuts[value]))
        for position, value in enumerate(top.params)
        if len(cuts.get(value, ())) == 1 and taken[value] == uses[value]
    }


def _on_meshes(program: Program) -> Iterator[Instruction]:
    """The outermost instructions that run programs."""
    return (i for i in program.top.body if i.name == PROGRAMS)
