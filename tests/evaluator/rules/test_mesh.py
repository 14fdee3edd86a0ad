"""Kernels on the cores of a mesh against JAX's TPU interpreter."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.rules import Unsupported
from tests.kernels.harness import evaluate
from tests.oracle import compare

X = jnp.arange(4 * 8 * 128, dtype=jnp.float32).reshape(4, 8, 128)
semaphore_signal = getattr(pl, "semaphore_signal", None) or pltpu.semaphore_signal
semaphore_wait = getattr(pl, "semaphore_wait", None) or pltpu.semaphore_wait


def cores(count):
    return pltpu.create_tensorcore_mesh("core", num_cores=count)


def on_cores(body, count, *args, **kwargs):
    """``body(*refs)`` as a core_map; the last argument's new contents."""

    def f(*arrays):
        @pl.run_state
        def run(refs):
            pl.core_map(cores(count), **kwargs)(lambda *scratch: body(*refs, *scratch))

        return run(arrays)[-1]

    return f


def check(f, *args, want=None):
    """``f`` is made for JAX's TPU interpreter, and the evaluator doesn't care."""
    want = jax.jit(f)(*args) if want is None else want
    for got in evaluate(f, *args):
        compare(got[0], np.asarray(want))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("count", [1, 2])
def test_each_core_copies_its_part(count):
    def body(x, o):
        i = jax.lax.axis_index("core")
        pltpu.sync_copy(x.at[i], o.at[i + jax.lax.axis_size("core")])

    check(on_cores(body, count, interpret=pltpu.InterpretParams()), X, jnp.zeros_like(X))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_cores_have_memory_of_their_own():
    def body(x, o):
        def scoped(mine, sem):
            pltpu.async_copy(x.at[jax.lax.axis_index("core")], mine, sem).wait()
            mine[...] = 2 * mine[...] + 1
            pltpu.sync_copy(mine, o.at[jax.lax.axis_index("core")])

        pl.run_scoped(scoped, pltpu.VMEM((8, 128), X.dtype), pltpu.SemaphoreType.DMA)

    check(on_cores(body, 2, interpret=pltpu.InterpretParams()), X, jnp.zeros_like(X))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("count", [1, 2])
def test_a_core_may_wait_for_itself(count):
    def body(x, o):
        def scoped(sem):
            semaphore_signal(sem, 2)
            semaphore_wait(sem, 2)
            pltpu.sync_copy(x, o)

        pl.run_scoped(scoped, pltpu.SemaphoreType.REGULAR)

    check(on_cores(body, count, interpret=pltpu.InterpretParams()), X, jnp.zeros_like(X), want=X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_core_alone_may_signal_itself_by_name():
    def body(x, o):
        def scoped(sem):
            semaphore_signal(sem, device_id={"core": 0})
            semaphore_wait(sem, 1)
            pltpu.sync_copy(x, o)

        pl.run_scoped(scoped, pltpu.SemaphoreType.REGULAR)

    check(on_cores(body, 1), X, jnp.zeros_like(X), want=X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_array_that_a_core_closes_over_is_refused_as_by_jax():
    def f(x, y):
        def body(o):
            o[...] += y

        return on_cores(body, 1)(x)

    # Newer versions of JAX refuse it already when they trace it.
    with pytest.raises((Unsupported, ValueError), match="captures .*(arrays|constants)"):
        lower(jax.make_jaxpr(f)(X, X))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_collective_among_one_core():
    def body(x, o):
        def scoped(mine):
            pltpu.sync_copy(x, mine)
            total = jax.lax.psum(mine[...], "core") + jax.lax.pmax(mine[...], "core")
            mine[...] = total + jax.lax.all_gather(mine[...], "core").sum(0)
            pltpu.sync_copy(mine, o)

        pl.run_scoped(scoped, pltpu.VMEM(X.shape, X.dtype))

    check(on_cores(body, 1), X, jnp.zeros_like(X), want=3 * X)
    with pytest.raises(Unsupported, match="psum: between the cells of the axis 'core'"):
        lower(jax.make_jaxpr(on_cores(body, 2))(X, X))


if hasattr(pl, "kernel"):  # JAX >= 0.8.1
    PARAMETERS = inspect.signature(pl.kernel).parameters
    OUT, SCRATCH = (n if n in PARAMETERS else n.replace("type", "shape")  # JAX < 0.10.1
                    for n in ("out_type", "scratch_types"))  # fmt: skip

    @pytest.mark.parametrize("count", [1, 2])
    def test_a_kernel_on_a_mesh_with_scratch_and_a_scalar(count):
        out = jax.ShapeDtypeStruct(X.shape, X.dtype)

        def f(x, step):
            @functools.partial(
                pl.kernel,
                mesh=cores(count),
                **{
                    OUT: out,
                    SCRATCH: [pltpu.VMEM((8, 128), X.dtype), pltpu.SemaphoreType.DMA],
                },
            )
            def run(x, o, mine, sem):
                for i in range(4 // count):
                    at = jax.lax.axis_index("core") * (4 // count) + i
                    pltpu.async_copy(x.at[(at + step) % 4], mine, sem).wait()
                    mine[...] += 1
                    pltpu.sync_copy(mine, o.at[at])

            return run(x)

        # JAX's interpreter takes a core's index for an int16, and can't add it to the scalar.
        check(f, X, jnp.int32(3), want=jnp.roll(X, 1, 0) + 1)

    @pytest.mark.skipif(OUT == "out_shape", reason="JAX < 0.10.1 wants a result")
    def test_a_kernel_that_writes_to_a_ref_of_the_callers():
        def f(x):
            ref = jax.new_ref(x)

            @functools.partial(pl.kernel, mesh=cores(1), interpret=pltpu.InterpretParams())
            def run(ref):
                def scoped(mine):
                    pltpu.sync_copy(ref, mine)
                    mine[...] = mine[...] * 3
                    pltpu.sync_copy(mine, ref)

                pl.run_scoped(scoped, pltpu.VMEM(x.shape, x.dtype))

            run(ref)
            return jax.freeze(ref)

        check(f, X)


def test_names_of_the_grids_axes():
    def kernel(x, o):
        place = 10 * jax.lax.axis_index("rows") + jax.lax.axis_index("columns")
        o[...] = x[...] + place.astype(jnp.float32)

    spec = pl.BlockSpec((1, 8, 128), lambda i, j: (2 * i + j, 0, 0))
    call = pl.pallas_call(
        kernel,
        grid=(("rows", 2), ("columns", 2)),
        in_specs=[spec],
        out_specs=spec,
        out_shape=jax.ShapeDtypeStruct(X.shape, X.dtype),
    )
    check(call, X, want=X + jnp.float32([0, 1, 10, 11])[:, None, None])


def test_an_axis_of_devices_is_refused_by_name():
    def kernel(x, o):
        o[...] = x[...] + jax.lax.axis_index("devices").astype(jnp.float32)

    def f(x):
        return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(X.shape, X.dtype))(x)

    jaxpr = jax.make_jaxpr(f, axis_env=[("devices", 2)])(X)
    with pytest.raises(Unsupported, match="axis_index: the axis 'devices' is of devices"):
        lower(jaxpr)
