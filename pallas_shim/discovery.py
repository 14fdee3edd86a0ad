"""The entry points of ours and of other packages."""

from __future__ import annotations

import configparser
import pathlib
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
    import importlib_metadata

    declared = configparser.ConfigParser()
    declared.optionxform = str  # type: ignore[assignment, method-assign]
    declared.read(_CHECKOUT_CFG, encoding="utf-8")
    lines = declared.get("options.entry_points", group, fallback="").split("\n")
    ours = [
        importlib_metadata.EntryPoint(name.strip(), value.strip(), group)
        for name, equals, value in (line.partition("=") for line in lines)
        if equals
    ]
    return list(dict.fromkeys([*ours, *sorted(importlib_metadata.entry_points(group=group))]))
