"""Applies the patches, and undoes them.

A patch is an entry point of the group ``pallas_shim.patches``. Its name is the module whose import
triggers it, and its value is ``module:function``. The function is called with the imported module,
and returns a callable that undoes exactly what it did.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING

from pallas_shim import environment, settings, startup
from pallas_shim.discovery import entry_points

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint

GROUP = "pallas_shim.patches"

_lock = threading.RLock()
_active = False
_patches: dict[EntryPoint, _Patch] = {}
_applied: list[_Patch] = []
_environment: dict[str, str | None] = {}  # what activate() changed: the values before


def _start_over() -> None:
    """Makes new locks in a forked process, where no thread is left to release the old ones."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_over)


class _Patch:
    """A post-import hook: applies its entry point's function while the shim is active."""

    def __init__(self, entry_point: EntryPoint):
        self.entry_point = entry_point
        self.undoings: list[Callable[[], object]] = []

    def __call__(self, module: ModuleType) -> None:
        if not _active or self.undoings:
            return
        try:
            _applied.append(self)
            # Make it one call: a signal may raise after it, and the patches that were applied can
            # be undone.
            self.undoings.extend(map(self.entry_point.load(), (module,)))
        except Exception as error:
            deactivate()
            if settings.current().strict or isinstance(error, settings.SettingError):
                raise
            environment.say_off(f"{_what(error)} (in the patch {self.entry_point.value})")
        except BaseException:  # Ctrl-C: half a shim is worse than none
            deactivate()
            raise


def _what(error: Exception) -> str:
    if isinstance(error, (ImportError, AttributeError)):  # these name what is missing
        return str(error)
    return f"{type(error).__name__}: {error}"


def activate() -> None:
    """Runs Pallas kernels in NumPy from here on, in this process and those it starts.

    Modules that are imported already are patched now, others when they are imported. Does
    nothing if the shim is active. A JAX that can't be patched is reported in one line on
    stderr and left as it is (an exception under PALLAS_NUMPY_STRICT=1).

    Processes inherit it through the environment: until `deactivate`, PALLAS_NUMPY is set in
    ``os.environ`` and, unless pip installed the shim's start-up files, PYTHONPATH is extended.

    Raises:
      pallas_shim.settings.SettingError: a PALLAS_NUMPY* variable has a bad value.
      ImportError: wrapt or importlib-metadata is missing.
    """
    global _active
    with _lock:
        if _active:
            return
        startup.stop_waiting()
        settings.current()
        import wrapt

        found = entry_points(GROUP)
        try:
            _active = True
            changes = environment.variables(os.environ)
            _environment.update({name: os.environ.get(name) for name in changes})
            os.environ.update(changes)
            for entry_point in found:
                if entry_point not in _patches:
                    patch = _Patch(entry_point)
                    wrapt.register_post_import_hook(patch, entry_point.name)
                    _patches[entry_point] = patch
                elif entry_point.name in sys.modules:
                    _patches[entry_point](sys.modules[entry_point.name])
        except BaseException:
            deactivate()
            raise


def deactivate() -> None:
    """Puts everything that was patched back exactly. Does nothing if the shim isn't active."""
    global _active
    with _lock:
        startup.stop_waiting()
        _active = False
        while _applied:
            patch = _applied.pop()
            while patch.undoings:
                patch.undoings.pop()()
        for name, value in _environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _environment.clear()


def is_active() -> bool:
    """Whether the shim is active in this process, or will be when JAX is imported."""
    return _active or startup.is_waiting()


@contextlib.contextmanager
def active() -> Iterator[None]:
    """``with pallas_shim.active():`` activates, and restores on leaving what was before."""
    before = is_active()
    activate()
    try:
        yield
    finally:
        if not before:
            deactivate()
