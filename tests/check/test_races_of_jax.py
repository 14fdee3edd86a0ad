"""``InterpretParams(detect_races=True)`` says what JAX's detector says, without its interpreter."""

from __future__ import annotations

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.check.collect import COLLECTOR
from tests.shimmed import rungs, shim  # noqa: F401

ROWS, COLUMNS = 16, 128
FIELDS = set(pltpu.InterpretParams.__dataclass_fields__)
# Since JAX 0.12 a race is an error, if the user doesn't ask for a warning.
WARN = {"on_race": "warn"} if "on_race" in FIELDS else {}


def races_found() -> bool:
    name = "jax._src.pallas.mosaic.interpret.interpret_pallas_call"
    return sys.modules[name].races.races_found


def copied(x, right, **options):
    def kernel(x_ref, o_ref, buffer, sem):
        copy = pltpu.make_async_copy(x_ref, buffer, sem)
        copy.start()
        if right:
            copy.wait()
        o_ref[...] = buffer[...] * 2
        if not right:
            copy.wait()

    return pl.pallas_call(
        kernel, jax.ShapeDtypeStruct(x.shape, x.dtype),
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        scratch_shapes=[pltpu.VMEM(x.shape, x.dtype), pltpu.SemaphoreType.DMA],
        interpret=pltpu.InterpretParams(detect_races=True, **options),
    )(x)  # fmt: skip


@pytest.mark.parametrize("right", [True, False])
def test_a_copy(right, shim, capsys):  # noqa: F811
    COLLECTOR.clear()
    x = jnp.asarray(np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS))
    y = jax.jit(functools.partial(copied, right=right, **WARN))(x)
    if right:
        np.testing.assert_array_equal(np.asarray(y), 2 * np.asarray(x))
    assert races_found() is not right
    assert ("RACE DETECTED" in capsys.readouterr().out) is not right
    assert rungs() == {"numpy"}
    assert not COLLECTOR.findings()  # for which nobody asked


@pytest.mark.parametrize("cores", [1, 2])
def test_cells_of_a_parallel_axis(cores, shim):  # noqa: F811
    def kernel(x_ref, o_ref):
        @pl.when(pl.program_id(0) == 0)
        def _():
            o_ref[...] = jnp.zeros_like(o_ref)

        o_ref[...] += x_ref[...]

    names = {"num_cores_or_threads", "num_cores_per_device"}
    (name,) = names & FIELDS
    call = pl.pallas_call(
        kernel, jax.ShapeDtypeStruct((8, COLUMNS), jnp.float32), grid=(2,),
        in_specs=[pl.BlockSpec((8, COLUMNS), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((8, COLUMNS), lambda i: (0, 0)),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=pltpu.InterpretParams(detect_races=True, **WARN, **{name: cores}),
    )  # fmt: skip
    jax.block_until_ready(jax.jit(call)(jnp.ones((ROWS, COLUMNS), jnp.float32)))
    assert races_found() is (cores > 1)
    assert rungs() == {"numpy"}


@pytest.mark.skipif(not WARN, reason="this JAX only prints races")
def test_a_race_is_an_error(shim):  # noqa: F811
    x = jnp.ones((ROWS, COLUMNS), jnp.float32)
    f = jax.jit(functools.partial(copied, right=False))
    for _ in range(2):
        with pytest.raises(Exception, match="RACE DETECTED"):
            jax.block_until_ready(f(x))
    y = jax.jit(functools.partial(copied, right=True))(x)
    np.testing.assert_array_equal(np.asarray(y), 2 * np.asarray(x))
    assert rungs() == {"numpy"}
