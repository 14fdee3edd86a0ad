"""What lowering makes of a refusal, and the places that it gives to instructions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_shim import jax_compat
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.registry import LOWERING_RULES, Unsupported
from pallas_shim.refusal import Refusal


class Moonlit(Refusal):
    """Something that only a test knows of."""


def test_a_refusal_gets_the_primitive_and_the_line(monkeypatch):
    def refuse(lowering, eqn, ins):
        raise Moonlit("the moon is full")

    monkeypatch.setitem(LOWERING_RULES, "sin", refuse)
    jaxpr = jax.make_jaxpr(jax.jit(lambda x: jnp.sin(x) + 1))(1.0)
    with pytest.raises(Unsupported) as caught:
        lower(jaxpr)
    assert (caught.value.primitive, caught.value.reason) == ("sin", "the moon is full")
    assert "test_lower.py" in str(caught.value.source)
    assert isinstance(caught.value.__cause__, Moonlit)


def test_an_input_without_a_type_here_is_refused():
    jaxpr = jax.make_jaxpr(lambda x: 1.0)(np.zeros((), jax.dtypes.float0))
    with pytest.raises(Unsupported, match="type: float0"):
        lower(jaxpr)


def test_places_of_calls_of_jax_own_functions():
    """JAX traces its own functions once. So what is in them has the place of their first call."""

    def f(x):
        y = jnp.where(x > 1, x, 0.0)
        return jnp.where(y > 2, y, 0.0)

    first = f.__code__.co_firstlineno + 1
    program = lower(jax.make_jaxpr(f)(jnp.arange(4.0)))
    chosen = [i for i in program.top.body if i.name == "select_n"]
    places = [jax_compat.user_source(i.source) or "" for i in chosen]
    assert [int(place.split(":")[1].split()[0]) for place in places] == [first, first + 1]
