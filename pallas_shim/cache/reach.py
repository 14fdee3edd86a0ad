"""What a function reaches: all that tracing it could read, as one digest.

A function is its code, what it closes over, its defaults, and the globals that its code names,
each followed in turn: functions, classes and their methods, instances and their state, modules
by the attributes that are asked of them. JAX, NumPy and the like are keyed by their versions,
and the standard library's pure modules by Python's. What can't be read is refused, never left
out: a key that says too little is a wrong number.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from pallas_shim.cache import classes, functions, libraries, values
from pallas_shim.jax_compat import inputs

# Annotations aren't followed, and modules in closures only as far as code asks them for
# something, so who looks there can't be followed either.
_LOOKING = frozenset({"__annotations__", "get_annotations", "get_type_hints", "cell_contents"})

# How a value is read: by its own type, else by the first of _KINDS that it is of.
_READERS = {**values.READERS, **functions.READERS, **classes.READERS}
_KINDS = (classes.read_class, values.read_number, functions.read_known, classes.read_instance)


class Unkeyable(Exception):
    """A function reaches something whose state can't be read; says what."""


class Reach:
    """A digest of values, and of all that they reach.

    `values`, `functions` and `classes` say how values of each type are read: with `emit`, which
    adds bytes; `add`, which adds a value; and `owned`, what a library's version says all of.
    """

    def __init__(self, under_way: frozenset[int] = frozenset()) -> None:
        self._under_way = under_way  # the jitted functions that reach this one
        self._parts: list[bytes] = []
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []
        self._versions: set[str] = set()
        self._numpy_whole = False
        self.path: list[str] = []  # where what is read lies, for messages
        self.names: set[str] = set()  # that code asks for, attributes too

    def digest(self) -> str:
        """The digest.

        Raises:
          Unkeyable: NumPy's random numbers may be reached, or annotations or closures.
        """
        if self._numpy_whole and "random" in self.names:
            raise Unkeyable("it may reach numpy.random, whose numbers differ from run to run")
        looking = _LOOKING & self.names
        if looking:
            raise Unkeyable(f"it looks into functions by {', '.join(sorted(looking))}")
        for name in sorted(self._versions):
            version = libraries.version(name)
            if version is None:
                raise Unkeyable(f"{name} isn't installed but lies in a path where it may change")
            self.emit("version", name, version)
        return hashlib.sha256(b"".join(self._parts)).hexdigest()

    def refusal(self, reason: str) -> Unkeyable:
        """What is to be raised of what is being read."""
        where = " of ".join(reversed(self.path[-3:]))
        return Unkeyable(f"{where}: {reason}" if where else reason)

    def emit(self, *parts: str | bytes) -> None:
        for part in parts:
            data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
            self._parts.append(len(data).to_bytes(6, "little") + data)

    def add(self, value: Any, what: str = "") -> None:
        """Adds a value; ``what`` names it in messages.

        Raises:
          Unkeyable: it can't be read.
        """
        kind = type(value)
        plain = values.PLAIN.get(kind)
        if plain is not None:
            self.emit(kind.__name__, plain(value))
            return
        if kind not in values.UNCHANGING:
            seen = self._seen.get(id(value))
            if seen is not None:
                self.emit("again", str(seen))
                return
            self._seen[id(value)] = len(self._seen)
            self._kept.append(value)
        if what:
            self.path.append(what)
        try:
            read = _READERS.get(kind)
            if read is not None:
                self.emit(kind.__name__)
                read(self, value)
            else:
                any(read(self, value) for read in _KINDS)
        except RecursionError:
            raise self.refusal("what it holds is nested too deeply") from None
        if what:
            self.path.pop()

    def add_all(self, values: Iterable[Any]) -> None:
        """Adds values in turn, and how many they are."""
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

    def add_jitted(self, function: Any, jit_info: Any) -> None:
        """Adds a function and what jit was told of it.

        Raises:
          Unkeyable: it can't be read, or has changed since it was first met: JAX may go on
            with what it traced then.
        """
        name = getattr(function, "__qualname__", "")
        options = inputs.jit_options(jit_info)
        if options is None:
            raise self.refusal(f"jit was told where the arguments of {name} lie")
        if id(function) in self._under_way:
            self.emit("recursive", name)
            return
        reach = Reach(self._under_way | {id(function)})
        reach.add(options)
        reach.add(function, name)
        digest = reach.digest()
        first = _first_met(function, digest)
        if first != digest:
            raise self.refusal(f"what {name} reaches has changed since it was first called")
        self.emit("jitted", digest)

    def owned(self, module: str, name: str) -> None:
        """Adds what the version of a library says all of.

        Raises:
          Unkeyable: it says nothing of its results.
        """
        if libraries.is_impure(module):
            raise self.refusal(f"{module}.{name}, whose results differ from run to run")
        self._add_version(module)
        self.emit("named", module, name)

    def imported(self, module: str) -> None:
        """Adds a module as a whole, of which anything may be asked.

        Raises:
          Unkeyable: it isn't a library's.
        """
        if not libraries.is_library(module):
            raise self.refusal(f"it imports {module or 'a module'} while it is traced")
        self.emit("import", module)
        self._numpy_whole |= libraries.top(module) == "numpy"
        self._add_version(module)

    def _add_version(self, module: str) -> None:
        library = libraries.top(module)
        if library in libraries.VERSIONED:
            self._versions.add(library)


_met: dict[int, tuple[weakref.ref[Any], str]] = {}


def _first_met(function: Any, digest: str) -> str:
    """The digest of a jitted function when it was first met."""
    known = _met.get(id(function))
    if known is None or known[0]() is not function:
        known = _met[id(function)] = (weakref.ref(function), digest)
    return known[1]
