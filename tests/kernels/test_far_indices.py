"""Indices that 32 bits don't hold, or that no array has: what JAX's interpreter makes of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.passes import optimise
from tests.oracle import x64

X = np.arange(16, dtype=np.int32)


def check(f, *args):
    jaxpr = jax.make_jaxpr(f)(*args)
    want = [np.asarray(x) for x in jax.jit(f)(*args)]
    program = lower(jaxpr)
    for each in (program, optimise(program)):
        for one, other in zip(Executable(each)(*args), want, strict=True):
            np.testing.assert_array_equal(one, other)


def indices(dtype):
    info = np.iinfo(dtype)
    values = {0, 15, 16, 100, info.max, info.max - 8, info.max // 2, info.max // 2 + 5,
              -1, -20, info.min, 1 << 29, (1 << 28) + 1, (1 << 35) + 3}  # fmt: skip
    return [np.array([v, 1], dtype) for v in sorted(values) if info.min <= v <= info.max]


def struct(size):
    return jax.ShapeDtypeStruct((size,), jnp.int32)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint16", "int32", "uint32", "int64", "uint64"])
def test_of_loads_and_stores(dtype):
    def element(at, x_ref, out_ref, changed_ref):
        out_ref[0] = x_ref[at[0]]
        changed_ref[...] = x_ref[...]
        changed_ref[at[0]] = -1

    def part(at, x_ref, out_ref, changed_ref):
        where = pl.ds(at[0], 3)
        out_ref[...] = x_ref[where]
        changed_ref[...] = x_ref[...]
        changed_ref[where] = jnp.full((3,), -1)

    with x64(dtype.endswith("64")):
        for kernel, size in ((element, 1), (part, 3)):
            call = pl.pallas_call(kernel, [struct(size), struct(16)], interpret=True)
            for at in indices(dtype):
                check(call, at, X)


def test_of_blocks():
    def kernel(at, x_ref, out_ref):
        out_ref[...] = x_ref[...]

    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(2,),
        in_specs=[pl.BlockSpec((8,), lambda i, at: (at[i],))],
        out_specs=[pl.BlockSpec((8,), lambda i, at: (i,))],
    )
    call = pl.pallas_call(kernel, [struct(16)], grid_spec=spec, interpret=True)
    for at in indices("int32"):
        check(lambda at, x: call(at, x), at, X)
