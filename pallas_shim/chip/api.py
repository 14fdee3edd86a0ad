"""Asks the TPU's compiler about a function's kernels, from Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from pallas_shim.chip import noting, session, tpus
from pallas_shim.chip.jobs import Limits
from pallas_shim.chip.verdicts import Verdict
from pallas_shim.jax_compat import export_tpu


def kernels(function: Callable[..., Any], *args: Any) -> list[export_tpu.Site]:
    """The kernels of a function, each once. JAX traces the function; nothing runs.

    Args:
      function: any function of arrays, jitted or not.
      args: its arguments, or a `jax.ShapeDtypeStruct` in the place of each.
    """
    reached = noting.reached()
    reached.note(export_tpu.sites(jax.make_jaxpr(function)(*args)))
    return reached.take()


def verdicts(
    function: Callable[..., Any],
    *args: Any,
    tpu: str | Sequence[str],
    executor: str | None = None,
    limits: Limits | None = None,
) -> list[Verdict]:
    """Compiles the kernels of a function for TPUs.

    Args:
      function: any function of arrays, jitted or not. It is traced, and doesn't run.
      args: its arguments, or a `jax.ShapeDtypeStruct` in the place of each.
      tpu: one or more generations, as "v6e", or with a topology, as "v5e:4x4".
      executor: where to compile, as PALLAS_NUMPY_COMPILE_EXECUTOR.
      limits: what one kernel may take.

    Returns:
      For each kernel, a verdict for each TPU.

    Raises: what the function raises when it is traced.
    """
    names = [tpu] if isinstance(tpu, str) else list(tpu)
    targets = [tpus.target(name) for name in names]
    return session.compile_kernels(
        kernels(function, *args), targets, executor=executor, limits=limits
    )
