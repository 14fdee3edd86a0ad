"""What the dispatcher tells of the kernels that are reached.

They are noted, to be compiled when the process ends. Under PALLAS_NUMPY_STRICT each is compiled
before it runs, and one that is refused for a TPU raises what JAX raises on that TPU.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pallas_shim import settings
from pallas_shim.chip import noting, tpus
from pallas_shim.chip.jobs import LOWERING
from pallas_shim.chip.session import Session, in_a_thread
from pallas_shim.chip.verdicts import Verdict
from pallas_shim.jax_compat import export_tpu, kernel_info

_log = logging.getLogger("pallas_shim")


class _AtOnce:
    """The verdicts on kernels that were compiled before they ran."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Any, list[Verdict]] = {}
        self._untold: list[Verdict] = []
        self._session: Session | None = None

    def verdicts(self, site: export_tpu.Site) -> list[Verdict]:
        """The verdicts on a kernel, one for each TPU of PALLAS_NUMPY_COMPILE.

        Raises:
          KeyboardInterrupt: the user doesn't want to wait.
        """
        key = noting.key(site)
        with self._lock:
            if key not in self._known:
                if self._session is None:
                    asked = settings.current()
                    self._session = Session(
                        [tpus.target(name) for name in asked.compile],
                        executor=asked.compile_executor,
                        schedule=asked.profile is not None,
                        inside=True,
                    )
                self._known[key] = self._session.compile([site])
                self._untold += self._known[key]
            return self._known[key]

    def take(self) -> list[Verdict]:
        """Returns the verdicts since the last time, and ends the compiler's processes."""
        with self._lock:
            if self._session is not None:
                self._session.close()
            taken, self._untold = self._untold, []
            return taken

    def abandon(self) -> None:
        """Runs in a forked process."""
        if self._session is not None:
            self._session.abandon()


_at_once = _AtOnce()


def take() -> list[Verdict]:
    """The verdicts on kernels that were compiled before they ran, since the last time."""
    return _at_once.take()


def in_function(jaxpr: Any) -> None:
    """Takes in the kernels of a function that is called.

    Raises: under PALLAS_NUMPY_STRICT, what JAX raises on a TPU that one of them is refused for.
    """
    if kernel_info.kernel_equations(jaxpr):
        _reached(lambda: export_tpu.sites(jaxpr))


def function(jaxpr: Any, call: Any) -> None:
    """Takes in a function with kernels that is called, for a profile of all that is in it.

    ``call``: its `call_info.JitCall`.
    """
    try:
        noting.FUNCTIONS.note([export_tpu.jitted(jaxpr, call)])
    except Exception as error:  # the call goes on
        _log.warning("a function can't be profiled, a bug in pallas_shim: %r", error)


def kernel(equation: Any, axes: Mapping[Any, int]) -> None:
    """Takes in a kernel in a program that XLA compiles.

    Raises: as `in_function`.
    """
    _reached(lambda: [export_tpu.site(equation, axes)])


def _reached(found: Callable[[], Iterable[export_tpu.Site]]) -> None:
    is_strict = settings.current().strict
    refused: tuple[export_tpu.Site, Verdict] | None = None
    try:
        if is_strict:
            refused = _first_refused(found())
        else:
            noting.REACHED.note(found())
    except Exception as error:  # the call goes on, but a kernel isn't dropped in silence
        _log.warning("a kernel can't be compiled for a TPU, a bug in pallas_shim: %r", error)
    if refused is not None:
        _raise(*refused)


def _first_refused(
    sites: Iterable[export_tpu.Site],
) -> tuple[export_tpu.Site, Verdict] | None:
    for site in sites:
        for verdict in _at_once.verdicts(site):
            if verdict.is_refused:
                return site, verdict
    return None


def _raise(site: export_tpu.Site, verdict: Verdict) -> None:
    note = (
        f"{verdict.target}: the TPU's compiler refuses the Pallas kernel {verdict.kernel}"
        + (f" ({verdict.source})" if verdict.source else "")
        + ". PALLAS_NUMPY_STRICT=1 with PALLAS_NUMPY_COMPILE makes this an error; unset it to let "
        "the kernel run"
    )
    try:
        if verdict.answer.stage == LOWERING:
            # Asked again, it raises its own error anew.
            in_a_thread(export_tpu.exported, site, verdict.tpu.kind, verdict.tpu.cores)
        raise export_tpu.compile_error(verdict.answer.message or verdict.answer.outcome)
    except Exception as error:
        error.add_note(note)
        raise


def _start_over() -> None:
    """Runs in a forked process. Its parent answers for what it has reached."""
    global _at_once
    _at_once.abandon()
    _at_once = _AtOnce()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_over)
