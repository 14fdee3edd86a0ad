"""Programs as text.

Each line is an instruction: its results with their types, its name and parameters, its operands,
and behind ``#`` its effects and the user's line, if that differs from the line before. Values are
numbered in the order of the text: ``%3`` is an array, ``&4`` a ref. A constant stands for itself.
The regions of a loop or a branch are indented below it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pallas_shim import jax_compat
from pallas_shim.evaluator import ops
from pallas_shim.evaluator.memory import Chosen, Dynamic
from pallas_shim.evaluator.program import Instruction, Program, RefType, Region, Value
from pallas_shim.jax_compat.state import Index, Slice

Names = dict[Value, str]

_REGIONS = {"while": ("condition ", "body ")}
_LONGEST = 60  # of a parameter, in characters


def program(program: Program, known: Names | None = None) -> str:
    """The whole program. ``known``: the names of its values, as of `names`."""
    printer = _Printer(names(program) if known is None else known)
    printer.region(program.top, f"program {program.name} ", "")
    return "\n".join(printer.lines) + "\n"


def names(program: Program, known: Names | None = None) -> Names:
    """The name of each value that isn't a constant, in the order of the text. What has a name in
    ``known``, from before a pass, keeps it."""
    found: Names = dict(known or {})

    def note(values: tuple[Value, ...]) -> None:
        for value in values:
            if value.const is None and value not in found:
                found[value] = f"{'&' if isinstance(value.type, RefType) else '%'}{len(found)}"

    def visit(region: Region) -> None:
        note(region.params)
        for instruction in region.body:
            note(instruction.outs)
            for inner in instruction.regions:
                visit(inner)

    visit(program.top)
    return found


def instruction(instruction: Instruction, names: Names) -> str:
    """One instruction without its regions. A value without a name has none in the program."""
    operation, ins, outs, _, _ = instruction
    left = ", ".join([_typed(value, names) for value in outs])
    shown = []
    for name, parameter in operation.params.items():
        text = _parameter(name, parameter)
        if text is not None:
            shown.append(text)
    text = f"{left} = " if left else ""
    text += instruction.name
    if shown:
        text += f"[{' '.join(shown)}]"
    if ins:
        text += f" {', '.join([_name(value, names) for value in ins])}"
    return text


def _name(value: Value, names: Mapping[Value, str]) -> str:
    if value.const is None:
        return names.get(value, "%undefined")
    text = np.array2string(value.const, threshold=4, edgeitems=1, separator=",")
    return f"{' '.join(text.split())}:{value.type}"


def _typed(value: Value, names: Mapping[Value, str]) -> str:
    return f"{_name(value, names)}:{value.type}" if value.const is None else _name(value, names)


def _parameter(name: str, parameter: Any) -> str | None:
    """A parameter, None for one that tells the reader nothing."""
    if parameter is None or name == ops.AS_VIEW:
        return None
    if name == ops.PATH:
        return f"{name}={_path(parameter)}" if parameter else None
    if isinstance(parameter, np.ufunc):
        return f"{name}={parameter.__name__}"
    if isinstance(parameter, np.ndarray):
        parameter = np.array2string(parameter, threshold=4, edgeitems=2, separator=",")
    elif callable(parameter):
        parameter = getattr(parameter, "__qualname__", type(parameter).__name__)
    text = " ".join(str(parameter).split())
    return f"{name}={text if len(text) <= _LONGEST else text[: _LONGEST - 3] + '...'}"


def _path(path: Any) -> str:
    """A path, step by step. ``leaf0`` is the first of the operands that are places."""
    return "".join([_step(step) for step in path])


def _step(step: Any) -> str:
    if not isinstance(step, Index):
        text = ", ".join(map(str, step))
        return f".{type(step).__name__.lower()}({text})"
    return f"[{', '.join(map(_index, step.dims))}]"


def _index(index: Any) -> str:
    if isinstance(index, (Dynamic, Chosen)):
        return f"leaf{index.leaf}"
    if not isinstance(index, Slice):
        return str(index)
    start, size, stride = index
    text = f"{_index(start)}+{_index(size)}"
    return text if stride == 1 else f"{text}*{stride}"


class _Printer:
    def __init__(self, names: Names):
        self.names = names
        self.lines: list[str] = []
        self.place: str | None = None
        self.places: dict[int, str | None] = {}

    def region(self, region: Region, head: str, indent: str) -> None:
        params = ", ".join([_typed(value, self.names) for value in region.params])
        self.lines.append(f"{indent}{head}({params}):")
        for inner in region.body:
            self.instruction(inner, indent + "  ")
        if region.results:
            results = ", ".join([_name(value, self.names) for value in region.results])
            self.lines.append(f"{indent}  -> {results}")

    def instruction(self, inner: Instruction, indent: str) -> None:
        text = indent + instruction(inner, self.names)
        remarks = self.effects(inner)
        place = self.source(inner.source)
        if place is not None and place != self.place:
            self.place = place
            remarks.append(f"at {place}")
        self.lines.append(f"{text:<48}  # {'; '.join(remarks)}" if remarks else text)
        heads = _REGIONS.get(inner.name)
        for number, region in enumerate(inner.regions):
            head = heads[number] if heads and number < len(heads) else (
                f"branch {number} " if inner.name == "switch" else "each "
            )
            self.region(region, head, indent + "    ")

    def effects(self, inner: Instruction) -> list[str]:
        reads, writes, allocates, io = inner.operation.effects
        remarks = []
        for what, positions in (("reads", reads), ("writes", writes)):
            if positions:
                refs = ", ".join([_name(inner.ins[p], self.names) for p in positions])
                remarks.append(f"{what} {refs}")
        if allocates:
            remarks.append("allocates")
        if io:
            remarks.append("seen outside")
        if inner.operation.view:
            remarks.append("view")
        return remarks

    def source(self, source: Any) -> str | None:
        if id(source) not in self.places:
            self.places[id(source)] = jax_compat.user_source(source)
        return self.places[id(source)]
