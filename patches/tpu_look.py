"""Answers user code that asks for the accelerator, if PALLAS_NUMPY_TPU names a TPU.

Many scripts refuse to start without a TPU. JAX itself still sees the CPU, because the answer
depends on the module that asks.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import wrapt

from pallas_shim import settings

from . import noted, undo_all


class Generation(NamedTuple):
    """A TPU generation. ``kind`` is JAX's device_kind for it, ``devices`` the number of devices in
    a chip."""

    kind: str
    devices: int = 1


GENERATIONS = {
    "v4": Generation("TPU v4"),
    "v5e": Generation("TPU v5 lite"),
    "v5p": Generation("TPU v5"),
    "v6e": Generation("TPU v6 lite"),
    "v7x": Generation("TPU7x", 2),
}

# The flag with which a user says how many devices a CPU has.
_FORCED = "xla_force_host_platform_device_count"

_OWN = frozenset({"jax", "jaxlib", "pallas_shim"})


def _nothing() -> None:
    pass


def _asked_by_user() -> bool:
    """Whether the caller's caller is the user's code, not JAX's or ours."""
    name = sys._getframe(2).f_globals.get("__name__", "")
    return name.partition(".")[0] not in _OWN


def patch_devices(jax: ModuleType) -> Callable[[], None]:
    """Makes JAX's devices say that they are TPUs, and keeps libtpu out of a process whose kernels
    it compiles elsewhere. Called when jax is imported."""
    asked, compiling = settings.current().tpu, bool(settings.current().compile)
    if asked is None and not compiling:
        return _nothing
    # `noted` imports jax_compat, which imports modules of Pallas. In some versions of JAX those
    # import jax.experimental.pallas, whose patches need all of jax_compat. So they come first.
    importlib.import_module("jax.experimental.pallas")
    undoings = []
    with noted():
        if compiling:
            from pallas_shim.jax_compat.hooks import tpu_backend

            undoings.append(tpu_backend.leave_out())
        if asked is not None:
            undoings.append(_patch_devices(jax, asked))
    return undo_all(undoings)


def _patch_devices(jax: ModuleType, asked: str) -> Callable[[], None]:
    generation, cores = GENERATIONS[asked], settings.current().tpu_cores
    sizes = settings.current().topology

    def place(device: Any) -> tuple[list[int], int]:
        """The coordinates of a device's chip, and its number on the chip."""
        if sizes is None:
            return [device.id, 0, 0], 0
        chip, core = divmod(device.id, generation.devices)
        coords = []
        for size in sizes:
            chip, along = divmod(chip, size)
            coords.append(along)
        return [*coords, 0][:3], core

    undoings = [
        _make_devices(jax, sizes, generation.devices),
        _set(jax, "default_backend", lambda: "tpu"),
        _answer(jax.Device, "platform", "tpu"),
        _answer(jax.Device, "device_kind", generation.kind),
        _add(jax.Device, "num_cores", lambda device: cores),
        _add(jax.Device, "coords", lambda device: place(device)[0]),
        _add(jax.Device, "core_on_chip", lambda device: place(device)[1]),
    ]
    for name in ("devices", "local_devices", "device_count", "local_device_count"):
        undoings.append(_set(jax, name, wrapt.FunctionWrapper(getattr(jax, name), _on_cpu)))
    return undo_all(undoings)


def _make_devices(jax: ModuleType, sizes: Any, devices: int) -> Callable[[], None]:
    """Has JAX make as many devices of the CPU as the TPUs have, unless the user said how many."""
    stock = jax.config.jax_num_cpu_devices
    if sizes is None or stock >= 0 or _FORCED in os.environ.get("XLA_FLAGS", ""):
        return _nothing
    number = math.prod(sizes) * devices
    try:
        jax.config.update("jax_num_cpu_devices", number)
    except RuntimeError:  # JAX has made its devices
        if len(jax.devices("cpu")) != number:
            warnings.warn(
                f"PALLAS_NUMPY_TPU asks for {number} devices, and JAX has made "
                f"{len(jax.devices('cpu'))} already; start the process with PALLAS_NUMPY=1",
                stacklevel=2,
            )
        return _nothing

    def undo() -> None:
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", stock)

    return undo


def patch_tpu_info(pltpu: ModuleType) -> Callable[[], None]:
    """Gives Pallas the TPU's properties. Called when jax.experimental.pallas.tpu is imported.

    These are the answer of get_tpu_info (JAX >= 0.8.1), and the tiling by which emit_pipeline cuts
    its last block. The tiling is set even if no TPU is named. A patch is needed because a pipeline
    is no primitive.
    """
    with noted():
        return _patch_tpu_info(pltpu)


def _patch_tpu_info(pltpu: ModuleType) -> Callable[[], None]:
    from pallas_shim.jax_compat import checked, version
    from pallas_shim.jax_compat.hooks import tpu_info

    version.check_for_a_tpu()
    checked.remember_interpreter()
    undoings = [tpu_info.emit_pipelines_at_once()]
    asked = settings.current().tpu
    if asked is None:
        return undo_all([*undoings, tpu_info.tile_without_tpu()])
    cores = settings.current().tpu_cores
    undoings.append(tpu_info.answer(GENERATIONS[asked].kind, cores))
    if "create_tensorcore_mesh" in vars(pltpu):  # deprecated since JAX 0.12
        undoings.append(_mesh_of_cores(pltpu, cores))
    if hasattr(pltpu, "is_tpu_device"):
        undoings.append(_set(pltpu, "is_tpu_device", lambda: True))
    return undo_all(undoings)


def _mesh_of_cores(pltpu: ModuleType, cores: int) -> Callable[[], None]:
    """Gives a mesh of TensorCores as many cores as the TPU has, also inside shard_map. There JAX
    would ask the mesh of the devices, and these are CPUs."""

    def create(wrapped: Callable[..., Any], instance: Any, args: Any, kwargs: Any) -> Any:
        if len(args) < 2 and kwargs.keys().isdisjoint({"devices", "num_cores"}):
            kwargs = {**kwargs, "num_cores": cores}
        return wrapped(*args, **kwargs)

    stock = vars(pltpu)["create_tensorcore_mesh"]
    return _set(pltpu, "create_tensorcore_mesh", wrapt.FunctionWrapper(stock, create))


def _set(place: Any, name: str, value: Any) -> Callable[[], None]:
    stock = place.__dict__[name]
    setattr(place, name, value)
    return lambda: setattr(place, name, stock)


def _answer(kind: type, name: str, answer: str) -> Callable[[], None]:
    stock = kind.__dict__[name]

    def get(device: Any) -> Any:
        return answer if _asked_by_user() else stock.__get__(device)

    return _set(kind, name, property(get))


def _add(kind: type, name: str, answer: Callable[[Any], Any]) -> Callable[[], None]:
    """Adds a property that a CPU lacks. JAX gets it too, because it is only asked of TPUs."""
    setattr(kind, name, property(answer))
    return lambda: delattr(kind, name)


def _on_cpu(wrapped: Callable[..., Any], instance: Any, args: Any, kwargs: Any) -> Any:
    """Makes jax.devices("tpu") return the existing devices."""
    args = tuple(None if arg == "tpu" else arg for arg in args)
    kwargs = {name: None if value == "tpu" else value for name, value in kwargs.items()}
    return wrapped(*args, **kwargs)
