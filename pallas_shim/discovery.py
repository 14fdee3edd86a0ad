"""Finds entry points, those of this package and of others."""

from __future__ import annotations

import configparser
import functools
import os
import pathlib
import stat
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint

_CHECKOUT_CFG = pathlib.Path(__file__).parents[1] / "setup.cfg"


def entry_points(group: str) -> list[EntryPoint]:
    """The entry points of a group, each once: ours, then other packages' in order of their names.

    A checkout that isn't installed has no metadata; its setup.cfg declares the same ones.

    Raises:
      ImportError: importlib-metadata is missing.
    """
    from importlib_metadata import EntryPoint

    declared = configparser.ConfigParser()
    declared.optionxform = str  # type: ignore[assignment, method-assign]
    declared.read(_CHECKOUT_CFG, encoding="utf-8")
    lines = declared.get("options.entry_points", group, fallback="").split("\n")
    ours = [
        EntryPoint(name.strip(), value.strip(), group)
        for name, equals, value in (line.partition("=") for line in lines)
        if equals
    ]
    return list(dict.fromkeys([*ours, *sorted(installed(group))]))


def installed(group: str) -> Sequence[EntryPoint]:
    """The entry points of a group in the packages on sys.path.

    Raises:
      ImportError: importlib-metadata is missing.
    """
    places = [(path, changed) for path in sys.path if (changed := _last_change(path)) is not None]
    return _in(tuple(places)).get(group, ())


@functools.lru_cache(maxsize=1)
def _in(places: tuple[tuple[str, int], ...]) -> Mapping[str, Sequence[EntryPoint]]:
    """All entry points, by their groups. To read them takes longer than to lower a small kernel,
    and they are asked for when the process starts and at its first kernel."""
    import importlib_metadata

    by_group: dict[str, list[EntryPoint]] = {}
    for entry_point in importlib_metadata.entry_points():
        by_group.setdefault(entry_point.group, []).append(entry_point)
    return by_group


def _last_change(path: str) -> int | None:
    """When the last package was added to a directory; None if there is none, as where a script
    lies. Of a zip file, when it changed."""
    path = path or "."
    try:
        found = os.stat(path)
        return found.st_mtime_ns if _may_hold_packages(path, found) else None
    except OSError:
        return None  # sys.path may name what doesn't exist


def _may_hold_packages(path: str, found: os.stat_result) -> bool:
    # A directory's time changes with its names, which take long to read.
    key = (found.st_dev, found.st_ino, found.st_mtime_ns)
    if key not in _holds_packages:
        _holds_packages[key] = stat.S_ISREG(found.st_mode) or any(
            name.endswith((".dist-info", ".egg-info", ".egg")) for name in os.listdir(path)
        )
    return _holds_packages[key]


_holds_packages: dict[tuple[int, int, int], bool] = {}
