"""Checks that a program on disk equals the program that would be made now.

Under PALLAS_NUMPY_CACHE_VERIFY=1, each program is checked when it is read. Otherwise one in
`ONE_IN` is checked when the process ends, if there is time.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import sys
from collections.abc import Callable

from pallas_shim import settings
from pallas_shim.cache import later
from pallas_shim.evaluator.program import Program

# One in this many programs that are read is checked.
ONE_IN = 50


class CacheError(RuntimeError):
    """A program on disk differs from the one that would be made. The message names the function."""


_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)


def is_sampled() -> bool:
    """Whether this program belongs to the sample that is checked."""
    return _random.randrange(ONE_IN) == 0


@dataclasses.dataclass(frozen=True)
class CacheCheck:
    """A check of one program.

    ``seconds``: about how long making the program takes. ``difference`` makes it and says how the
    one on disk differs; None if they are equal. ``remove`` deletes the one on disk.
    """

    function: str
    seconds: float
    difference: Callable[[], str | None]
    remove: Callable[[], None]

    def now_or_later(self) -> None:
        """Checks the program now if the user asked for that, or at exit if it is in the sample.

        Raises:
          CacheError: it was checked now, and differs.
        """
        if settings.current().cache_verify:
            self.check()
        elif is_sampled():
            later.at_exit(self.at_exit)

    def check(self) -> None:
        """Raises CacheError if there is a difference."""
        found = self.difference()
        if found is not None:
            self.remove()
            raise CacheError(
                f"the program of {self.function} in the cache isn't the one that is made of it "
                f"now: {found}. It has been removed; PALLAS_NUMPY_CACHE=0 works without the cache"
            )

    def at_exit(self, seconds: float) -> None:
        """Checks the program if that takes at most ``seconds``. Reports a difference."""
        if self.seconds > seconds:
            return
        try:
            self.check()
        except CacheError as error:
            if sys.stderr is not None:
                message = "its results in this process may be wrong"
                print(f"pallas_shim: ERROR: {error}; {message}", file=sys.stderr)


def difference(kept: Program, made: Program) -> str:
    """Describes the first difference between two programs that aren't equal."""
    lines = [str(program).splitlines()[1:] for program in (kept, made)]
    for one, other in itertools.zip_longest(*lines):
        if one != other:
            return f"it has {_short(one)}, where {_short(other)} belongs"
    if kept.name != made.name:
        return f"it is of {kept.name}"
    return "what its operations hold differs"


def _short(line: str | None) -> str:
    text = "nothing" if line is None else " ".join(line.split())
    return text if len(text) <= 120 else f"{text[:117]}..."
