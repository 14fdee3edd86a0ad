"""The error for an invalid program."""

from __future__ import annotations

from pallas_shim import jax_compat
from pallas_shim.evaluator import printer
from pallas_shim.evaluator.program import Instruction, Program


class InvalidProgram(Exception):
    """A program breaks the contract, which is a bug in lowering or in a pass.

    The message names the pass, the instruction, the user's line, and the error.
    """


def invalid(
    program: Program, after: str, instruction: Instruction | None, what: str
) -> InvalidProgram:
    """The error for a program that ``after`` made. ``instruction`` is in that program."""
    where = f"the program {program.name} is wrong after {after}"
    if instruction is None:
        return InvalidProgram(f"{where}: {what}")
    names = printer.names(program)
    source = jax_compat.user_source(instruction.source)
    return InvalidProgram(
        f"{where}: {what}\n  in {printer.instruction(instruction, names)}"
        + (f"\n  at {source}" if source else "")
    )
