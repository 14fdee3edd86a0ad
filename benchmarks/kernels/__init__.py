"""The kernels that are measured, one file a family."""

from __future__ import annotations

import pathlib
import sys
from types import ModuleType

# Some of the kernels are the examples'.
sys.path.append(str(pathlib.Path(__file__).parents[2] / "examples"))

from kernels import (  # noqa: E402
    attention,
    grids,
    indexing,
    loops,
    matmuls,
    models,
    normalisation,
    random_bits,
    sorts,
)
from kernels.kernel import Kernel  # noqa: E402

FAMILIES: tuple[ModuleType, ...] = (
    sorts,
    grids,
    matmuls,
    attention,
    normalisation,
    random_bits,
    indexing,
    loops,
    models,
)

KERNELS: dict[str, Kernel] = {
    name: kernel for family in FAMILIES for name, kernel in family.KERNELS.items()
}
