"""Exceptions that arrive from outside: at any bytecode, by a signal, from another thread."""

from __future__ import annotations

import dis
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any


class Interrupt(BaseException):
    """What nobody catches but the tests."""


# After these Python looks for signals, and where a function or another round of a loop begins.
_LOOKS = ("CALL", "RESUME", "JUMP_BACKWARD")


def at_every_bytecode(
    call: Callable[[], Any], codes: set[CodeType], *, possible: bool = False
) -> Iterator[BaseException | None]:
    """Makes a call over and over, with an exception at the first bytecode of the functions with
    these codes, at the second, and so on until the call ends before it; gives how each ended.

    Args:
      possible: only where a signal can raise. All others, too, are where a debugger's or a coverage
        tool's own function may.
    """
    at = 0
    while True:
        at += 1
        raised = _interrupted(call, codes, at, possible)
        if raised is None:
            return
        yield raised


def _interrupted(
    call: Callable[[], Any], codes: set[CodeType], at: int, possible: bool
) -> BaseException | None:
    count = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal count
        if event == "call":
            if frame.f_code not in codes:
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            return trace
        if event == "opcode" and (not possible or _can_raise(frame)):
            count += 1
            if count == at:
                raise Interrupt
        return trace

    outer = sys.gettrace()
    try:
        sys.settrace(trace)
        call()
    except BaseException as error:
        return error
    finally:
        sys.settrace(outer)
    return None


def _can_raise(frame: Any) -> bool:
    return frame.f_lasti in _after_looks(frame.f_code)


@functools.cache
def _after_looks(code: CodeType) -> frozenset[int]:
    """The offsets of the bytecodes that follow one which lets signals in."""
    names = [(i.opname, i.offset) for i in dis.get_instructions(code)]
    return frozenset(
        offset
        for (before, _), (_, offset) in itertools.pairwise(names)
        if before.startswith(_LOOKS)
    )
