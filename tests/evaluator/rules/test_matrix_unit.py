"""A TPU's matrix unit, which no interpreter of JAX has: what its documentation says."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.rules import Unsupported
from tests.kernels.harness import evaluate, integers

HAS_UNIT, BY_REF = hasattr(pltpu, "matmul_push_rhs"), hasattr(pltpu, "ACC")
N = 256


def struct(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


class Unit:
    """The accumulators of a unit, by address or, since JAX 0.12, by ref."""

    def __init__(self, number, dtype=jnp.float32):
        self.number, self.dtype = number, dtype

    def scratch(self):
        return [pltpu.ACC(self.number)((N, N), self.dtype)] if BY_REF else []

    def accumulate(self, refs, x, staged):
        if BY_REF:
            pltpu.matmul_acc_lhs(refs[0], x, load_staged_rhs=staged)
        else:
            pltpu.matmul_acc_lhs(0, x, self.number, load_staged_rhs=staged)

    def pop(self, refs):
        return pltpu.matmul_pop(*(refs if BY_REF else (0, (N, N), self.dtype, self.number)))


def call(kernel, unit, *args, dtype=jnp.float32, outs=1):
    """Under a TPU that has accumulators, which JAX asks about."""
    said = {"device_kind": "TPU7x", "num_cores": 1, "platform": "tpu"}
    known = jax.sharding.AbstractDevice.__dataclass_fields__ if HAS_UNIT else {}
    device = jax.sharding.AbstractDevice(**{k: v for k, v in said.items() if k in known})
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh) if BY_REF else contextlib.nullcontext():
        f = pl.pallas_call(
            kernel, [struct(N, N, dtype=dtype)] * outs, scratch_shapes=unit.scratch()
        )
        return evaluate(f, *args)


if HAS_UNIT:

    @pytest.mark.parametrize("transpose", [False, True])
    def test_one_product(transpose):
        unit = Unit(0)

        def kernel(x, y, out, *acc):
            pltpu.matmul_push_rhs(y[...], 0, 0, transpose=transpose)
            unit.accumulate(acc, x[...], 0)
            out[...] = unit.pop(acc)

        x, y = integers(0, N, N, dtype=jnp.bfloat16), integers(1, N, N, dtype=jnp.bfloat16)
        want = x.astype("f4") @ (y.T if transpose else y).astype("f4")
        for (got,) in call(kernel, unit, x, y):
            np.testing.assert_array_equal(got, want)

    def test_sums_stay_until_they_are_popped():
        unit = Unit(1)

        def kernel(x, y, first, second, *acc):
            pltpu.matmul_push_rhs(y[...], 1, 1)
            unit.accumulate(acc, x[...], 1)
            pltpu.matmul_push_rhs(2 * y[...], 1, 1)  # staged, not loaded
            unit.accumulate(acc, x[...], None)
            first[...] = unit.pop(acc)
            unit.accumulate(acc, x[...], 1)
            second[...] = unit.pop(acc)

        x, y = integers(0, N, N, dtype=jnp.bfloat16), integers(1, N, N, dtype=jnp.bfloat16)
        want = 2 * x.astype("f4") @ y.astype("f4")
        for first, second in call(kernel, unit, x, y, outs=2):
            np.testing.assert_array_equal(first, want)
            np.testing.assert_array_equal(second, want)

    def test_a_register_without_contents():
        unit = Unit(0)

        def kernel(x, out, *acc):
            unit.accumulate(acc, x[...], 0)
            out[...] = unit.pop(acc)

        with pytest.raises(Unsupported, match="nothing was written to"):
            call(kernel, unit, integers(0, N, N, dtype=jnp.bfloat16))


if hasattr(pltpu, "conv"):

    def test_convolution():
        options = {"window_strides": (2, 1), "padding": ((1, 0), (0, 2)), "rhs_dilation": (1, 2)}
        names = ("NHWC", "HWIO", "NHWC")

        def f(x, y, acc):
            return pltpu.conv(
                x, y, acc, dimension_numbers=names, window_reversal=(False, True), **options
            )

        def reference(x, y, acc):
            return acc + jax.lax.conv_general_dilated(
                x, y[:, ::-1], dimension_numbers=names, **options
            )

        args = integers(0, 2, 6, 7, 3, dtype=np.float32), integers(1, 3, 2, 3, 4, dtype=np.float32)
        acc = np.ones(jax.eval_shape(reference, *args, np.float32(0)).shape, np.float32)
        for (got,) in evaluate(f, *args, acc):
            np.testing.assert_array_equal(got, reference(*args, acc))


if hasattr(pltpu, "has_memory_space"):

    def test_where_an_array_is():
        def kernel(x, out):
            spaces = (pltpu.HBM, pltpu.VMEM)
            out[...] = jnp.stack([pltpu.has_memory_space(x, s) for s in spaces]).astype(jnp.int32)

        f = pl.pallas_call(
            kernel, struct(2, dtype=jnp.int32), in_specs=[pl.BlockSpec(memory_space=pl.ANY)]
        )
        for (got,) in evaluate(f, integers(0, 8)):
            assert got.tolist() == [1, 0]


def test_a_queue_is_refused():
    if hasattr(pltpu, "matmul_lhs_fifo"):

        def kernel(x, out):
            pltpu.matmul_lhs_fifo(x[...], 0, load_staged_rhs=0)
            out[...] = x[...]

        f = pl.pallas_call(kernel, struct(8, 8))
        with pytest.raises(Unsupported, match="the queue of a TPU's matrix unit"):
            lower(jax.make_jaxpr(f)(np.zeros((8, 8), np.float32)))
