"""How refs are accessed, and discharge rules of JAX, as the evaluator asks for them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_shim.evaluator import memory
from pallas_shim.jax_compat import kernel_info, state
from tests.oracle import x64


def test_steps_of_two_kinds_are_never_equal():
    """Though they hold the same: passes ask whether two paths lead to the same place."""
    steps = [state.Index((1, 0)), state.Reshape((1, 0)), state.Transpose((1, 0))]
    assert len(set(steps)) == 3
    assert memory.Dynamic(1) != memory.Chosen(1)
    assert state.Index((1, 0)) == state.Index((1, 0))


def test_equal_equations_are_discharged_once_under_equal_settings():
    def kernel(x_ref, out_ref):
        at = jnp.arange(3)
        out_ref[...] = x_ref[at] + x_ref[at + 1] + x_ref[at[:1]]

    call = pl.pallas_call(kernel, jax.ShapeDtypeStruct((3,), jnp.float32))
    (eqn,) = kernel_info.kernel_equations(jax.make_jaxpr(call)(jnp.ones(8, jnp.float32)))
    loads = [e for e in eqn.params["jaxpr"].eqns if e.primitive.name == "get"]
    first, second, other = map(state.discharge, loads)
    assert first is second
    assert other is not None and other is not first and other.jaxpr.out_avals[0].shape == (1,)
    with x64(not jax.config.jax_enable_x64):
        assert state.discharge(loads[0]) is not first
