"""The normal form of jaxprs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from pallas_shim import jax_compat
from pallas_shim.jax_compat import jaxprs, kernel_info


def test_a_literal_becomes_a_plain_array():
    jaxpr = jax.make_jaxpr(lambda x: x + np.float32(1.5))(jnp.float32(0))
    (literal,) = [a for a in jax_compat.open_jaxpr(jaxpr)[0].eqns[0].invars if hasattr(a, "val")]
    array = jax_compat.to_numpy(literal.val, np.dtype(np.float32))
    assert type(array) is np.ndarray and array == 1.5


def test_the_primitives_of_a_jaxpr_are_those_of_all_jaxprs_inside_it():
    @jax.checkpoint
    def sine(x):
        return jnp.sin(x)

    def f(x):
        y = lax.fori_loop(0, 3, lambda i, c: lax.cond(c > 0, jnp.cos, jnp.tan, c), sine(x))
        return lax.while_loop(lambda c: jnp.exp(c) < 0, lambda c: jax.jit(jnp.log)(c), y)

    jaxpr = jax.make_jaxpr(f)(jnp.float32(0))
    found = jaxprs.primitives(jaxpr)
    assert found == {eqn.primitive.name for eqn in jaxprs.equations(jaxpr)}
    assert {"sin", "cos", "tan", "exp", "log", "cond", "while"} <= found


def test_a_kernel_writes_to_the_refs_of_its_effects():
    captured = np.arange(8, dtype=np.float32)

    def kernel(x_ref, y_ref, o_ref):
        y_ref[...] += x_ref[...]
        o_ref[...] = y_ref[...]

    def call(x):
        return pl.pallas_call(kernel, out_shape=x, interpret=True)(x, captured)

    (eqn,) = kernel_info.kernel_equations(jax.make_jaxpr(call)(captured))
    assert jax_compat.written_refs(eqn.params["jaxpr"]) == {1, 2}
