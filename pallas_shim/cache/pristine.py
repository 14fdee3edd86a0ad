"""Whether JAX, NumPy and the like are as they were when they were imported.

A version describes what a library's functions compute only if nobody has changed the library: a
function replaced, a primitive's rule replaced, a method added. A snapshot is taken when JAX and
Pallas have been imported, and compared when a key is made.
"""

from __future__ import annotations

import builtins
import collections
import contextlib
import gc
import operator
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any

from pallas_shim.cache import libraries
from pallas_shim.jax_compat import inputs

# Modules of Python's that the libraries use.
_STANDARD = frozenset(
    """builtins collections contextlib copy dataclasses enum functools itertools math operator
    types typing warnings""".split()
)
# Packages that tracing runs nothing of: they write kernels for devices that aren't here, wrap
# Fortran, and compare results. (It does run jaxlib.mlir, under ensure_compile_time_eval.)
_NOT_TRACED = ("jaxlib.mosaic", "jaxlib.triton", "numpy.f2py", "numpy.testing")
# Module variables that the libraries change themselves.
_THEIR_OWN: frozenset[tuple[str, str]] = frozenset()
_PLAIN = frozenset({bool, int, float, complex, str, bytes, tuple, frozenset})


class _Snapshot:
    """The snapshot of modules and their contents.

    ``owners`` are modules, classes and instances. ``held`` has copies of their variables.
    ``functions`` are kept with the parts that define them. ``tables`` are dictionaries, of rules
    for example.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.found: str | None = None  # the change that was found before the snapshot was renewed
        self.clear()

    def clear(self) -> None:
        self.modules: dict[str, types.ModuleType] = {}
        self.seen: set[int] = set()
        self.owners: list[Any] = []
        self.held: list[dict[str, Any]] = []
        self.functions: list[types.FunctionType] = []
        self.parts: dict[str, list[Any]] = {part: [] for part in _PARTS}
        self.tables: list[tuple[str, dict[Any, Any], dict[Any, Any]]] = []


# The parts that define a function's results, besides its globals. (Getters, for speed.)
_PARTS = {
    part: operator.attrgetter(part) for part in ("__code__", "__defaults__", "__kwdefaults__")
}
_noted = _Snapshot()


def note() -> None:
    """Takes a new snapshot of what the libraries hold."""
    with _noted.lock, _no_collection():
        _noted.clear()
        _note_new()


def keep_finding() -> None:
    """Records for good what has changed so far, because the caller is about to change more."""
    _noted.found = changed()


def forget() -> None:
    """Drops the snapshot and any recorded change."""
    _noted.found = None
    _noted.clear()


def changed() -> str | None:
    """The first change found, in words. None: nothing has changed, or there is no snapshot.

    Modules that were imported since the snapshot are added to it. In these, only functions that
    aren't the library's count as changes.
    """
    with _noted.lock, _no_collection():
        if _noted.found is not None:
            return _noted.found
        return _change() or _note_new()


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Pauses garbage collection: much is allocated here, and none of it is garbage."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _modules() -> Iterator[tuple[str, types.ModuleType]]:
    for name, module in list(sys.modules.items()):
        if _is_noted(name) or name in _STANDARD:
            if isinstance(module, types.ModuleType):
                yield name, module


def _change() -> str | None:
    for name, module in _noted.modules.items():
        if sys.modules.get(name) is not module:
            return f"the module {name} isn't the one that was imported"
    for at, owner in enumerate(_noted.owners):
        held = _noted.held[at]
        if not _same(vars(owner), held):
            change = _change_of(owner, held)
            if change is not None:
                return change
            _noted.held[at] = dict(vars(owner))  # ordinary state; skip it next time
    for part, get in _PARTS.items():
        if not _same(list(map(get, _noted.functions)), _noted.parts[part]):
            for function, value in zip(_noted.functions, _noted.parts[part], strict=True):
                if get(function) is not value:
                    return f"{_name(function)} isn't what was imported"
    for where, table, before in _noted.tables:
        if len(table) != len(before) or not _same(table, before):
            change = _change_of_table(where, table, before)
            if change is not None:
                return change
    return None


def _change_of(owner: Any, held: dict[str, Any]) -> str | None:
    now = vars(owner)
    is_module = isinstance(owner, types.ModuleType)
    for key in list(now.keys() | held.keys()):
        old, new = held.get(key, _MISSING), now.get(key, _MISSING)
        if old is new:
            continue
        if not is_module:
            # Python itself adds special names, such as the names of slots.
            special = key.startswith("__") and not callable(new) and old is _MISSING
            matters = not special and _matters(old, new, isinstance(owner, type))
        elif old is _MISSING:
            matters = hasattr(builtins, key) and owner is not builtins and not key.startswith("__")
        else:
            matters = not _is_state(owner.__name__, key, old, new)
        if matters:
            return f"{_name(owner)}.{key} isn't what was imported"
    return None


def _change_of_table(
    where: str, table: dict[Any, Any], before: dict[Any, Any]
) -> str | None:
    for key, value in list(table.items()):
        old = before.get(key, _MISSING)
        if old is _MISSING:
            if _is_theirs(key) and not _is_theirs(value):
                return f"{where} has a rule that isn't the library's"
        elif old is not value and (callable(old) or callable(value)):
            return f"{where} has another rule than it had"
    if any(callable(value) and key not in table for key, value in before.items()):
        return f"{where} has lost a rule"
    return None


_MISSING = object()


def _same(now: Any, before: Any) -> bool:
    try:
        return bool(now == before)
    except Exception:  # comparing arrays, for example, has no single answer
        return False


def _is_state(module: str, name: str, old: Any, new: Any) -> bool:
    """Whether a module's variable is working state, which the module sets itself."""
    if (module, name) in _THEIR_OWN or isinstance(new, types.ModuleType):
        return True
    if name.startswith("__") or new is _MISSING:
        return name in ("__warningregistry__", "__annotations__")
    if type(old) is bool and type(new) is bool:
        return name.startswith("_")
    # Containers may be caches. A primitive, a type or an object of another class isn't one.
    remembers = type(old).__module__ in ("builtins", "collections", "weakref", "itertools")
    return remembers and not (callable(old) or callable(new) or type(old) in _PLAIN)


def _matters(old: Any, new: Any, is_class: bool) -> bool:
    if old is _MISSING and isinstance(new, type) and _is_theirs(new):
        return False  # an iterator's class, made when it is first needed
    if callable(old) or callable(new) or type(old) in _DESCRIPTORS or type(new) in _DESCRIPTORS:
        return True
    if old is None:  # a default value, or a cache of the class
        return is_class and type(new) in _PLAIN
    return is_class and (old is _MISSING or type(old) in _PLAIN and old != new)


_DESCRIPTORS = frozenset({property, classmethod, staticmethod})


def _name(value: Any) -> str:
    if isinstance(value, types.ModuleType):
        return value.__name__
    owner = value if hasattr(value, "__qualname__") else type(value)
    return f"{owner.__module__}.{owner.__qualname__}"


# What else libraries import functions of. JAX's module for reading exported functions, which no
# kernel computes with, takes one of flatbuffers, where that is installed.
_OTHERS = frozenset({"pallas_shim", "flatbuffers"})


def _is_theirs(value: Any) -> bool:
    """Whether a value is a library's, as far as its type tells."""
    function = inputs.jitted(value)
    if function is not None:
        value = function[0]
    while hasattr(value, "func") and hasattr(value, "keywords"):
        value = value.func
    if isinstance(value, types.MethodType):
        value = value.__func__
    if isinstance(value, types.FunctionType):
        module = value.__globals__.get("__name__", "")
    elif isinstance(value, type):
        module = value.__module__
    else:
        module = type(value).__module__
    top = libraries.top(module)
    return top in libraries.VERSIONED or top in _OTHERS or top in sys.stdlib_module_names


def _note_new() -> str | None:
    """Adds new modules to the snapshot. Returns what in them isn't the library's, in words."""
    strange = None
    for name, module in _modules():
        if name in _noted.modules:
            continue
        _noted.modules[name] = module
        _note_owner(module)
        for key, value in list(vars(module).items()):
            _note(name, key, value)
            if type(value) is types.FunctionType and not _is_theirs(value):
                if libraries.top(name) in _CHECKED:
                    strange = strange or f"{name}.{key} isn't the library's"
    return strange


# Every function in these modules is a library's. SciPy makes functions whose module isn't known.
_CHECKED = frozenset({"jax", "jaxlib", "numpy"})


def _note(module: str, key: str, value: Any) -> None:
    if id(value) in _noted.seen:
        return
    kind = type(value)
    if kind is types.FunctionType:
        _note_function(value)
    elif isinstance(value, type):
        if value.__flags__ & _HEAP_TYPE and _is_versioned(value):
            _note_owner(value)
            for part in list(vars(value).values()):
                _note_method(part)
    elif kind in _TABLES:
        if any(map(callable, value.values())) or any(map(inputs.is_primitive, value)):
            _noted.seen.add(id(value))
            _noted.tables.append((f"{module}.{key}", value, dict(value)))
    elif kind not in _PLAIN and kind is not types.ModuleType and _is_versioned(kind):
        if type(getattr(value, "__dict__", None)) is dict:
            _note_owner(value)
            _note_method(vars(value).get("__wrapped__"))


def _note_method(part: Any) -> None:
    kind = type(part)
    if kind is types.FunctionType:
        _note_function(part)
    elif kind is property:
        _note_method(part.fget)
        _note_method(part.fset)
    elif kind in (classmethod, staticmethod):
        _note_method(part.__func__)


def _note_owner(owner: Any) -> None:
    _noted.seen.add(id(owner))
    _noted.owners.append(owner)
    _noted.held.append(dict(vars(owner)))


def _note_function(function: types.FunctionType) -> None:
    if id(function) not in _noted.seen:
        _noted.seen.add(id(function))
        _noted.functions.append(function)
        for part, get in _PARTS.items():
            _noted.parts[part].append(get(function))


def _is_versioned(kind: type) -> bool:
    module = kind.__module__
    return isinstance(module, str) and _is_noted(module)


def _is_noted(module: str) -> bool:
    return libraries.top(module) in libraries.VERSIONED and not module.startswith(_NOT_TRACED)


_TABLES = frozenset({dict, collections.defaultdict})
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE
