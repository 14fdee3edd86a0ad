"""Pallas' own primitives, but for memory, against JAX's interpreter."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.xla_metadata import set_xla_metadata

from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.rules import Unsupported
from tests.kernels.harness import evaluate
from tests.oracle import compare

X = jnp.arange(8 * 128, dtype=jnp.float32).reshape(8, 128)
LIKE_X = jax.ShapeDtypeStruct(X.shape, X.dtype)
signal = getattr(pl, "semaphore_signal", None) or pltpu.semaphore_signal
wait = getattr(pl, "semaphore_wait", None) or pltpu.semaphore_wait
read = getattr(pl, "semaphore_read", None) or pltpu.semaphore_read
delay = getattr(pl, "delay", None) or pltpu.delay


def check(kernel, *args, want=None, interpret=True, out=LIKE_X, **kwargs):
    call = pl.pallas_call(kernel, out_shape=out, interpret=interpret, **kwargs)
    want = jax.jit(call)(*args) if want is None else want
    for got in evaluate(call, *args):
        compare(got[0], np.asarray(want))


def test_a_check_for_debugging_does_nothing():
    def kernel(x, o):
        pl.debug_check(jnp.all(x[...] < 0), "not negative")
        o[...] = x[...] + 1

    check(kernel, X)


def test_a_check_that_checkify_did_not_take_away_is_refused():
    def kernel(x, o):
        checkify.check(jnp.all(x[...] >= 0), "negative")
        o[...] = x[...]

    with pytest.raises(Unsupported, match="check: .*checkify"):
        lower(jax.make_jaxpr(pl.pallas_call(kernel, out_shape=LIKE_X))(X))


def test_a_delay_takes_no_time():
    def kernel(x, o):
        delay(10**9)
        o[...] = x[...] * 2

    check(kernel, X, want=2 * X)


def test_the_barrier_semaphore_is_one_for_all_cells():
    def kernel(x, o):
        barrier = pltpu.get_barrier_semaphore()
        signal(barrier, 2)

        @pl.when(pl.program_id(0) == 2)
        def _():
            o[...] = x[...] + read(pltpu.get_barrier_semaphore()).astype(jnp.float32)
            wait(barrier, 6)

    for _ in range(2):  # and starts from zero in every call
        check(kernel, X, grid=(3,), want=X + 6)


def test_the_platform_is_a_cpu():
    def kernel(x, o):
        o[...] = jax.lax.platform_dependent(
            x[...], cpu=lambda x: x + 1, tpu=lambda x: x + 2, default=lambda x: x + 3
        )
        o[...] += jax.lax.platform_dependent(x[...], tpu=jnp.sin, default=jnp.negative)

    check(kernel, X)


def test_spaces_and_dependencies_change_nothing():
    def f(x):
        x = pltpu.with_memory_space_constraint(x, pltpu.HBM)
        return pl.pallas_call(lambda x, o: pltpu.sync_copy(x, o), out_shape=LIKE_X)(x)

    for (got,) in evaluate(f, X):
        compare(got, np.asarray(X))


def test_metadata_change_nothing():
    for (got,) in evaluate(lambda x: set_xla_metadata(x + 1, note="a"), X):
        compare(got, np.asarray(X + 1))


def test_a_linear_call():
    def kernel(x, o):
        o[...] = jax.custom_derivatives.linear_call(
            lambda scale, x: scale * x, lambda scale, ct: ct / scale, x[0, 1], x[...]
        )

    check(kernel, X + 2)


if importlib.util.find_spec("jax.experimental.overlap"):  # JAX >= 0.11

    def test_an_order_of_communication_changes_nothing():
        overlap = importlib.import_module("jax.experimental.overlap")

        @functools.partial(overlap.program_order, enforce=False)
        def ordered(x):
            return pl.pallas_call(lambda x, o: pltpu.sync_copy(x, o), out_shape=LIKE_X)(x) * 2

        assert "program_order" in str(jax.make_jaxpr(ordered)(X))
        for (got,) in evaluate(ordered, X):
            compare(got, np.asarray(X * 2))


if hasattr(pltpu, "touch"):  # JAX >= 0.10

    def test_touch():
        def kernel(x, o):
            o[...] = x[...]
            pltpu.touch(o)

        check(kernel, X, want=X)


if hasattr(pltpu, "trace_value"):  # JAX >= 0.10

    def test_trace_value():
        def kernel(x, o):
            pltpu.trace_value("first", x[0, 0])
            o[...] = x[...]

        check(kernel, X, want=X)


if hasattr(pl, "get_global"):

    def test_a_global_semaphore_is_one_for_all_cells():
        def kernel(x, o):
            first = pl.get_global(pltpu.SemaphoreType.REGULAR)
            other = pl.get_global(pltpu.SemaphoreType.REGULAR)
            signal(first, 3)
            signal(other, 1)

            @pl.when(pl.program_id(0) == 1)
            def _():
                o[...] = x[...] + (10 * read(first) + read(other)).astype(jnp.float32)

        check(kernel, X, grid=(2,), want=X + 62)


if hasattr(pltpu, "einshape"):  # JAX >= 0.10

    def test_einshape():
        def kernel(x, o):
            o[...] = pltpu.einshape("a(bc)->bac", x[...], b=2)

        x = np.asarray(X)
        check(kernel, X, out=jax.ShapeDtypeStruct((2, 8, 64), X.dtype),
              want=x.reshape(8, 2, 64).transpose(1, 0, 2))

    def test_other_global_memory_is_refused():
        def kernel(o):
            o[...] = pl.get_global(pltpu.VMEM((8, 128), jnp.float32))[...]

        with pytest.raises(Unsupported, match="get_global: memory in vmem"):
            lower(jax.make_jaxpr(pl.pallas_call(kernel, out_shape=LIKE_X))())


if hasattr(jax.lax, "scaled_dot"):  # JAX >= 0.10

    def test_scaled_dot():
        def kernel(x, y, s, t, o):
            o[...] = jax.lax.scaled_dot(
                x[...], y[...], lhs_scale=s[...], rhs_scale=t[...],
                dimension_numbers=(((1,), (0,)), ((), ())), preferred_element_type=jnp.float32,
            )

        random = np.random.default_rng(0)
        x, y = (
            random.integers(-4, 5, shape).astype(jnp.float8_e4m3fn)
            for shape in [(8, 64), (64, 8)]
        )
        s, t = (2.0 ** random.integers(-2, 3, shape) for shape in [(8, 2), (2, 8)])
        scales = (s.astype(jnp.float8_e8m0fnu), t.astype(jnp.float8_e8m0fnu))
        check(kernel, x, y, *scales, out=jax.ShapeDtypeStruct((8, 8), jnp.float32))
