"""Whether a function depends only on what its fingerprint has read.

A key is right only if tracing is a function of what the key has read. So before a program is
written, everything that the fingerprint met is compared with the lists of what is known to be
pure. The rest is refused. A process that finds the program under the same key has met the same
things, and need not check again.
"""

from __future__ import annotations

import functools
import operator
import re
import sys
from typing import Any

from pallas_shim.cache import libraries, pure, rules
from pallas_shim.cache.fingerprint import Found, Unkeyable

# The dtypes for dates and times. NumPy also makes them from words, and "now" differs each time.
_TIMES = re.compile(r"[<>=|]?[mM]8|datetime64|timedelta64")
# Methods that no kept function can use: its code may not make texts or hashes of such objects.
_UNSEEN = frozenset({"__repr__", "__str__", "__format__", "__hash__"})

_MODULO = frozenset({"__mod__", "__rmod__", "__imod__", "mod", "imod"})

# The qualified name of a method that `dataclasses` generated. Its fields are read, so it is known.
_OF_DATACLASSES = "__create_fn__.<locals>.__"


def audit(found: Found) -> None:
    """Checks all that a fingerprint met.

    Raises:
      Unkeyable: something isn't known to be pure; the message says what.
    """
    attributes, defined = set(found.attributes), set(found.defined)
    texts, percent = list(found.texts), False
    for code, namespace, modules in found.codes:
        if code.co_name in _UNSEEN or code.co_qualname.startswith(_OF_DATACLASSES):
            continue
        look = rules.look(code, namespace, modules)
        where = f"{namespace.get('__name__', '')}.{code.co_qualname}"
        for problem in look.problems:
            raise Unkeyable(f"{where}: {problem}")
        for module, *names in sorted(look.imports):
            _check_import(where, module, names)
        attributes |= look.attributes
        defined |= look.stored
        texts += look.shown
        percent |= look.percent
        for const in code.co_consts:
            if isinstance(const, str) and _TIMES.match(const):
                raise Unkeyable(f"{where}: it names {const!r}, a type for dates or times")
    for module, name, value in found.library:
        if module == "builtins":
            name, passed_on, _ = name.partition(", passed on")
            if not rules.is_pure_builtin(name.partition(".")[0], bool(passed_on)):
                raise Unkeyable(f"it reaches {name}")
        elif not libraries.is_pure(module, name, value):
            raise Unkeyable(f"it reaches {module}.{name}, which isn't known to be pure")
    percent |= not attributes.isdisjoint(_MODULO) or any(
        name in _MODULO for module, name, _ in found.library if module in ("operator", "_operator")
    )
    for text in texts:
        if percent and rules.shows_a_value(text):
            raise Unkeyable(f"it may turn a value into text by {text!r}")
        if _TIMES.match(text):
            raise Unkeyable(f"it reaches {text!r}, a type for dates or times")
    for name in sorted(attributes):
        special = name.startswith("__") and name.endswith("__")
        if name not in _attributes() and (special or name not in defined):
            raise Unkeyable(f"it asks for .{name}, whose value isn't known")


@functools.cache
def _attributes() -> frozenset[str]:
    return frozenset((pure.ATTRIBUTES + pure.SPECIAL_ATTRIBUTES).split())


def _check_import(where: str, module: str, names: list[str]) -> None:
    """Checks the names that code takes from a module that it imports while it runs."""
    place: Any = sys.modules.get(module)
    for at, name in enumerate(names):
        try:
            value = operator.attrgetter(name)(place)
        except AttributeError:
            raise Unkeyable(f"{where}: {module} has no {name}") from None
        if type(value) is not type(sys):
            if not libraries.is_pure(place.__name__, name, value):
                raise Unkeyable(f"{where}: {place.__name__}.{name} isn't known to be pure")
            if any(rest not in _attributes() for rest in names[at + 1 :]):
                raise Unkeyable(f"{where}: it asks for {'.'.join(names)}")
            return
        place = value
    raise Unkeyable(f"{where}: it hands on the module {module}, so anything in it may be used")
