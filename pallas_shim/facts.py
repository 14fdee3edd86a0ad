"""The facts in each file that a process writes for people: versions, command line, machine."""

from __future__ import annotations

import datetime
import os
import platform
import socket
import sys
import time
from typing import Any

import pallas_shim

begun = time.time()  # of what follows, not of Python's start


def of_process() -> dict[str, Any]:
    """The facts of this process, as JSON has them. Times are in UTC, in ISO 8601.

    The version of a package that this process hasn't imported is None.
    """
    return {
        "pid": os.getpid(),
        "argv": list(sys.argv),
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "began": moment(begun),
        "ended": moment(time.time()),
        "versions": {
            "pallas_shim": pallas_shim.__version__,
            "jax": _version("jax"),
            "numpy": _version("numpy"),
            "python": platform.python_version(),
        },
    }


def _version(package: str) -> str | None:
    return getattr(sys.modules.get(package), "__version__", None)


def moment(seconds: float) -> str:
    """A time since the epoch as text. Later ones sort after earlier ones."""
    when = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return when.isoformat(timespec="milliseconds")
