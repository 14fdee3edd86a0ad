"""What is refused is named as what it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim import dispatch
from pallas_shim.evaluator import compiler
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.registry import Unsupported
from tests.evaluator.rules.test_triton import operation
from tests.shimmed import double_kernel, rungs, setting, shim

mosaic_gpu = pytest.importorskip("jax.experimental.pallas.mosaic_gpu")

__all__ = ["setting", "shim"]

# JAX 0.12 has another name for it, and 0.8 only the old one.
NAMED = "out_type" if jax.__version_info__ >= (0, 12) else "out_shape"

X = np.arange(8, dtype=np.float32)
OUT = jax.ShapeDtypeStruct(X.shape, X.dtype)


def test_what_jax_makes_of_a_kernel_with_an_operand_that_has_no_tangent(shim, setting):
    """One block mapping more than there are refs; JAX's own interpreter can't run it either."""

    def kernel(x, y, o):
        o[...] = x[...] * y[...]

    def product(x, y):
        spec = pl.BlockSpec((4,), lambda i: (i,))
        return pl.pallas_call(
            kernel, out_shape=OUT, grid=(2,), in_specs=[spec] * 2, out_specs=spec, interpret=True
        )(x, y)

    setting(strict=True)
    both = jax.jit(lambda x: jax.jvp(product, (x, X), (x, X)))
    np.testing.assert_array_equal(both(X)[1], 2 * X * X)
    one = jax.jit(lambda x: jax.jvp(lambda x: product(x, X), (x,), (x,)))
    with pytest.raises(dispatch.StrictError, match="JAX made a kernel of 5 refs with 6 block map"):
        one(X)


@pytest.mark.skipif(not hasattr(mosaic_gpu, "kernel"), reason="this JAX has no plgpu.kernel")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_kernel_for_mosaic_gpu_that_asks_for_no_interpreter(shim, setting):
    setting(strict=True)
    np.testing.assert_array_equal(mosaic_gpu.kernel(double_kernel, **{NAMED: OUT})(X), 2 * X)
    assert rungs() == {"numpy"}


@pytest.mark.skipif(not hasattr(mosaic_gpu, "kernel"), reason="this JAX has no plgpu.kernel")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_kernel_for_mosaic_gpu_that_cant_run_here(shim, monkeypatch):
    def refuse(*args, **kwargs):
        raise Unsupported("something", "for the test")

    monkeypatch.setattr(compiler, "lower", refuse)
    with pytest.raises(NotImplementedError, match="for Mosaic GPU .* needs a GPU"):
        mosaic_gpu.kernel(double_kernel, **{NAMED: OUT})(X)


def test_an_atomic_operation_in_checked_memory():
    """It has neither an array index nor a mask."""

    def kernel(x, o):
        o[...] = x[...]
        operation("atomic_cas")(o, 3, 4)

    out = jax.ShapeDtypeStruct((), jnp.int32)
    call = pl.pallas_call(kernel, out_shape=out, interpret=pltpu.InterpretParams())
    with pytest.raises(Unsupported, match="atomic_cas: an atomic operation, in checked memory"):
        lower(jax.make_jaxpr(call)(jnp.int32(3)))


def test_an_array_index_in_checked_memory():
    def kernel(x, at, o):
        o[...] = x[at[...]]

    call = pl.pallas_call(kernel, out_shape=OUT, interpret=pltpu.InterpretParams())
    with pytest.raises(Unsupported, match="get: an array index, in checked memory"):
        lower(jax.make_jaxpr(call)(X, np.arange(8, dtype=np.int32)))
