"""The environment variables with which a Python process starts with the shim on."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping

# Tells the processes of a run which run it is. The first one sets it.
RUN = "_PALLAS_SHIM_RUN"


def say_off(reason: str) -> None:
    """Tells the user why the shim is off although PALLAS_NUMPY asks for it."""
    print(f"pallas_shim is off, this process runs on stock JAX: {reason}", file=sys.stderr)


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables to set, beside ``environ``, for a Python process to start with the shim on."""
    changes = {}
    if environ.get("PALLAS_NUMPY", "") in ("", "0"):
        changes["PALLAS_NUMPY"] = "1"
    if not starts_with_python():
        path = [sitecustomize_directory(), environ.get("PYTHONPATH")]
        changes["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    if environ.get("PALLAS_NUMPY_REPORT", "") not in ("", "0", "1") and RUN not in environ:
        changes[RUN] = os.urandom(8).hex()  # what it starts writes to the same file
    return changes


def run() -> str:
    """The name of this process's run: the one that `variables` began, else its own."""
    return os.environ.get(RUN) or f"process {os.getpid()}"


def starts_with_python() -> bool:
    """Whether start-up files of this very package ran when this process started."""
    module = sys.modules.get("_pallas_shim_start")
    if module is None or module.__file__ is None:
        return False
    root = os.path.dirname(os.path.dirname(__file__))
    return os.path.dirname(module.__file__) in (root, sitecustomize_directory())


def sitecustomize_directory() -> str:
    """The directory that starts the shim when it is on PYTHONPATH."""
    spec = importlib.util.find_spec("pallas_shim.sitecustomize_pkg")
    assert spec is not None and spec.submodule_search_locations is not None
    return os.path.abspath(next(iter(spec.submodule_search_locations)))
