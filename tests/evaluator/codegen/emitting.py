"""Running programs with their loops as functions, or as closures."""

from __future__ import annotations

import functools

import pytest

from pallas_shim.evaluator import execute
from pallas_shim.evaluator.codegen import source

# Which loops become functions.
WAYS = {"closures": lambda loop: False, "functions": lambda loop: True}


@pytest.fixture
def emit_all(monkeypatch) -> list[str]:
    """Every loop becomes a function during the test; what is returned are their sources."""
    sources: list[str] = []

    def compiled(text, *args):
        sources.append(text)
        return compile(text, *args)

    monkeypatch.setattr(source, "compile", compiled, raising=False)
    use(monkeypatch, "functions")
    return sources


def use(monkeypatch, way: str) -> None:
    """During a test, programs run in one of WAYS unless they are told another."""
    init = functools.partialmethod(execute.Executable.__init__, emits=WAYS[way])
    monkeypatch.setattr(execute.Executable, "__init__", init)
