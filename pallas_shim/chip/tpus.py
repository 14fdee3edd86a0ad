"""The TPU generations that kernels are compiled for."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
from typing import NamedTuple

from pallas_shim import settings


class Tpu(NamedTuple):
    """A generation. ``kind`` is JAX's device_kind, ``cores`` the number of TensorCores in a device
    of an ahead-of-time topology, ``prefix`` the name of its topologies, ``vmem`` and ``smem`` the
    bytes of a core's memories, ``scoped`` those of VMEM that a kernel's blocks may take if its
    compiler_params have no vmem_limit_bytes."""

    name: str
    kind: str
    cores: int
    prefix: str
    devices_per_chip: int
    vmem: int
    smem: int
    scoped: int


_MB = 1 << 20

TPUS = {
    tpu.name: tpu
    for tpu in (
        Tpu("v4", "TPU v4", 1, "v4", 2, 16 * _MB, _MB, 16 * _MB),
        Tpu("v5e", "TPU v5 lite", 1, "v5e", 1, 128 * _MB, _MB, 16 * _MB),
        Tpu("v5p", "TPU v5", 2, "v5p", 1, 64 * _MB, _MB, 16 * _MB),
        Tpu("v6e", "TPU v6 lite", 1, "v6e", 1, 128 * _MB, _MB, 32 * _MB),
        Tpu("v7x", "TPU7x", 1, "tpu7x", 2, 64 * _MB, _MB, 32 * _MB),
    )
}


class Target(NamedTuple):
    """A generation to compile for, and its topology as the user gave it (``4x4``) or None."""

    tpu: Tpu
    topology: str | None

    @property
    def name(self) -> str:
        return self.tpu.name if self.topology is None else f"{self.tpu.name}:{self.topology}"

    def topology_for(self, devices: int) -> str:
        """JAX's name of the topology for so many devices: the given one, or the smallest."""
        layout = self.topology or _smallest(self.tpu, devices)
        return f"{self.tpu.prefix}:{layout}"


def libtpu_version() -> str | None:
    """The version of the installed libtpu. It isn't loaded."""
    if importlib.util.find_spec("libtpu") is None:
        return None
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def target(asked: str) -> Target:
    """The target of one element of PALLAS_NUMPY_COMPILE."""
    name, _, topology = asked.partition(":")
    return Target(TPUS[name], topology or None)


def _smallest(tpu: Tpu, devices: int) -> str:
    """The smallest layout of whole hosts (2x2 chips) with so many devices."""
    layout = [2, 2] if settings.TPUS[tpu.name] == 2 else [2, 2, 1]
    while math.prod(layout) * tpu.devices_per_chip < devices:
        layout[layout.index(min(layout))] *= 2
    return "x".join(map(str, sorted(layout) if settings.TPUS[tpu.name] == 2 else layout))
