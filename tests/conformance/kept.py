"""Where results are kept: a file for each of JAX's test files and each side, a JSON line a test."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
from collections.abc import Mapping
from typing import Any

HOME = pathlib.Path("~/.cache/pallas_shim/conformance").expanduser()

# Which of JAX's tests run: those of Pallas as they are, those told that they are on a TPU, or some
# that have nothing to do with Pallas.
AS_IS, AS_TPU, GENERAL = "as-is", "as-tpu", "general"

# How the shim ran them: as by default; with PALLAS_NUMPY_SCOPE=exact or all; checked; or if the
# TPU's compiler didn't refuse their kernels.
DEFAULT, EXACT, ALL, CHECKED = "shim", "shim-scope-exact", "shim-scope-all", "shim-checked"
COMPILED = "shim-compiled"
WAYS = {"library": DEFAULT, "exact": EXACT, "all": ALL}

# By test: its outcome, message, seconds, kernels, findings, what wasn't checked, and the commit and
# date of the run.
Outcomes = Mapping[str, Mapping[str, Any]]


class Results:
    """What is kept of the installed JAX, in one mode, and of one way of the shim to run tests,
    which stock has nothing to do with."""

    def __init__(self, home: pathlib.Path, *, mode: str, way: str) -> None:
        self.version = importlib.metadata.version("jax")
        self.mode = mode
        self.way = way
        self._home = home / f"jax-{self.version}{'' if mode == AS_IS else f'-{mode}'}"

    def path(self, name: str, *, shim: bool) -> pathlib.Path:
        folder = self._home / (self.way if shim else "stock")
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{name}.jsonl"

    def of(self, name: str, *, shim: bool) -> Outcomes:
        return read(self.path(name, shim=shim))


def read(path: pathlib.Path) -> Outcomes:
    """The results in a file; a test's last one counts. Names are without the file's."""
    if not path.exists():
        return {}
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {line["test"].partition("::")[2]: line for line in lines}


def forget(path: pathlib.Path, which: str) -> None:
    """Drops results that are to be made anew: "all", "failed", or (of those "missing") none."""
    if which == "all":
        path.unlink(missing_ok=True)
    elif which == "failed":
        stay = [line for line in read(path).values() if line["outcome"] != "failed"]
        path.write_text("".join(json.dumps(line) + "\n" for line in stay), encoding="utf-8")
