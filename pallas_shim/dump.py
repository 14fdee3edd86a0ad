"""PALLAS_NUMPY_DUMP: writes each step of the compilation of a function or kernel, as text.

Each gets a folder, ``DIRECTORY/0001-name/``, with ``jaxpr.txt``, the program as lowered and after
each pass (``00-lowering.txt``, ``01-constant_folding.txt``, ...), and ``code.py``, the Python
functions generated for its loops. A value has the same name in all of them, so ``diff`` shows what
a pass did.
"""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any

from pallas_shim import jax_compat
from pallas_shim.evaluator import printer
from pallas_shim.evaluator.program import Instruction, Program


class Folder:
    """The folder of one function. It watches the function's pipeline (`passes.Watcher`)."""

    def __init__(self, directory: str, name: str):
        self.path = _new_folder(pathlib.Path(directory), name)
        self._names: printer.Names = {}
        self._steps = 0
        self._functions = 0

    def jaxpr(self, jaxpr: Any) -> None:
        (self.path / "jaxpr.txt").write_text(f"{jaxpr}\n")

    def program(self, program: Program, after: str) -> None:
        self._names = printer.names(program, self._names)
        text = printer.program(program, self._names)
        (self.path / f"{self._steps:02}-{after}.txt").write_text(text)
        self._steps += 1

    def code(self, loop: Instruction, source: str) -> None:
        """Adds the generated function of a loop."""
        place = jax_compat.user_source(loop.source)
        self._functions += 1
        with open(self.path / "code.py", "a") as file:
            file.write(f"# function {self._functions}: a {loop.name}"
                       + (f" at {place}" if place else "") + f"\n{source}\n\n")  # fmt: skip


def _new_folder(directory: pathlib.Path, name: str) -> pathlib.Path:
    """Makes a folder that no other process has. Folders are numbered in the order of creation."""
    directory.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]+", "_", name)[:80]
    taken = [re.match(r"\d+", entry) for entry in os.listdir(directory)]
    number = max([int(match[0]) for match in taken if match], default=0)
    while True:
        number += 1
        path = directory / f"{number:04}-{name}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
