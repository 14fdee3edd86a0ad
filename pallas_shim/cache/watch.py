"""Watches tracing, and compares what it does with what was read beforehand.

This is a second line of defence. `audit` looks at code, and this module at what really ran. All
code that runs must belong to a library or be among what was read. Whatever function written in C
the user's code calls must be known to be pure.
"""

from __future__ import annotations

import gc
import sys
import types
from typing import Any

import numpy as np

from pallas_shim.cache import libraries, pure, rules
from pallas_shim.cache.fingerprint import Found

# Packages whose code libraries and this package call.
_OTHERS = frozenset({"pallas_shim", "wrapt", "absl", "typing_extensions", "importlib_metadata"})
# Standard modules that run on behalf of functions that code may use.
_ALWAYS = ("importlib", "warnings", "contextlib", "functools", "weakref", "linecache", "re")
_OF_TYPES = (
    str, bytes, bytearray, list, dict, tuple, int, float, complex, slice, range, enumerate, set,
    frozenset, type, object, np.ndarray, np.generic, np.dtype, np.ufunc, types.MappingProxyType,
    types.FunctionType, types.GeneratorType, BaseException, property,
)  # fmt: skip


class Watch:
    """Watches this thread inside ``with``. `problem` then names the first unknown thing it did."""

    def __init__(self, found: Found) -> None:
        self.problem: str | None = "JAX had traced it already"
        self._collects = False
        self._users = {id(code): code for code, _, _ in found.codes}
        self._anywhere: dict[int, Any] = {}  # code of libraries, by id
        self._standard: dict[int, Any] = {}
        self._called: dict[int, Any] = {}
        self._attributes = frozenset((pure.ATTRIBUTES + pure.SPECIAL_ATTRIBUTES).split())

    def __enter__(self) -> Watch:
        if sys.getprofile() is not None:
            self.problem = "a profiler is at work while it is traced"
        else:
            self.problem = None
            # Callbacks of garbage collection (some tools have them) aren't part of tracing.
            self._collects = gc.isenabled()
            gc.disable()
            sys.setprofile(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        if sys.getprofile() == self._event:
            sys.setprofile(None)
        elif self.problem is None:
            self.problem = "a profiler was started while it was traced"
        if self._collects:
            gc.enable()

    def _event(self, frame: types.FrameType, event: str, argument: Any) -> None:
        if event == "call":
            at = id(frame.f_code)
            if at in self._anywhere or at in self._users:
                return
            self._entered(frame)
        elif event == "c_call" and id(frame.f_code) in self._users:
            if id(argument) not in self._called:
                self._call(frame, argument)

    def _entered(self, frame: types.FrameType) -> None:
        code = frame.f_code
        module = frame.f_globals.get("__name__", "")
        top = libraries.top(module)
        if id(code) not in self._standard:
            if top in libraries.VERSIONED or top in _OTHERS:
                if libraries.is_impure(module):
                    self._found(f"{module}.{code.co_qualname}")
                self._anywhere[id(code)] = code
                return
            if top in sys.stdlib_module_names and module != "__main__":
                self._standard[id(code)] = code
            elif not module.startswith("namedtuple_"):
                self._found(f"{module}.{code.co_qualname}, which was not read")
                return
        back = frame.f_back
        if back is not None and id(back.f_code) in self._users:
            if not libraries.is_library(module) and top not in _ALWAYS:
                self._found(f"{module}.{code.co_qualname}")

    def _call(self, frame: types.FrameType, function: Any) -> None:
        name = getattr(function, "__name__", "")
        owner = getattr(function, "__objclass__", None) or getattr(function, "__self__", None)
        if owner is None or isinstance(owner, types.ModuleType):
            module = getattr(function, "__module__", None) or "builtins"
            if module == "builtins":
                pure_ = rules.is_pure_builtin(name)
            elif libraries.top(module) in libraries.VERSIONED:
                pure_ = libraries.is_pure(module, name, function)
            else:
                pure_ = libraries.is_library(module)
            # A program whose tracing warns isn't kept, so each process warns. Code that could
            # warn but didn't does no harm.
            if not pure_ or module == "_warnings":
                self._found(f"{module}.{name}")
        else:
            kind = owner if isinstance(owner, type) else type(owner)
            ours = libraries.top(kind.__module__) in libraries.VERSIONED
            if not ours and not issubclass(kind, _OF_TYPES) or name not in self._attributes:
                self._found(f"{kind.__qualname__}.{name}")
        self._called[id(function)] = function

    def _found(self, what: str) -> None:
        if self.problem is None:
            self.problem = f"when it was traced it called {what}"
