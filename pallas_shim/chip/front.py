"""The verdicts of this process: asked for and shown when it ends, or when somebody asks."""

from __future__ import annotations

import atexit
import os
import sys
from typing import TYPE_CHECKING, Any

from pallas_shim import exit_status, settings
from pallas_shim.chip import gate, jobs, noting, scalar_unit, session, tpus, verdicts
from pallas_shim.reports.uses import REPORT

if TYPE_CHECKING:
    from pallas_shim.chip import counting

# The exit status of a script that ran, if a kernel was refused.
REFUSED_STATUS = 98


# Counts what kernels decide, for a profile.
COUNTER: counting.Counter | None = None


def counter() -> counting.Counter | None:
    """What is to see each program and its runs; None: no profile is asked for."""
    global COUNTER
    if COUNTER is None and settings.current().profile is not None:
        from pallas_shim.chip import counting

        COUNTER = counting.Counter()
    return COUNTER


def register() -> None:
    """Has the kernels compiled when Python ends."""
    exit_status.register()
    atexit.unregister(_at_exit)
    atexit.register(_at_exit)


def compile_reached() -> list[verdicts.Verdict]:
    """Compiles the kernels that this process reached since the last call, for the TPUs of
    PALLAS_NUMPY_COMPILE. Adds the verdicts to the report, and returns them, with those on kernels
    that were compiled before they ran.

    Raises:
      KeyboardInterrupt: the user doesn't want to wait.
    """
    asked = settings.current()
    found = gate.take()
    found += session.compile_kernels(
        noting.REACHED.take(),
        [tpus.target(name) for name in asked.compile],
        executor=asked.compile_executor,
        schedule=asked.profile is not None,
    )
    REPORT.verdicts += [verdict.row() for verdict in found]
    return found


def _at_exit() -> None:
    """Never raises: the script has ended, and its end is not to change."""
    try:
        if isinstance(getattr(sys, "last_value", None), KeyboardInterrupt):
            gate.take()
            _say("pallas_shim: interrupted, so no kernel was compiled for a TPU")
            return
        asked_before = bool(REPORT.verdicts)
        found = compile_reached()
        if asked_before and not found:
            return
        _say(verdicts.text([verdict.row() for verdict in found]))
        if any(verdict.answer.outcome == jobs.REFUSED for verdict in found):
            exit_status.replace_success(REFUSED_STATUS)
        if settings.current().profile is not None:
            _profile(found, settings.current().profile)
    except KeyboardInterrupt:
        _say("pallas_shim: interrupted while kernels were compiled for a TPU; no verdict")
    except Exception as error:
        kind = type(error).__name__
        _say(f"pallas_shim: compiling for a TPU failed, which is a bug: {kind}: {error}")


def _profile(found: list[verdicts.Verdict], destination: str | None) -> None:
    from pallas_shim.chip import profile_view, profiling

    asked = settings.current()

    def counted(key: Any) -> scalar_unit.Executed:
        return scalar_unit.NOTHING if COUNTER is None else COUNTER.executed(key)

    profiles = profiling.of_kernels(found, counted)
    _say(profile_view.table(profiles))
    try:
        functions = profiling.of_functions(
            noting.FUNCTIONS.take(), [tpus.target(name) for name in asked.compile], found,
            counted, asked.compile_executor,
        )  # fmt: skip
    except KeyboardInterrupt:
        functions = []
        _say("pallas_shim: interrupted while whole functions were compiled; the rest is there")
    if functions:
        _say(profile_view.functions_table(functions))
    for path in (destination or "").split(","):
        if path not in ("", "1"):
            failure = profile_view.write(profiles, path, functions)
            shown = path.removeprefix(profile_view.TRACE)
            _say(f"pallas_shim: {failure or f'the profile is in {shown}'}")


def _say(text: str) -> None:
    if sys.stderr is not None:
        try:
            print(text, file=sys.stderr, flush=True)
        except (OSError, ValueError):  # its reader is gone
            pass


def _start_over() -> None:
    """A forked process doesn't answer for what its parent reached."""
    REPORT.verdicts = []


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_over)
