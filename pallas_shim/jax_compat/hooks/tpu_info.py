"""Answers what JAX's own code for Pallas asks about the TPU, for a TPU that isn't there."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import config

# Its module since JAX 0.12, since JAX 0.9, and before.
_PLACES = ("jax._src.tpu_info", "jax._src.pallas.mosaic.tpu_info", "jax._src.pallas.mosaic.core")


def _module() -> Any:
    place = next(name for name in _PLACES if importlib.util.find_spec(name) is not None)
    return importlib.import_module(place)


def tile_without_tpu() -> Callable[[], None]:
    """Makes emit_pipeline cut its last blocks without a TPU; returns the undoing.

    It asks for the tiling, which is the same on every TPU since v4.
    """
    module = _module()
    if hasattr(module, "infer_tiling"):
        from jax._src.pallas.mosaic import tpu_info

        return _set(tpu_info, "infer_tiling", _as_on_a_tpu(tpu_info.infer_tiling))
    pipeline: Any = importlib.import_module("jax._src.pallas.mosaic.pipeline")  # before JAX 0.9
    return _set(pipeline, "_get_tpu_generation", _as_on_a_tpu(pipeline._get_tpu_generation))


def _as_on_a_tpu(stock: Callable[..., Any]) -> Callable[..., Any]:
    device = _device("TPU v5 lite", 1)

    @functools.wraps(stock)
    def ask(*args: Any, **kwargs: Any) -> Any:
        if "TPU" in _module().get_device_kind():
            return stock(*args, **kwargs)
        mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            return stock(*args, **kwargs)

    return ask


def _device(kind: str, cores: int) -> Any:
    said: dict[str, Any] = {"device_kind": kind, "num_cores": cores, "platform": "tpu"}
    known = {field.name for field in dataclasses.fields(jax.sharding.AbstractDevice)}
    return jax.sharding.AbstractDevice(**{k: v for k, v in said.items() if k in known})


def emit_pipelines_at_once() -> Callable[[], None]:
    """Makes emit_pipeline emit its equations directly instead of a primitive, whatever
    jax_use_emit_pipeline_primitive says; returns the undoing. The primitive stands for the same
    equations."""
    flag = getattr(config, "use_emit_pipeline_primitive", None)  # JAX >= 0.10
    if flag is None:
        return lambda: None
    pltpu: Any = importlib.import_module("jax.experimental.pallas.tpu")
    stock = pltpu.emit_pipeline

    def without(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with flag(False):
                return function(*args, **kwargs)

        return call

    # JAX 0.10 looks at the flag when the pipeline is made, 0.12 when it is run.
    def emit_pipeline(*args: Any, **kwargs: Any) -> Any:
        return without(without(stock)(*args, **kwargs))

    return _set(pltpu, "emit_pipeline", functools.wraps(stock)(emit_pipeline))


def _set(place: Any, name: str, value: Any) -> Callable[[], None]:
    stock = getattr(place, name)
    setattr(place, name, value)
    return lambda: setattr(place, name, stock)


def answer(kind: str, cores: int) -> Callable[[], None]:
    """Has the device be of that kind, with so many TensorCores; returns the undoing.

    A device that the user named by an abstract mesh stays what it is, unless it is the one that
    there is, as in a mesh of devices. JAX's choice of layouts still sees that.
    """
    module = _module()
    stock: dict[str, Callable[[], Any]] = {
        name: getattr(module, name)
        for name in ("get_device_kind", "get_num_device_cores")
        if hasattr(module, name)
    }

    def unless_named(name: str, value: Any) -> Callable[[], Any]:
        def get() -> Any:
            named = jax.sharding.get_abstract_mesh().abstract_device
            if named is None or named.device_kind == jax.local_devices()[0].device_kind:
                return value
            return stock[name]()

        return get

    answers = {"get_device_kind": kind, "get_num_device_cores": cores}
    changed = {name: unless_named(name, answers[name]) for name in stock}
    if hasattr(module, "is_tpu_device"):
        stock["is_tpu_device"] = module.is_tpu_device
        changed["is_tpu_device"] = lambda: "TPU" in stock["get_device_kind"]()
    for name, function in changed.items():
        setattr(module, name, function)

    def undo() -> None:
        for name, function in stock.items():
            setattr(module, name, function)
        _forget()

    return undo


def _forget() -> None:
    """Clears what JAX remembers of the device's properties."""
    module = _module()
    for name in ("get_tpu_info", "get_tpu_info_for_chip"):
        clear = getattr(getattr(module, name, None), "cache_clear", None)
        if clear is not None:
            clear()


@contextlib.contextmanager
def pretended(kind: str, cores: int) -> Iterator[None]:
    """A context in which JAX's lowering for a TPU sees a device of that kind, and no other, with so
    many TensorCores. An equation may restore a mesh that names another; it isn't asked."""
    module = _module()
    answers = {
        "get_device_kind": lambda: kind,
        "get_num_device_cores": lambda: cores,
        "is_tpu_device": lambda: True,
    }
    stock = {name: getattr(module, name) for name in answers if hasattr(module, name)}
    _forget()
    try:
        for name in stock:
            setattr(module, name, answers[name])
        yield
    finally:
        for name, function in stock.items():
            setattr(module, name, function)
        _forget()
