"""What jitted calls are described by."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax._src.interpreters import partial_eval
from jax.experimental import pallas as pl

from pallas_shim.jax_compat import call_info


def test_inputs_that_nothing_depends_on():
    jaxpr = jax.make_jaxpr(lambda a, b, c: (a * 2, b + 1, c)[1:])(1.0, 2.0, 3.0)
    assert call_info.used_arguments(jaxpr, keep_unused=False) == (False, True, True)
    assert call_info.used_arguments(jaxpr, keep_unused=True) == (True, True, True)


def add(*args):
    def kernel(*refs):
        refs[-1][...] = sum(ref[...] for ref in refs[:-1])

    return pl.pallas_call(kernel, jax.ShapeDtypeStruct((8,), np.float32), interpret=True)(*args)


FUNCTIONS = {
    "all": lambda a, b, c: add(a, b, c),
    "not one": lambda a, b, c: add(a, c),
    "a dead kernel's": lambda a, b, c: (add(a, b), add(c))[0],
    "one after the other": lambda a, b, c: add(add(a, b), c),
    "a result's, and the result": lambda a, b, c: (add(a, c), b),
    "not all, around a kernel": lambda a, b, c: add(a + 1, b) + 1,
    "by a nested function": lambda a, b, c: jax.jit(lambda x, y, z: add(x, z))(a, b, c),
    "around kernels": lambda a, b, c: add(a * 2, b + c).sum(),
    "by a loop": lambda a, b, c: jax.lax.fori_loop(0, 3, lambda i, x: add(x, b), a),
    "before a loop": lambda a, b, c: jax.lax.fori_loop(0, 3, lambda i, x: x * 2, add(a, b, c)),
    "none": lambda a, b, c: np.float32(1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_inputs_that_kernels_use_are_those_that_jax_finds(name):
    jaxpr = jax.make_jaxpr(FUNCTIONS[name])(*[np.zeros(8, np.float32)] * 3).jaxpr
    _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    assert call_info.used_arguments(jaxpr, keep_unused=False) == tuple(used)


def test_jax_is_not_asked_about_the_operands_of_kernels(monkeypatch):
    jaxpr = jax.make_jaxpr(FUNCTIONS["all"])(*[np.zeros(8, np.float32)] * 3)
    monkeypatch.setattr(partial_eval, "dce_jaxpr", lambda *_: pytest.fail("it was asked"))
    assert call_info.used_arguments(jaxpr, keep_unused=False) == (True, True, True)
