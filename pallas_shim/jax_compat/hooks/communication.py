"""Sends kernels whose devices talk to one another, in functions that XLA compiles, to JAX's TPU
interpreter. JAX's other interpreters can't run them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from jax._src import callback, core
from jax._src.interpreters import pxla

from pallas_shim.jax_compat import state
from pallas_shim.jax_compat.checked import ASKED_FOR_HERE
from pallas_shim.jax_compat.jaxprs import KERNEL_PRIMITIVES, equations


def compile_for_tpu_interpreter() -> Callable[[], None]:
    """Has kernels that reach other devices run in the TPU interpreter where XLA compiles them,
    unless their user asked for another; returns the undoing.

    That interpreter gives a kernel effects, and JAX has to know the effects of all that is around
    it. While JAX traces there are none: where a function runs is decided afterwards, and some of
    JAX's functions, such as jax.checkpoint, refuse effects.
    """
    stock = pxla.lower_sharding_computation

    @functools.wraps(stock)
    def lower(jaxpr: Any, *args: Any, **kwargs: Any) -> Any:
        # An export names the platforms, and it may not be for this machine.
        if "cpu" in (kwargs.get("lowering_platforms") or ("cpu",)):
            jaxpr = _interpreted(jaxpr, frozenset())
        return stock(jaxpr, *args, **kwargs)

    vars(pxla)["lower_sharding_computation"] = lower

    def undo() -> None:
        vars(pxla)["lower_sharding_computation"] = stock

    return undo


# The effects that a kernel has in that interpreter.
_EFFECTS = frozenset({callback._IOEffect, callback._OrderedIOEffect})


def _interpreted(jaxpr: Any, axes: frozenset[Any]) -> Any:
    """A jaxpr whose talking kernels are the TPU interpreter's; the same if there are none.
    ``axes`` are those of several devices around it."""
    opened = getattr(jaxpr, "jaxpr", jaxpr)
    eqns = [_interpreted_eqn(eqn, axes) for eqn in opened.eqns]
    if all(new is old for new, old in zip(eqns, opened.eqns, strict=True)):
        return jaxpr
    changed = opened.replace(eqns=eqns, effects=opened.effects | _EFFECTS)
    return changed if opened is jaxpr else jaxpr.replace(jaxpr=changed)


def _interpreted_eqn(eqn: Any, axes: frozenset[Any]) -> Any:
    params = eqn.params
    if eqn.primitive.name in KERNEL_PRIMITIVES:
        if not isinstance(params["interpret"], bool) or not _reaches_devices(params, axes):
            return eqn
        params = {**params, "interpret": _for_devices_that_talk()}
        return eqn.replace(params=params, effects=eqn.effects | _EFFECTS)
    if eqn.primitive.name == "shard_map":
        axes |= {name for name, size in params["mesh"].shape.items() if size > 1}
    changed = {}
    for name, value in params.items():
        if isinstance(value, (tuple, list)) and any(map(_is_jaxpr, value)):
            new = [_interpreted(v, axes) if _is_jaxpr(v) else v for v in value]
            if any(a is not b for a, b in zip(new, value, strict=True)):
                changed[name] = type(value)(new)
        elif _is_jaxpr(value):
            new_value = _interpreted(value, axes)
            if new_value is not value:
                changed[name] = new_value
    if not changed:
        return eqn
    return eqn.replace(params={**params, **changed}, effects=eqn.effects | _EFFECTS)


def _is_jaxpr(value: Any) -> bool:
    return isinstance(getattr(value, "jaxpr", value), core.Jaxpr)


@functools.cache
def _for_devices_that_talk() -> Any:
    from jax.experimental.pallas import tpu

    return type(ASKED_FOR_HERE, (tpu.InterpretParams,), {})()


def _reaches_devices(params: dict[str, Any], axes: frozenset[Any]) -> bool:
    """Whether a kernel names other devices than its own, among those of the axes around it."""
    jaxprs = params["jaxprs"] if "jaxprs" in params else (params["jaxpr"],)
    return bool(axes) and any(
        _on_devices(device, axes) for jaxpr in jaxprs for device in _device_ids(jaxpr)
    )


def _on_devices(device_id: Any, axes: frozenset[Any]) -> bool:
    named = state.device_axes(device_id)
    return named is None or not named.isdisjoint(axes)


def _device_ids(jaxpr: Any) -> Iterator[Any]:
    """The device ids of copies and signals in a jaxpr and in those inside it."""
    for eqn in equations(jaxpr):
        if eqn.primitive.name in ("dma_start", "dma_wait", "semaphore_signal"):
            device_id = state.device_id(eqn, eqn.invars)
            if device_id is not None:
                yield device_id
