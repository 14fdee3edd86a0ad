"""Functions that Pallas may fuse with their neighbours."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import fuser

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from tests.oracle import check_rule

X = jnp.arange(8 * 128, dtype=jnp.float32).reshape(8, 128)


def test_a_fusible_function_is_called():
    table = jnp.arange(128, dtype=jnp.float32)

    @fuser.fusible
    def scaled(x, out):
        assert out is None
        return x() * table + 1

    check_rule(lambda x: scaled(x) * 2, X)


def test_a_custom_fusion_has_a_function_of_its_own_for_kernels():
    if not hasattr(fuser, "custom_fusion"):
        return

    @fuser.custom_fusion
    def double(x):
        return x * 2

    double.def_eval_rule(lambda ctx, x: [double(x)])
    double.def_pull_block_spec(lambda ctx, spec: [spec])
    double.def_pallas_impl(lambda x: x + x + 1)

    def kernel(x_ref, o_ref):
        o_ref[...] = double(x_ref[...])

    call = pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(X.shape, X.dtype), interpret=True)
    (inside,) = Executable(lower(jax.make_jaxpr(call)(X)))(np.asarray(X))
    np.testing.assert_array_equal(inside, 2 * X + 1)
    check_rule(lambda x: double(x) + 1, X)
