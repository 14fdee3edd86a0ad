"""The meaning of axis names. They name axes of a kernel's grid, of its cores, or of devices."""

from __future__ import annotations

from typing import Any

import numpy as np

from pallas_shim.evaluator.lower import Lowering
from pallas_shim.evaluator.program import Value
from pallas_shim.evaluator.registry import Unsupported


def axis(lowering: Lowering, primitive: str, name: Any) -> tuple[Value, Value]:
    """The index and size of the innermost kernel axis of that name, or of a lone device's axis."""
    for kernel in reversed(lowering.kernels):
        if name in kernel.names:
            return kernel.names[name]
    found = lowering.machine.axis(name)
    if found is not None:
        return found[0], lowering.const(np.int32(found[1]))
    if lowering.axes.get(name) == 1:
        return lowering.const(np.int32(0)), lowering.const(np.int32(1))
    raise Unsupported(
        primitive, f"the axis {name!r} is of devices, neither of the kernel's grid nor of its cores"
    )


def is_alone(lowering: Lowering, primitive: str, name: Any) -> bool:
    """Whether the axis of that name has size 1."""
    size = axis(lowering, primitive, name)[1]
    return size.const is not None and int(size.const) == 1
