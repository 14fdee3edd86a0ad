"""Where code is in the sources of this package.

A place is a text. It starts with the name of a function, class or tuple at the top of the module.
Then follow positions: of a function in that, of a code object inside the function's code, and so
on. A few functions, such as those in a dictionary, have only a position in the module's own code,
which must be read from a file first. That takes longer than all the rest of a program.
"""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any


def named(name: str) -> types.ModuleType:
    """A module by its name."""
    return sys.modules.get(name) or importlib.import_module(name)


@functools.cache
def code_place(module: str, code: types.CodeType) -> str | None:
    """The place of a function's code in a module. None: the module doesn't hold it."""
    top = code.co_qualname.partition(".")[0]
    for name in (top, *vars(sys.modules[module])):
        path = _path_to(code, _outer_code(module, name))
        if path is not None:
            break
    else:
        name, path = "", next(([i] for i, c in enumerate(_all_code(module)) if c == code), None)
    return None if path is None else ".".join([name, *map(str, path)])


@functools.cache
def code_at(module: str, place: str) -> types.CodeType:
    """The reverse of `code_place`."""
    name, first, *rest = place.split(".")
    code = (_outer_code(module, name) if name else _all_code(module))[int(first)]
    for position in rest:
        code = _inner_code(code)[int(position)]
    return code


@functools.cache
def _all_code(module: str) -> tuple[types.CodeType, ...]:
    """All code objects in a module's source, in order."""
    loader: Any = getattr(sys.modules[module].__spec__, "loader", None)
    code = loader.get_code(module) if hasattr(loader, "get_code") else None
    return tuple(_nested(code)) if code is not None else ()


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for inner in _inner_code(code):
        yield from _nested(inner)


def _path_to(code: types.CodeType, outer: Sequence[types.CodeType]) -> list[int] | None:
    for position, inner in enumerate(outer):
        if inner is code:
            return [position]
        path = _path_to(code, _inner_code(inner))
        if path is not None:
            return [position, *path]
    return None


@functools.cache
def _outer_code(module: str, name: str) -> list[types.CodeType]:
    """The code of a function at the top of a module, or of the functions of a class or tuple."""
    found: Any = vars(named(module)).get(name)
    members: Sequence[Any] = [found]
    if isinstance(found, type):
        members = list(vars(found).values())
    elif isinstance(found, tuple):
        members = found
    functions = [getattr(member, "__wrapped__", member) for member in members]
    return [f.__code__ for f in functions if isinstance(f, types.FunctionType)]


def _inner_code(code: types.CodeType) -> list[types.CodeType]:
    return [const for const in code.co_consts if isinstance(const, types.CodeType)]
