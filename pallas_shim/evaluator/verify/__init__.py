"""Checks programs against the contract of the IR (`ops`), and passes against what they may change.

`verify` checks one program. Each value is defined once, before its uses, in a region that encloses
them. Types, parameters, effects and regions follow the rows. Nothing uses an array after an
instruction has written over it. Nothing overwrites memory while a load's view of it is in use.

`verify_pass` compares the programs before and after a pass. All effects visible outside must
remain. A pass may remove a store only if nobody reads it. This package proves that again in another
way. A load that remains must see the same stores.

`Verifier` does both along the pipeline. Ordinary runs don't use it; `optimise` takes one.
"""

from __future__ import annotations

from pallas_shim.evaluator.program import Operation, Program
from pallas_shim.evaluator.verify.errors import InvalidProgram
from pallas_shim.evaluator.verify.kept import Comparison, ProgramEffects, effects_of
from pallas_shim.evaluator.verify.program import Check

__all__ = ["InvalidProgram", "Verifier", "verify", "verify_pass"]


def verify(program: Program, after: str = "lowering") -> None:
    """Checks one program. ``after``: the name of its maker, for the message.

    Raises:
      InvalidProgram: something is wrong.
    """
    Verifier().program(program, after)


def verify_pass(before: Program, after: Program, name: str) -> None:
    """Checks that a pass has kept all visible effects. Both programs must be valid.

    Args:
      name: the pass. The names of passes that may remove or multiply stores are known.

    Raises:
      InvalidProgram: a visible effect is gone, new, or in another order.
    """
    Comparison(effects_of(before), effects_of(after), name).check()


class Verifier:
    """Checks the programs of one pipeline, one after the other. It checks each operation once, even
    if the operation stays through many passes or is in many instructions."""

    def __init__(self) -> None:
        self._right: set[Operation] = set()
        self._last: Program | None = None
        self._effects: ProgramEffects | None = None

    def program(self, program: Program, after: str) -> None:
        """Checks a program, and the changes since the previous one.

        Raises:
          InvalidProgram: something is wrong.
        """
        if program is self._last:
            return
        memory = Check(program, after, self._right).run()
        effects = None if memory is None else ProgramEffects(program, memory)
        if effects is not None and self._effects is not None:
            Comparison(self._effects, effects, after).check()
        self._last, self._effects = program, effects
