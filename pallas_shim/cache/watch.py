"""Watches tracing, and compares what it does with what was read beforehand.

This is a second line of defence. `audit` looks at code, and this module at what really ran. All
code that runs must belong to a library or be among what was read. Whatever function written in C
the user's code calls must be known to be pure.
"""

from __future__ import annotations

import gc
import sys
import threading
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

if sys.version_info >= (3, 12):
    # Numbers of tools that Python gives no meaning. Each thread that traces needs one.
    _TOOLS = (3, 4)
    _FUNCTIONS = (
        sys.monitoring.events.PY_START
        | sys.monitoring.events.PY_RESUME
        | sys.monitoring.events.PY_THROW
    )
    # Callables for which a profiler gets "c_call".
    _IN_C = frozenset({
        types.BuiltinFunctionType, types.MethodDescriptorType, types.ClassMethodDescriptorType
    })


class ThreadWatch:
    """Watches this thread inside ``with``. `problem` then names the first unknown thing it did."""

    def __init__(self, found: Found) -> None:
        self.problem: str | None = "JAX had traced it already"
        self._collects = False
        self._users = {id(code): code for code, _, _ in found.codes}
        self._anywhere: dict[int, Any] = {}  # code of libraries, by id
        self._standard: dict[int, Any] = {}
        self._called: dict[int, Any] = {}
        self._attributes = frozenset((pure.ATTRIBUTES + pure.SPECIAL_ATTRIBUTES).split())

    def __enter__(self) -> ThreadWatch:
        self.problem = None
        # Callbacks of garbage collection (some tools have them) aren't part of tracing.
        self._collects = gc.isenabled()
        gc.disable()
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        if self._collects:
            gc.enable()

    if sys.version_info >= (3, 12):

        def _start(self) -> None:
            """Python calls back when a function starts, until that is known, and for each call in
            the user's code. Tracing takes as long as it does unwatched."""
            self._thread = threading.get_ident()
            monitoring, events = sys.monitoring, sys.monitoring.events
            for self._tool in _TOOLS:
                try:
                    monitoring.use_tool_id(self._tool, __name__)
                    break
                except ValueError:  # it is in use
                    continue
            else:
                self._tool = -1
                self._found("nothing, but other tools use sys.monitoring")
                return
            for event, callback in (
                (events.PY_START, self._started),
                (events.PY_RESUME, self._started),
                (events.PY_THROW, self._thrown),
                (events.CALL, self._calls),
            ):
                monitoring.register_callback(self._tool, event, callback)
            for code in self._users.values():
                monitoring.set_local_events(self._tool, code, events.CALL)
            monitoring.set_events(self._tool, _FUNCTIONS)
            monitoring.restart_events()

        def _stop(self) -> None:
            monitoring, events = sys.monitoring, sys.monitoring.events
            if self._tool < 0:
                return
            if monitoring.get_tool(self._tool) != __name__:
                self._found("something that stopped the watch")
                return
            if monitoring.get_events(self._tool) != _FUNCTIONS:
                self._found("something that stopped the watch")
            monitoring.set_events(self._tool, 0)
            for code in self._users.values():
                if monitoring.get_local_events(self._tool, code) != events.CALL:
                    self._found("something that stopped the watch")
                monitoring.set_local_events(self._tool, code, 0)
            for event in (events.PY_START, events.PY_RESUME, events.PY_THROW, events.CALL):
                monitoring.register_callback(self._tool, event, None)
            monitoring.free_tool_id(self._tool)

        def _started(self, code: types.CodeType, _: int) -> Any:
            if threading.get_ident() != self._thread:
                return None  # this thread may run it later
            if id(code) not in self._users and id(code) not in self._anywhere:
                self._entered(sys._getframe(1))
            known = id(code) in self._users or id(code) in self._anywhere
            return sys.monitoring.DISABLE if known else None

        def _thrown(self, code: types.CodeType, offset: int, _: BaseException) -> None:
            self._started(code, offset)

        def _calls(self, code: types.CodeType, _: int, function: Any, __: Any) -> None:
            if threading.get_ident() == self._thread and type(function) in _IN_C:
                if id(function) not in self._called:
                    self._call(function)

    else:

        def _start(self) -> None:
            self._watches = sys.getprofile() is None
            if self._watches:
                sys.setprofile(self._event)
            else:
                self.problem = "a profiler is at work while it is traced"

        def _stop(self) -> None:
            if sys.getprofile() == self._event:
                sys.setprofile(None)
            elif self._watches:
                self.problem = self.problem or "a profiler was started while it was traced"

        def _event(self, frame: types.FrameType, event: str, argument: Any) -> None:
            if event == "call":
                at = id(frame.f_code)
                if at in self._anywhere or at in self._users:
                    return
                self._entered(frame)
            elif event == "c_call" and id(frame.f_code) in self._users:
                if id(argument) not in self._called:
                    self._call(argument)

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

    def _call(self, function: Any) -> None:
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
