"""What jitted calls are described by."""

from __future__ import annotations

import jax

from pallas_shim.jax_compat import call_info


def test_inputs_that_nothing_depends_on():
    jaxpr = jax.make_jaxpr(lambda a, b, c: (a * 2, b + 1, c)[1:])(1.0, 2.0, 3.0)
    assert call_info.used_arguments(jaxpr, keep_unused=False) == (False, True, True)
    assert call_info.used_arguments(jaxpr, keep_unused=True) == (True, True, True)
