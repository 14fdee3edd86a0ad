"""Special functions that JAX itself composes of simpler primitives."""

from __future__ import annotations

from typing import Any

import jax
from jax._src.lax import special

COMPOSED = {
    "igamma": special.igamma_impl,
    "igammac": special.igammac_impl,
    "igamma_grad_a": special.igamma_grad_a_impl,
    "regularized_incomplete_beta": special.regularized_incomplete_beta_impl,
}

# The value of digamma at zero, whichever its sign.
DIGAMMA_AT_ZERO = float("nan") if jax.__version_info__ < (0, 11) else -float("inf")


def composition(eqn: Any) -> Any:
    """The jaxpr that JAX lowers an equation of one of the `COMPOSED` primitives to."""
    operands = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    implementation = special._up_and_broadcast(COMPOSED[eqn.primitive.name])
    return jax.make_jaxpr(implementation)(*operands)
