"""Estimates the cost of the work outside a function's kernels, in NumPy and in XLA."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from pallas_shim.jax_compat import meshes
from pallas_shim.jax_compat.jaxprs import KERNEL_PRIMITIVES, inner_jaxprs

# The seconds in which XLA compiles a function, and each equation in it, on one core.
_COMPILING = 0.02
_COMPILING_EQUATION = 0.002
# The seconds in which NumPy computes an equation, a byte of its result, a byte to sort, and an
# operation of a dot or a convolution.
_EQUATION, _BYTE, _SORTED_BYTE, _DOT, _CONVOLUTION = 3e-6, 1e-9, 2e-8, 5e-11, 1e-9
# Of matrices of these, NumPy computes products as fast as XLA, also of many of them.
_OF_BLAS = {np.dtype(np.float32), np.dtype(np.float64)}
# The assumed number of rounds of a loop whose length isn't known.
_LOOP = 10


class Estimate(NamedTuple):
    """Seconds that some work takes in NumPy; that XLA takes to compile it; and that the compiled
    work takes as well, because it consists of the same products."""

    numpy: float
    compiling: float
    in_both: float

    @property
    def saved(self) -> float:
        """The share of a run that the compiler can save."""
        return 1 - self.in_both / self.numpy if self.numpy else 0.0

    @property
    def is_dear(self) -> bool:
        """Whether one run costs more than the compilation."""
        return self.numpy * self.saved > self.compiling


def outside_kernels(jaxpr: Any) -> Estimate:
    """The cost of the equations of a jaxpr, without its kernels."""
    seconds, in_both, count = _outside(jaxpr, 1)
    return Estimate(seconds, _COMPILING + count * _COMPILING_EQUATION, in_both)


def _outside(jaxpr: Any, times: int) -> tuple[float, float, int]:
    """NumPy's seconds for a jaxpr that runs so many times; those of them that XLA takes, too; how
    many equations it has."""
    seconds, in_both, count = 0.0, 0.0, 0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name = eqn.primitive.name
        if name in KERNEL_PRIMITIVES:
            continue
        count += 1
        inner = inner_jaxprs(eqn)
        if inner:
            repeats = {"scan": eqn.params.get("length", 1), "while": _LOOP}.get(name, 1)
            if name == "shard_map":
                repeats = meshes.count(eqn)
            for each in inner:
                inside, inside_in_both, inside_count = _outside(each, times * repeats)
                seconds += inside
                in_both += inside_in_both
                count += inside_count
            continue
        avals = [v.aval for v in eqn.outvars if hasattr(v.aval, "shape")]
        nbytes = sum(  # a semaphore has no bytes
            math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 0) for aval in avals
        )
        own = _EQUATION + nbytes * (_SORTED_BYTE if name == "sort" else _BYTE)
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            depth = np.prod([shape[d] for d in contracted], dtype=np.int64)
            own += _DOT * 2 * avals[0].size * float(depth)
            if {v.aval.dtype for v in eqn.invars} <= _OF_BLAS:
                in_both += times * own
        elif name == "conv_general_dilated":
            weights = eqn.invars[1].aval.size
            own += _CONVOLUTION * 2 * avals[0].size * weights
        seconds += times * own
    return seconds, in_both, count
