"""What code reads beside its arguments: the globals that its bytecode names."""

from __future__ import annotations

import dis
import sys
import types
from collections.abc import Iterator
from typing import Any

_LOAD_GLOBAL, _IMPORT_NAME = dis.opmap["LOAD_GLOBAL"], dis.opmap["IMPORT_NAME"]
_LOAD_NAMES = frozenset(
    dis.opmap[name] for name in ("LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS") if name in dis.opmap
)
_STORES = frozenset((dis.opmap["STORE_GLOBAL"], dis.opmap["DELETE_GLOBAL"]))
_LOAD_ATTR, _LOAD_METHOD = dis.opmap["LOAD_ATTR"], dis.opmap.get("LOAD_METHOD")
# From Python 3.12 on, the lowest bit of LOAD_ATTR's argument says whether a method is loaded.
_ATTR_SHIFT = 0 if sys.version_info < (3, 12) else 1


def globals_read(code: types.CodeType) -> Iterator[tuple[str | None, Any]]:
    """The globals that code names, each with the attributes that it then asks for in turn.

    ``(name, None)`` is a global that is set; ``(None, [module])`` an import.
    """
    names, data = code.co_names, code.co_code
    found: dict[tuple[str, ...], None] = {}
    chain: list[str] = []
    high = 0
    for at in range(0, len(data), 2):
        operation, argument = data[at], high | data[at + 1]
        if operation == 0:  # room for a cache
            continue
        if operation == dis.EXTENDED_ARG:
            high = argument << 8
            continue
        high = 0
        if chain and operation == _LOAD_ATTR:
            chain.append(names[argument >> _ATTR_SHIFT])
            continue
        if chain and operation == _LOAD_METHOD:
            chain.append(names[argument])
            continue
        if chain:
            found[tuple(chain)] = None
            chain = []
        if operation == _LOAD_GLOBAL:
            chain = [names[argument >> 1]]
        elif operation in _LOAD_NAMES:
            chain = [names[argument]]
        elif operation == _IMPORT_NAME:
            yield None, [names[argument]]
        elif operation in _STORES:
            yield names[argument], None
    for name, *attributes in found:
        yield name, attributes
