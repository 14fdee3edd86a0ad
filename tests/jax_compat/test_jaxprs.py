"""The normal form of jaxprs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pallas_shim import jax_compat


def test_a_literal_becomes_a_plain_array():
    jaxpr = jax.make_jaxpr(lambda x: x + np.float32(1.5))(jnp.float32(0))
    (literal,) = [a for a in jax_compat.open_jaxpr(jaxpr)[0].eqns[0].invars if hasattr(a, "val")]
    array = jax_compat.to_numpy(literal.val, np.dtype(np.float32))
    assert type(array) is np.ndarray and array == 1.5
