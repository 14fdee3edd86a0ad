"""Kernels of functions that XLA compiles. Each runs here, called back by XLA, or in JAX."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from pallas_shim import settings
from pallas_shim.dispatch import compiling, fallback, function, native, observing, stock
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.jax_compat import kernel_info
from pallas_shim.jax_compat.hooks import kernel_lowering
from pallas_shim.reports.uses import REPORT, Use


def choose_kernel(
    kernel: kernel_lowering.KernelLowering,
) -> tuple[kernel_lowering.Callback, bool] | None:
    """Decides how a kernel in a program that XLA compiles runs.

    Returns the function for XLA to call back, and whether the kernel has effects. None: JAX's
    interpreter runs the kernel.
    """
    if stock.is_left_to_jax():
        return None
    if settings.current().compile:
        from pallas_shim.chip import gate

        gate.kernel(kernel.equation, kernel.axes)
    described = function.of_kernel(kernel)
    compilation = stock.compilation()
    start = time.perf_counter()
    try:
        if kernel.obstacle is not None:
            raise Unsupported("pallas_call", kernel.obstacle)
        asked = kernel_info.unhonoured(kernel.equation)
        if asked is not None:
            if compilation is not None and kernel_info.talks(kernel.equation):
                asked = f"{asked}; its function isn't run in NumPy: {compilation.reason}"
            raise Unsupported("pallas_call", asked)
        cached, executable = compiling.with_depth_of(
            kernel.jaxpr, described.name, compiling.compiled, described, keep=True
        )
    except Unsupported as unsupported:
        (info,) = described.kernels
        use = fallback.leave_to_jax(kernel.function, info, unsupported)
        if compilation is not None:
            compilation.jax_uses.append(use)
        return None
    stock.print_debug(kernel.equation)
    reason = "XLA compiles the function" if compilation is None else compilation.reason
    use = REPORT.use(kernel.function, described.kernels, "callback", reason)
    if cached is not None:
        cached.tell(use)
    use.prepared(time.perf_counter() - start)
    seen = any(i.operation.effects.io for i in executable.program.top.walk())
    if observing.current is not None:
        executable = observing.current.planned(executable, described)
    return _callback(executable, use), seen


def _callback(executable: Executable, use: Use) -> Callable[..., tuple[np.ndarray, ...]]:
    """The function that XLA calls. It counts its runs, and its errors name the kernel."""
    runs = native.runner(executable, native.way(executable, use))

    def run(*values: np.ndarray) -> tuple[np.ndarray, ...]:
        begun = time.perf_counter()
        try:
            results = runs(values)
        except Exception as error:
            use.ran(time.perf_counter() - begun, error)
            if observing.current is not None:
                observing.current.ran(executable, values, error, inside_xla=True)
            fallback.blame(error, use)
            # XLA passes on only the text of an error, so its notes go into the text.
            notes = "; ".join(error.__notes__)
            raise RuntimeError(f"{type(error).__name__}: {error} ({notes})") from error
        use.ran(time.perf_counter() - begun)
        if observing.current is not None:
            observing.current.ran(executable, values, results, inside_xla=True)
        return tuple(map(np.asarray, results))

    return run
