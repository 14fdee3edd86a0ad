"""Sends kernels whose devices talk to one another to JAX's TPU interpreter, which runs them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from jax._src import core
from jax._src.pallas import pallas_call as jax_pallas_call

from pallas_shim.jax_compat import state
from pallas_shim.jax_compat.checked import ASKED_FOR_HERE
from pallas_shim.jax_compat.jaxprs import equations

try:
    from jax._src.pallas import mpmd
except ImportError:  # JAX < 0.9.1
    mpmd = None  # type: ignore[assignment]


def interpret_as_tpus() -> Callable[[], None]:
    """Traces kernels that reach other devices for the TPU interpreter, unless their user asked for
    another; returns the undoing.

    That interpreter gives a kernel an effect, and JAX has to know the effect from the start.
    """
    primitives = [jax_pallas_call.pallas_call_p]
    if mpmd is not None:
        primitives.append(mpmd.mpmd_map_p)
    for primitive in primitives:
        vars(primitive)["bind"] = _binding(primitive.bind)

    def undo() -> None:
        for primitive in primitives:
            del vars(primitive)["bind"]

    return undo


def _binding(stock_bind: Callable[..., Any]) -> Callable[..., Any]:
    def bind(*args: Any, **params: Any) -> Any:
        if isinstance(params["interpret"], bool) and _reaches_devices(params):
            params["interpret"] = _for_devices_that_talk()
        return stock_bind(*args, **params)

    return bind


@functools.cache
def _for_devices_that_talk() -> Any:
    from jax.experimental.pallas import tpu

    return type(ASKED_FOR_HERE, (tpu.InterpretParams,), {})()


def _reaches_devices(params: dict[str, Any]) -> bool:
    """Whether a kernel names other devices than its own, among those of the axes around it."""
    sizes = core.get_axis_env().axis_sizes
    axes = {name for name, size in sizes.items() if size > 1}
    jaxprs = params["jaxprs"] if "jaxprs" in params else (params["jaxpr"],)
    return bool(axes) and any(
        _on_devices(device, axes) for jaxpr in jaxprs for device in _device_ids(jaxpr)
    )


def _on_devices(device_id: Any, axes: set[Any]) -> bool:
    named = state.device_axes(device_id)
    return named is None or not named.isdisjoint(axes)


def _device_ids(jaxpr: Any) -> Iterator[Any]:
    """The device ids of copies and signals in a jaxpr and in those inside it."""
    for eqn in equations(jaxpr):
        if eqn.primitive.name in ("dma_start", "dma_wait", "semaphore_signal"):
            device_id = state.device_id(eqn, eqn.invars)
            if device_id is not None:
                yield device_id
