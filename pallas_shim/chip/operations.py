"""How many operations on floating-point numbers a kernel does, for its place under the roofline."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from pallas_shim.jax_compat import pallas
from pallas_shim.jax_compat.jaxprs import inner_jaxprs

_ELEMENTWISE = frozenset(
    "add sub mul div max min neg abs exp exp2 log log1p expm1 tanh logistic sqrt rsqrt pow "
    "integer_pow sin cos erf square floor ceil round sign".split()
)
_REDUCTIONS = ("reduce_", "cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")


class _UnknownTurns(Exception):
    """A loop's turns aren't known."""


def of_kernel(eqn: Any) -> int | None:
    """The operations of one call of a kernel: two for each product of a dot, one for each element
    that arithmetic makes or a reduction takes. Of branches, the longest counts. None: unknown."""
    if eqn.primitive.name != "pallas_call":
        return None
    grid = eqn.params["grid_mapping"].grid
    if not all(isinstance(size, int) for size in grid):
        return None
    try:
        return math.prod(grid) * _of_jaxpr(pallas.kernel_jaxpr(eqn))
    except _UnknownTurns:
        return None


def _of_jaxpr(jaxpr: Any) -> int:
    return sum(map(_of_equation, getattr(jaxpr, "jaxpr", jaxpr).eqns))


def _of_equation(eqn: Any) -> int:
    name = eqn.primitive.name
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return 2 * eqn.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name in _ELEMENTWISE:
        return _size(eqn.outvars[0])
    if name.startswith(_REDUCTIONS):
        return _size(eqn.invars[0])
    inner = list(map(_of_jaxpr, inner_jaxprs(eqn)))
    if name == "scan":
        return int(eqn.params["length"]) * sum(inner)
    if name == "while" and sum(inner):
        raise _UnknownTurns
    return max(inner, default=0) if name == "cond" else sum(inner)


def _size(var: Any) -> int:
    aval = var.aval
    dtype = getattr(aval, "dtype", None)
    is_float = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    return math.prod(aval.shape) if is_float else 0
