"""What the tables of ways to change a function are made of."""

from __future__ import annotations

from typing import NamedTuple

READ, REFUSED, REFUSED_CHANGED = "read", "refused", "refused once changed"


class Way(NamedTuple):
    """``around``: what holds while the function is called, if `CHANGED`: an assignment, which is
    a patch, or ``with`` and a context."""

    expected: str
    setup: str
    expression: str
    around: str = ""


def read(*ways: tuple[str, str]) -> list[Way]:
    return [Way(READ, *way) for way in ways]


def refused(*ways: tuple[str, str]) -> list[Way]:
    return [Way(REFUSED, *way) for way in ways]


def choices(expected: str, expression: str, *pairs: tuple[str, str]) -> list[Way]:
    """One value or another."""
    return [Way(expected, f"V = {b} if CHANGED else {a}", expression) for a, b in pairs]
