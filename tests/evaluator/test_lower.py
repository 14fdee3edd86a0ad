"""What lowering makes of a refusal."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
