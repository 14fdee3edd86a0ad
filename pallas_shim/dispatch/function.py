"""The description of something to compile. It is made once, for all that need it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pallas_shim.jax_compat import call_info, kernel_info, sharded
from pallas_shim.jax_compat.hooks.kernel_lowering import KernelLowering


class Function(NamedTuple):
    """A jitted function, or one kernel of a function that XLA compiles.

    ``jaxpr`` is run here. ``axes``: the sizes of the named axes of its devices. ``kernels``: the
    kernels in it. ``on``: the mesh whose devices run it here; None: it runs on one device.
    ``races``: the kinds of findings that its kernels ask JAX's race detector for.
    """

    name: str
    jaxpr: Any
    axes: Mapping[Any, int]
    kernels: tuple[kernel_info.KernelInfo, ...]
    on: sharded.OnMesh | None = None
    races: frozenset[str] = frozenset()


def of_call(jaxpr: Any, call: call_info.JitCall) -> Function:
    """Describes a jitted function that is called."""
    equations = kernel_info.kernel_equations(jaxpr)
    kernels = tuple(map(kernel_info.describe_kernel, equations))
    races = frozenset().union(*map(kernel_info.races_wanted, equations))
    on = sharded.on_mesh(jaxpr, call.told_in, call.told_out, call.mesh)
    return Function(call.name, jaxpr, {}, kernels, on, races)


def of_kernel(kernel: KernelLowering) -> Function:
    """Describes a kernel by itself."""
    described = kernel_info.describe_kernel(kernel.equation)
    races = kernel_info.races_wanted(kernel.equation)
    return Function(described.name, kernel.jaxpr, kernel.axes, (described,), None, races)
