"""The fingerprint of a function: all that tracing it could read, as one digest.

It reads a function's code, closure and defaults, and the globals that the code names. It follows
each of them in turn: functions, classes and their methods, instances and their state, modules by
the attributes that are read from them. JAX, NumPy and the like are keyed by their versions, and
the standard library's pure modules by Python's version. A value that can't be read is refused. It
is never left out, because an incomplete key gives wrong numbers.

Readers, in `values`, `functions` and `classes`, define how values of a type are read.
"""

from __future__ import annotations

import _abc  # type: ignore[import-not-found]
import dataclasses
import hashlib
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pallas_shim.cache import libraries
from pallas_shim.jax_compat import inputs


class Unkeyable(Exception):
    """A function reaches something whose state can't be read; the message says what."""


Reader = Callable[["Fingerprint", Any], None]
_R = TypeVar("_R", bound=Reader)
_READERS: dict[type, Reader] = {}
_KINDS: list[tuple[Callable[[Any], bool], Reader]] = []
_OTHERWISE: list[Reader] = []


def reader(*kinds: type) -> Callable[[_R], _R]:
    """Registers the reader of exactly these types. Derived types need a reader of their own."""

    def register(read: _R) -> _R:
        _READERS.update(dict.fromkeys(kinds, read))
        return read

    return register


def reader_if(holds: Callable[[Any], bool]) -> Callable[[_R], _R]:
    """Registers the reader of the values for which ``holds`` is true.

    It serves only values whose type has no `reader`. The first registered predicate that holds
    wins.
    """

    def register(read: _R) -> _R:
        _KINDS.append((holds, read))
        return read

    return register


def reader_otherwise(read: _R) -> _R:
    """Registers the reader of all values that no other reader reads."""
    _OTHERWISE.append(read)
    return read


@dataclasses.dataclass
class Found:
    """Everything met while a fingerprint was read. `audit` checks it before a program is written.

    ``codes``: code, its globals, and the names of its closure's variables that hold modules.
    ``library``: values that were taken from libraries, with module and name. ``attributes``: names
    that code reads from values. ``defined``: names that the user's classes and instances define.
    """

    codes: list[tuple[types.CodeType, dict[str, Any], frozenset[str]]] = dataclasses.field(
        default_factory=list
    )
    library: list[tuple[str, str, Any]] = dataclasses.field(default_factory=list)
    attributes: set[str] = dataclasses.field(default_factory=set)
    defined: set[str] = dataclasses.field(default_factory=set)
    texts: set[str] = dataclasses.field(default_factory=set)


class Fingerprint:
    """A digest of values and of all that they reach.

    Readers fill it: `emit` adds bytes, `add` adds a value, and `owned` adds a value that is fully
    described by a library's version. ``after``: JAX has just traced the function that is read.
    """

    def __init__(self, after: bool = False, outer: Fingerprint | None = None) -> None:
        self.after: bool = outer.after if outer else after
        self.found: Found = outer.found if outer else Found()
        self._under_way: frozenset[int] = outer._under_way if outer else frozenset()
        self._root: Any = None  # the traced function that is read, until it is met
        self._parts: list[bytes] = []
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []
        self._versions: set[str] = set()
        self.path: list[str] = []  # the way to the value being read, for messages

    def digest(self) -> str:
        """The digest.

        Raises:
          Unkeyable: a library lies where it may change.
        """
        for name in sorted(self._versions):
            version = libraries.version(name)
            if version is None:
                raise Unkeyable(f"{name} isn't installed but lies in a path where it may change")
            self.emit("version", name, version)
        return hashlib.sha256(b"".join(self._parts)).hexdigest()

    def refusal(self, reason: str) -> Unkeyable:
        """The error to raise about the value that is being read."""
        where = " of ".join(reversed(self.path[-3:]))
        return Unkeyable(f"{where}: {reason}" if where else reason)

    def emit(self, *parts: str | bytes) -> None:
        for part in parts:
            data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
            self._parts.append(len(data).to_bytes(6, "little") + data)

    def add(self, value: Any, what: str = "") -> None:
        """Adds a value, or a reference to it if it was added before. ``what`` names it in messages.

        Raises:
          Unkeyable: the value can't be read.
        """
        kind = type(value)
        if value is None or kind is bool:
            self.emit(repr(value))
            return
        seen = self._seen.get(id(value))
        if seen is not None:
            self.emit("again", str(seen))
            return
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        read = _READERS.get(kind)
        if what:
            self.path.append(what)
        try:
            if read is not None:
                self.emit(kind.__name__)
            else:
                read = next((read for holds, read in _KINDS if holds(value)), _OTHERWISE[0])
            read(self, value)
        except RecursionError:
            raise self.refusal("what it holds is nested too deeply") from None
        if what:
            self.path.pop()

    def add_all(self, values: Iterable[Any]) -> None:
        """Adds the values in order, and their number."""
        listed = list(values)
        self.emit(str(len(listed)))
        for value in listed:
            self.add(value)

    def add_items(self, mapping: Mapping[Any, Any]) -> None:
        """Adds the keys and values of a mapping, in its order."""
        self.emit(str(len(mapping)))
        for key, value in mapping.items():
            self.add(key)
            self.add(value, f"[{key!r}]" if isinstance(key, (str, int)) else "")

    def add_variables(self, variables: Mapping[str, Any], what: str = "") -> None:
        """Adds the names and values of attributes, in order."""
        self.emit(str(len(variables)))
        self.found.defined.update(variables)
        for name, value in variables.items():
            if name == "__annotations__":  # code that reads them is refused
                continue
            self.emit(name)
            self.add(value, f"{what}.{name}")

    def add_jitted(self, function: Any, jit_info: Any, called: bool = False) -> None:
        """Adds a function and the options given to jit. ``called``: this call of it is under way.

        Raises:
          Unkeyable: it can't be read, or see `add_traced`.
        """
        options = inputs.jit_options(jit_info)
        if options is None:
            name = getattr(function, "__qualname__", "")
            raise self.refusal(f"the user told jit where the arguments of {name} are")
        self.emit("jitted")
        self.add(options)
        if isinstance(function, types.FunctionType) and libraries.owns_function(function):
            self.add(function)  # whatever trace JAX kept of it is right
            return
        self.add_traced(function, inputs.REFERENCES_OF_JIT + called)

    def add_traced(self, function: Any, references: int = 0) -> bool:
        """Adds a function that JAX may have traced already, or returns False.

        A function that has more weak references than ``references`` may have been traced. False:
        the caller still has to read the function, as a part of what reaches it.

        Raises:
          Unkeyable: the function can't be read, was traced before it was first met here, or has
            changed since then. JAX may go on using the old trace.
        """
        name = getattr(function, "__qualname__", "")
        if function is self._root:
            self._root = None
            return False
        if id(function) in self._under_way:
            self.emit("recursive", name)
            return True
        met = _met.get(id(function))
        first = met[1] if met is not None and met[0]() is function else None
        others = weakref.getweakrefcount(function) - (first is not None)
        traced = others > references
        if traced and not references and first is None and others == inputs.REFERENCES_OF_JIT:
            traced = not inputs.is_jits_own(function)
        if not traced and not references:
            return False
        if traced and first is None and not self.after:
            raise self.refusal(f"{name} was traced before it was first read")
        inner = Fingerprint(outer=self)
        inner._root = function
        inner._under_way |= {id(function)}
        inner.add(function, name)
        digest = inner.digest()
        if first is None:
            _met[id(function)] = weakref.ref(function), digest
        elif first != digest:
            raise self.refusal(f"something that {name} uses has changed since its first call")
        if not references:  # reading must not depend on whether JAX has traced it
            return False
        self.emit("traced", digest)
        return True

    def owned(self, module: str, name: str, value: Any) -> None:
        """Adds a value that a library's version describes completely.

        Raises:
          Unkeyable: the library's version says nothing about what the value computes.
        """
        if libraries.is_impure(module):
            raise self.refusal(f"{module}.{name}, whose results differ from run to run")
        self._add_version(module)
        shown = f"{name}, passed on" if module == "builtins" and isinstance(value, type) else name
        self.found.library.append((module, shown, value))
        self.emit("named", module, name)
        if isinstance(value, type):
            self.add_registered(value)

    def add_registered(self, kind: type) -> None:
        """Adds the classes registered with an abstract class, or with a class derived from it.

        Raises:
          Unkeyable: one of the registered classes is the user's.
        """
        found, pending = set(), [kind]
        while pending:
            at = pending.pop()
            if "_abc_impl" in vars(at):
                found |= {reference() for reference in _abc._get_dump(at)[0]} - {None}
                pending += type.__subclasses__(at)
        for each in found:
            if not libraries.is_from_elsewhere(each.__module__):
                name = f"{each.__module__}.{each.__qualname__}"
                raise self.refusal(f"{name} is registered with {kind.__qualname__}")
        for name in sorted(f"{each.__module__}.{each.__qualname__}" for each in found):
            self.emit("registered", name)

    def of_library(self, kind: type) -> None:
        """Adds that an instance's class is a library's."""
        self._add_version(kind.__module__)
        self.emit("of", kind.__module__, kind.__qualname__)

    def imported(self, module: str) -> None:
        """Adds a module that code imports while it runs.

        Raises:
          Unkeyable: the module isn't a library's.
        """
        if not libraries.is_library(module):
            raise self.refusal(f"it imports {module or 'a module'} while it is traced")
        self.emit("import", module)
        self._add_version(module)

    def _add_version(self, module: str) -> None:
        library = libraries.top(module)
        if library in libraries.VERSIONED:
            self._versions.add(library)


# Functions that JAX may have traced, with the digest of each when it was first met.
_met: dict[int, tuple[weakref.ref[Any], str]] = {}
