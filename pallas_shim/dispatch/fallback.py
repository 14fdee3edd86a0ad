"""Messages to the user about kernels that JAX interprets, and about kernels that fail."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from pallas_shim import settings
from pallas_shim.check.collect import COLLECTOR
from pallas_shim.evaluator.registry import Unsupported
from pallas_shim.jax_compat.kernel_info import KernelInfo
from pallas_shim.reports.uses import REPORT, Use


class FallbackWarning(UserWarning):
    """A kernel runs in JAX's own interpreter. The message names the kernel and the reason."""


class StrictError(RuntimeError):
    """Under PALLAS_NUMPY_STRICT=1: a kernel would otherwise run in JAX's own interpreter."""


_warned: set[tuple[KernelInfo, str]] = set()


def leave_to_jax(function: str, kernel: KernelInfo, unsupported: Unsupported) -> Use:
    """Records that JAX interprets a kernel, and warns the user once.

    Raises:
      StrictError: the user wants an error instead.
    """
    message = f"{_names((kernel,))} runs in JAX's own interpreter, which is slow: {unsupported}"
    use = REPORT.use(function, (kernel,), "jax", str(unsupported))
    if settings.current().strict:
        error = StrictError(
            f"{message}. PALLAS_NUMPY_STRICT=1 makes this an error; unset it to let it run"
        )
        use.ran(0.0, error)
        raise error from unsupported
    if settings.current().check:
        COLLECTOR.skip(kernel.name, f"it runs in JAX's own interpreter: {unsupported}")
    use.happened = True
    if (kernel, str(unsupported)) not in _warned:
        _warned.add((kernel, str(unsupported)))
        file, _, line = (kernel.source or "").partition(" ")[0].rpartition(":")
        if file and line.isdigit():
            warnings.warn_explicit(message, FallbackWarning, file, int(line))
        else:
            warnings.warn(message, FallbackWarning, stacklevel=2)
    return use


def blame(error: BaseException, use: Use) -> None:
    """Adds a note to an error that names the kernels that raised it."""
    error.add_note(f"in {_names(use.kernels)}, run in NumPy by pallas_shim")


def _names(kernels: Sequence[KernelInfo]) -> str:
    return ", ".join(
        f"the Pallas kernel {k.name}" + (f" ({k.source})" if k.source else "") for k in kernels
    )
