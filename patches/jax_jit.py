"""Takes over calls of jitted functions that hold Pallas kernels.

jit's functions are C++. They still serve every function without a kernel from their own cache. If
that cache has no answer, they call a Python function, and so do evaluated inner calls. The patch
wraps that Python function. Calls that run here leave no answer in the cache, so later calls come
back here. A second wrapper, above the first, answers later calls faster.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt

from pallas_shim import dispatch, settings
from pallas_shim.cache import later, programs
from pallas_shim.evaluator import progress
from pallas_shim.jax_compat import jaxprs
from pallas_shim.jax_compat.hooks import jit_calls, jit_entry, tracing
from pallas_shim.reports import files, uses


def patch(pallas: ModuleType) -> Callable[[], None]:
    """Called when jax.experimental.pallas is imported. Before that there are no kernels."""
    del pallas
    chosen = settings.current()
    if chosen.log:
        uses.log_to_stderr()
    files.write_at_exit(chosen.report)
    progress.show_with(_progress(chosen.progress))
    if chosen.check or chosen.schedules:
        from pallas_shim.check import handover

        handover.begin(chosen.findings, chosen.suppressions)
    if chosen.compile:
        from pallas_shim.chip import front

        front.register()  # so are the verdicts, which are in the report
        counter = front.counter()
        if counter is not None:
            dispatch.observe(counter)
    programs.get_ready()
    # JAX compiles the patterns that tell users' files when it is first asked. A kernel's place in
    # the report asks, so the first call would wait for that.
    jaxprs.is_users("")
    later.register()  # registered after the report, so it runs before the report at exit
    module, name = jit_entry.JIT_CALL
    stock = getattr(module, name)
    jit_entry.forget_calls()
    setattr(module, name, wrapt.FunctionWrapper(stock, _call))
    stop_answering = jit_calls.answer_calls(dispatch.Answers())
    deafen = tracing.listen_to_tracing(dispatch.note_tracing)

    def undo() -> None:
        stop_answering()
        setattr(module, name, stock)
        deafen()
        jit_entry.forget_calls()

    return undo


def _progress(wanted: bool | None) -> progress.Shows | None:
    """What shows long grids: a bar on a terminal; lines in a log, if they are wanted or in CI."""
    if wanted is False or sys.stderr is None:
        return None
    if sys.stderr.isatty():
        return progress.bars() or progress.LogLines
    return progress.LogLines if wanted or os.environ.get("CI") else None


def _call(stock: Callable[..., Any], instance: None, args: Any, params: dict[str, Any]) -> Any:
    return dispatch.call_jit(stock, args, params)
