"""Starts the shim in a new Python process."""

from __future__ import annotations

import os
import sys

from pallas_shim import environment, exit_status, patching, settings


def run() -> None:
    """Activates the shim in a Python process that starts. Never raises.

    A bad setting ends the process with status 1, as a bad PYTHON* variable does: what the user
    asked for is unknown. So does anything missing under PALLAS_NUMPY_STRICT=1.
    """
    try:
        strict = settings.current().strict
        if settings.current().compile:
            exit_status.register()
    except settings.SettingError as error:
        _stop(str(error))
    try:
        patching.activate()
    except Exception as error:  # site would end Python with a traceback
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, ImportError):
            reason = f"{error}; install it in this environment ({sys.prefix})"
        if strict:
            _stop(reason)
        environment.say_off(reason)


def _stop(reason: str) -> None:
    # SystemExit would end Python's start-up with a traceback through site.
    print(f"pallas_shim: {reason}", file=sys.stderr, flush=True)
    os._exit(1)
