"""The lines of the user's source that a kernel has, and those elsewhere that it runs."""

from __future__ import annotations

import contextlib
import functools
import inspect
import linecache
import os
from typing import Any

from pallas_shim import jax_compat
from pallas_shim.view import data

Line = tuple[str, int]  # file and number

_MOST_LINES = 400


def place_of(source: Any) -> Line | None:
    text = jax_compat.user_source(source)
    return None if text is None else _split(text)


def _split(text: str) -> Line | None:
    """The file and line in "file:line" or "file:line (function)"."""
    file, _, rest = text.rpartition(":")
    number = rest.partition(" ")[0]
    return (file, int(number)) if file and number.isdigit() else None


class Lines:
    """The lines of a kernel's source, and those elsewhere that it runs."""

    def __init__(self, source: str | None) -> None:
        self.lines: list[data.SourceLine] = []
        self._known: dict[Line, int] = {}
        defined = None if source is None else _split(source)
        if defined is not None:
            file, first = defined
            rest = linecache.getlines(file)[first - 1 :]
            with contextlib.suppress(Exception):  # the source isn't Python that can be read
                rest = inspect.getblock(rest)
            for number, text in enumerate(rest[:_MOST_LINES], first):
                self._add(file, number, text)

    def position(self, line: Line | None) -> int | None:
        if line is None:
            return None
        if line not in self._known:
            self._add(*line, linecache.getline(*line))
        return self._known[line]

    def _add(self, file: str, number: int, text: str) -> None:
        self._known[file, number] = len(self.lines)
        self.lines.append(data.SourceLine(_shown(file), number, text.rstrip()))


@functools.cache
def _shown(file: str) -> str:
    """A path below the current directory is shown relative to it."""
    near = os.path.relpath(file) if os.path.isabs(file) else file
    return file if near.startswith("..") else near
