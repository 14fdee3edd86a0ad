"""Code generation: turns a loop with many rounds into one Python function.

Closures are cheaper to make than source is to compile, so this pays only for loops. In the
function, values are local variables, loops and branches are Python's own, scalar integers and
booleans are Python's numbers, and memory is indexed in place. Other instructions are called as the
closures would call them.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Collection

from pallas_shim.evaluator.codegen.instructions import is_written_out
from pallas_shim.evaluator.codegen.loops import function
from pallas_shim.evaluator.codegen.source import Emitted
from pallas_shim.evaluator.program import Instruction, Value

# Seconds to compile a line; seconds that a round saves for an instruction that is written out, and
# for any other.
_LINE, _WRITTEN_OUT, _CALLED = 1.2e-5, 5e-7, 1e-7
# The assumed number of rounds of a loop of unknown length, and of calls of a program.
_ROUNDS, _CALLS = 10, 3
# Python allows 20 loops inside one another (a while loop counts as two), and 100 levels of
# indentation.
DEEPEST = 12


def choice(skip: Collection[str]) -> Callable[[Instruction], bool]:
    """Chooses the loops that become functions, if the passes named in ``skip`` are left out."""
    return (lambda loop: False) if "codegen" in skip else pays


def pays(loop: Instruction) -> bool:
    """Whether a loop saves more as a function than it costs to make one."""
    lines, saved, _ = _worth(loop)
    return saved * _CALLS > lines * _LINE


def emit(
    loop: Instruction, slot: Callable[[Value], int], known: dict[str, types.CodeType]
) -> Emitted | None:
    """A scan, while or grid as a function; None if it is too deep for one.

    ``slot`` gives the place in the frame of a value that is defined outside the loop, or is one
    of the loop's own results. ``known``: see `Program.loops`; new code is added.
    """
    *_, depth = _worth(loop)
    return None if depth > DEEPEST else function(loop, slot, known)


def _worth(instruction: Instruction) -> tuple[int, float, int]:
    """The number of lines of an instruction, the time that they save per run, and the depth of
    nested loops and branches."""
    lines, saved, depth = 1, _WRITTEN_OUT if is_written_out(instruction) else _CALLED, 0
    for region in instruction.regions:
        for inner in region.body:
            inner_lines, inner_saved, inner_depth = _worth(inner)
            lines += inner_lines
            saved += inner_saved * rounds(instruction)
            depth = max(depth, inner_depth)
    return lines, saved, depth + bool(instruction.regions)


def rounds(instruction: Instruction) -> float:
    """Estimates how often each region of an instruction runs when the instruction runs once."""
    if instruction.name == "switch":
        return 1 / len(instruction.regions)
    if instruction.name == "scan":
        return instruction.operation.params["length"]
    if instruction.name == "grid":
        known = [int(v.const) for v in instruction.ins if v.const is not None]
        return math.prod(known) if len(known) == len(instruction.ins) else _ROUNDS
    return _ROUNDS
