"""Reads bytecode: finds the globals and closures that code uses besides its arguments."""

from __future__ import annotations

import dis
import sys
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

_LOAD_GLOBAL, _IMPORT_NAME = dis.opmap["LOAD_GLOBAL"], dis.opmap["IMPORT_NAME"]
_LOAD_NAMES = frozenset(
    dis.opmap[name] for name in ("LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS") if name in dis.opmap
)
_STORES = frozenset((dis.opmap["STORE_GLOBAL"], dis.opmap["DELETE_GLOBAL"]))
_LOAD_ATTR, _LOAD_METHOD = dis.opmap["LOAD_ATTR"], dis.opmap.get("LOAD_METHOD")
# From Python 3.12 on, the lowest bit of LOAD_ATTR's argument says whether a method is loaded.
_ATTR_SHIFT = 0 if sys.version_info < (3, 12) else 1
_LOAD_DEREF = dis.opmap["LOAD_DEREF"]
# Instructions that use a variable of a closure for something else than reading it, or than making
# another function that closes over it.
_OTHER_DEREFS = frozenset(op for op in dis.hasfree if dis.opname[op] != "LOAD_CLOSURE") - {
    _LOAD_DEREF
}

# A name, and the attributes that are read from it, one from another.
Chain = tuple[str, ...]


class Reads(NamedTuple):
    """The names that one code object reads and sets, without the code objects inside it.

    ``globals`` and ``closures``: the variables that it reads, each with the attributes that are
    read from it. ``imports``: the modules that it imports. ``sets``: the globals that it sets.
    ``uncertain``: the variables of closures that it uses in other ways.
    """

    globals: tuple[Chain, ...]
    closures: tuple[Chain, ...]
    imports: tuple[str, ...]
    sets: tuple[str, ...]
    uncertain: tuple[str, ...]


def reads(code: types.CodeType) -> Reads:
    """Lists what code reads besides its arguments."""
    found: dict[str, dict[Any, None]] = {field: {} for field in Reads._fields}
    names = code.co_names
    kind, chain = "", list[str]()
    for operation, argument in _instructions(code):
        if chain and operation == _LOAD_ATTR:
            chain.append(names[argument >> _ATTR_SHIFT])
            continue
        if chain and operation == _LOAD_METHOD:
            chain.append(names[argument])
            continue
        if chain:
            found[kind][tuple(chain)] = None
            chain = []
        if operation == _LOAD_GLOBAL:
            kind, chain = "globals", [names[argument >> 1]]
        elif operation in _LOAD_NAMES:
            kind, chain = "globals", [names[argument]]
        elif operation == _LOAD_DEREF:
            kind, chain = "closures", [_variable(code, argument)]
        elif operation in _OTHER_DEREFS:
            found["uncertain"][_variable(code, argument)] = None
        elif operation == _IMPORT_NAME:
            found["imports"][names[argument]] = None
        elif operation in _STORES:
            found["sets"][names[argument]] = None
    return Reads(*map(tuple, found.values()))


def closure_reads(code: types.CodeType, name: str) -> list[Chain] | None:
    """The attributes that code, with the code inside it, reads from a variable of its closure.

    None: the code does something else with the variable.
    """
    own = reads(code)
    if name in own.uncertain:
        return None
    chains = [chain[1:] for chain in own.closures if chain[0] == name]
    for const in code.co_consts:
        if isinstance(const, types.CodeType) and name in const.co_freevars:
            inner = closure_reads(const, name)
            if inner is None:
                return None
            chains += inner
    return chains if all(chains) else None


def contents(cell: types.CellType) -> Any:
    """The value of a closure's variable, or a mark that it has not been set."""
    try:
        return cell.cell_contents
    except ValueError:
        return Ellipsis, "empty"


def _instructions(code: types.CodeType) -> Iterator[tuple[int, int]]:
    data, high = code.co_code, 0
    for at in range(0, len(data), 2):
        operation, argument = data[at], high | data[at + 1]
        if operation == 0:  # an inline cache entry
            continue
        high = argument << 8 if operation == dis.EXTENDED_ARG else 0
        if operation != dis.EXTENDED_ARG:
            yield operation, argument


def _variable(code: types.CodeType, argument: int) -> str:
    """The name of the closure variable that an instruction's argument refers to."""
    local = (*code.co_varnames, *(c for c in code.co_cellvars if c not in code.co_varnames))
    return (*local, *code.co_freevars)[argument]
