"""Pallas TPU primitives against JAX's interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import tpu_sc as plsc

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.rules import Unsupported
from pallas_shim.evaluator.scalar_types import bit_width
from pallas_shim.jax_compat import primitive_name
from tests.oracle import check_kernel, compare

X = jnp.arange(8 * 128, dtype=jnp.int32).reshape(8, 128)
LIKE_X = jax.ShapeDtypeStruct(X.shape, X.dtype)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shift", [0, 3, 130])
def test_roll(axis, shift):
    def kernel(x, o):
        o[...] = pltpu.roll(x[...], shift, axis)

    check_kernel(kernel, LIKE_X, X)


@pytest.mark.parametrize("axis, stride_axis", [(1, 0), (0, 1)])
@pytest.mark.parametrize("stride", [1, 3])
def test_strided_roll(axis, stride_axis, stride):
    def kernel(x, o):
        o[...] = pltpu.roll(x[...], 5, axis, stride=stride, stride_axis=stride_axis)

    x = X[:6, :9]  # JAX's rule rolls each row by itself, and XLA compiles them all
    check_kernel(kernel, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


if hasattr(pltpu, "repeat"):

    @pytest.mark.parametrize("axis", [0, -1])
    def test_repeat_is_a_tpus_where_no_interpreter_was_asked_for(axis):
        def kernel(x_ref, o_ref):
            o_ref[...] = pltpu.repeat(x_ref[...], 3, axis=axis)

        def results(interpret):
            call = pl.pallas_call(kernel, out_shape=out, interpret=interpret)
            return Executable(lower(jax.make_jaxpr(call)(X)))(np.asarray(X))[0], call

        shape = list(X.shape)
        shape[axis] *= 3
        out = jax.ShapeDtypeStruct(tuple(shape), X.dtype)
        np.testing.assert_array_equal(results(False)[0], jnp.concatenate([X] * 3, axis))
        interpreted, call = results(True)
        np.testing.assert_array_equal(interpreted, jax.jit(call)(X))


def test_roll_by_a_dynamic_shift():
    def kernel(s, x, o):
        o[...] = pltpu.roll(x[...], s[0], 1)

    check_kernel(kernel, LIKE_X, jnp.int32([77]), X)


@pytest.mark.parametrize("to", ["float32", "uint32", "int16", "int8", "int4", "uint4"])
def test_bitcast(to):
    out = jax.eval_shape(lambda: jnp.zeros((8 * 32 // bit_width(jnp.dtype(to)), 128), to))

    def kernel(x, o):
        o[...] = pltpu.bitcast(x[...], jnp.dtype(to))

    check_kernel(kernel, out, X)


def test_widening_bitcast():
    def kernel(x, o):
        o[...] = pltpu.bitcast(x[...], jnp.int32)

    x = jnp.arange(16 * 128, dtype=jnp.int16).reshape(16, 128)
    check_kernel(kernel, jax.ShapeDtypeStruct((8, 128), jnp.int32), x)


@pytest.mark.parametrize("to", ["uint4", "int8", "bfloat16", "float32"])
def test_bitcast_of_four_bits(to):
    x = jnp.arange(-8, 1016).reshape(8, 128).astype(jnp.int4)
    out = jax.eval_shape(lambda: jnp.zeros((32 // bit_width(jnp.dtype(to)), 128), to))

    def kernel(x, o):
        o[...] = pltpu.bitcast(x[...], jnp.dtype(to))

    check_kernel(kernel, out, x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("to", ["float32", "int16", "uint8"])
def test_sparsecores_bitcast_is_of_the_last_dimension(to):
    def kernel(x, o):
        o[...] = plsc.bitcast(x[...], jnp.dtype(to))

    want = np.asarray(X).view(to)
    out = jax.ShapeDtypeStruct(want.shape, want.dtype)
    jaxpr = jax.make_jaxpr(pl.pallas_call(kernel, out_shape=out))(X)
    (got,) = Executable(lower(jaxpr))(np.asarray(X))
    compare(got, want)


def test_what_sparsecore_calls_a_gather_is_no_gather():
    assert primitive_name(plsc.load_gather.__globals__["gather_p"]) == "sparsecore_gather"
    assert primitive_name(jax.lax.gather_p) == "gather"


@pytest.mark.parametrize("approx", [False, True])
def test_reciprocal(approx):
    def kernel(x, o):
        o[...] = pl.reciprocal(x[...], approx=approx)

    x = jnp.linspace(-3, 3, 8 * 128, dtype=jnp.float32).reshape(8, 128)
    check_kernel(kernel, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


ANY = pl.BlockSpec(memory_space=pl.ANY)


def test_dma_between_slices_counts_on_its_semaphore():
    def kernel(x, o, count, scratch, sem):
        load = pltpu.make_async_copy(x.at[pl.ds(2, 4)], scratch.at[1], sem)
        load.start()
        load.wait()
        store = pltpu.make_async_copy(scratch.at[1], o.at[pl.ds(4, 4)], sem)
        rest = pltpu.make_async_copy(x.at[pl.ds(0, 4)], o.at[pl.ds(0, 4)], sem)
        store.start()
        rest.start()
        store.wait()
        rest.wait()
        count[0] = pl.semaphore_read(sem) if hasattr(pl, "semaphore_read") else 0

    check_kernel(
        kernel,
        (LIKE_X, jax.ShapeDtypeStruct((1,), jnp.int32)),
        X,
        in_specs=[ANY],
        out_specs=(ANY, pl.BlockSpec(memory_space=pltpu.SMEM)),
        scratch_shapes=[pltpu.VMEM((2, 4, 128), jnp.int32), pltpu.SemaphoreType.DMA],
    )


def test_a_regular_semaphore():
    signal = getattr(pl, "semaphore_signal", None) or pltpu.semaphore_signal
    wait = getattr(pl, "semaphore_wait", None) or pltpu.semaphore_wait
    read = getattr(pl, "semaphore_read", None) or pltpu.semaphore_read

    def kernel(o, sems):
        signal(sems.at[1], 5)
        wait(sems.at[1], 2)
        o[0] = read(sems.at[0])
        o[1] = read(sems.at[1])

    check_kernel(
        kernel,
        jax.ShapeDtypeStruct((2,), jnp.int32),
        out_specs=pl.BlockSpec(memory_space=pltpu.SMEM),
        scratch_shapes=[pltpu.SemaphoreType.REGULAR((3,))],
    )


def test_a_copy_to_another_device_is_refused_by_name():
    def kernel(x, o, send, receive):
        copy = pltpu.make_async_remote_copy(x, o, send, receive, device_id=(0,))
        copy.start()
        copy.wait()

    call = pl.pallas_call(
        kernel,
        out_shape=LIKE_X,
        in_specs=[ANY],
        out_specs=ANY,
        scratch_shapes=[pltpu.SemaphoreType.DMA] * 2,
    )
    with pytest.raises(Unsupported, match="dma_start: .*another device"):
        lower(jax.make_jaxpr(call)(X))
