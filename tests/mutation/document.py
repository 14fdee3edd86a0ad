"""The table of what was found."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable

from tests.mutation.checked import Outcome
from tests.mutation.operators import OPERATORS, Mutant

# At least so many of the mutants that are faults on a machine have to be found.
ENOUGH = 0.95

HEAD = """# Mutants

`python -m tests.mutation` takes {kernels} kernels that are right, from the tests of this
repository and from `jax.experimental.pallas.ops`, and breaks each in the ways below, one at a time,
by rewriting its jaxpr. The checker has to find what is wrong, and has to find nothing in the
kernels as they were.

What a mutant does on a machine is decided without the checker, by JAX's TPU interpreter. A mutant
is run on several machines, each of which would be right: new memory holds NaN or zeros, copies
happen when they start or not before their wait, parallel cells run in other orders or on two cores.

- It is a *fault* if a run doesn't end, leaves an array, visits an output block again, leaves a
  semaphore that isn't zero, has a race between devices, or if two runs have different results.
- It is *another value* if all runs agree, but not with the right kernel: every machine computes
  just that, so there is nothing to find.
- It is *no change* if all runs agree with the right kernel.
- It is *unknown* if the interpreter can't run it, or hasn't been asked yet.

A fault counts as found if a finding has one of the kinds that its operator allows
(`tests/mutation/operators.py`).

**{found} of {faults} faults are found ({share:.1%}). Findings in the right kernels: {false}.**
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """A kernel, or a mutant of it: the oracle's verdict, and what the checker said."""

    kernel: str
    mutant: Mutant | None
    verdict: str
    outcome: Outcome

    @property
    def found(self) -> bool:
        assert self.mutant is not None
        return bool(self.outcome.kinds & OPERATORS[self.mutant.operator].kinds)

    def __str__(self) -> str:
        assert self.mutant is not None
        return f"{self.kernel}: {self.mutant.operator}, {self.mutant.place}"


def _faults(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.verdict == "fault"]


def _false(rows: Iterable[Row]) -> list[Row]:
    right = [row for row in rows if row.mutant is None]
    return [row for row in right if row.outcome.findings or row.outcome.error]


def share(rows: Iterable[Row]) -> float:
    faults = _faults(rows)
    return sum(row.found for row in faults) / len(faults) if faults else 1.0


def good(rows: list[Row]) -> bool:
    return share(rows) >= ENOUGH and not _false(rows)


def summary(rows: list[Row]) -> str:
    faults = _faults(rows)
    found = sum(row.found for row in faults)
    return (
        f"{found} of {len(faults)} faults found ({share(rows):.1%}); "
        f"{len(_false(rows))} right kernels with findings; "
        f"{sum(r.mutant is not None for r in rows)} mutants"
    )


def text(rows: list[Row]) -> str:
    """The document."""
    faults = _faults(rows)
    lines = [
        HEAD.format(
            kernels=sum(row.mutant is None for row in rows),
            found=sum(row.found for row in faults),
            faults=len(faults),
            share=share(rows),
            false=len(_false(rows)),
        ),
        "| what is broken | made | faults | found | other value | no change | unknown |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    of: dict[str, list[Row]] = collections.defaultdict(list)
    for row in rows:
        if row.mutant is not None:
            of[row.mutant.operator].append(row)
    for name in OPERATORS:
        made = of[name]
        count = collections.Counter(row.verdict for row in made)
        found = sum(row.found for row in _faults(made))
        unknown = count["unknown"] + count["unjudged"]
        numbers = (len(made), count["fault"], found, count["value"], count["same"], unknown)
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} |")
    missed = [row for row in faults if not row.found]
    if missed:
        lines += ["", "Missed:", "", *(f"- {row}" for row in missed)]
    return "\n".join(lines) + "\n"
