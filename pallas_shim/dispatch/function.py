"""What there is to compile, described once for all that look at it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pallas_shim.jax_compat import call_info, kernel_info, sharded
from pallas_shim.jax_compat.hooks.kernel_lowering import KernelLowering


class Function(NamedTuple):
    """A jitted function, or one kernel of a function that XLA compiles.

    ``jaxpr`` is what runs here. ``axes``: the sizes of the named axes of the devices that it is
    for. ``kernels`` are those that it holds. ``on``: the mesh whose devices it runs on here, if it
    does.
    """

    name: str
    jaxpr: Any
    axes: Mapping[Any, int]
    kernels: tuple[kernel_info.KernelInfo, ...]
    on: sharded.OnMesh | None = None


def of_call(jaxpr: Any, call: call_info.JitCall) -> Function:
    """A jitted function, as it is called."""
    kernels = tuple(map(kernel_info.describe_kernel, kernel_info.kernel_equations(jaxpr)))
    on = sharded.on_mesh(jaxpr, call.told_in, call.told_out, call.mesh)
    return Function(call.name, jaxpr, {}, kernels, on)


def of_kernel(kernel: KernelLowering) -> Function:
    """A kernel by itself."""
    described = kernel_info.describe_kernel(kernel.equation)
    return Function(described.name, kernel.jaxpr, kernel.axes, (described,))
