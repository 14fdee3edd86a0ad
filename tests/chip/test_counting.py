"""What kernels decide and copy while they run in NumPy, by source line."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim import dispatch
from pallas_shim.chip import counting, noting, scalar_unit
from pallas_shim.jax_compat import export_tpu
from tests.shimmed import shim  # noqa: F401

pytestmark = pytest.mark.usefixtures("shim")


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, np.float32)


def turns_kernel(n_ref, x_ref, o_ref):
    o_ref[...] = jnp.zeros_like(o_ref)

    def body(_, carry):
        o_ref[...] += x_ref[...]
        return carry

    jax.lax.fori_loop(0, n_ref[pl.program_id(0)], body, 0)


def turns(n, x):
    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=(4,),
        in_specs=[pl.BlockSpec((8, 128), lambda i, n: (i, 0))],
        out_specs=pl.BlockSpec((8, 128), lambda i, n: (i, 0)),
    )
    return pl.pallas_call(turns_kernel, grid_spec=spec, out_shape=shape(32, 128))(n, x)


def branch_kernel(x_ref, o_ref):
    o_ref[...] = x_ref[...]

    @pl.when(jnp.sum(x_ref[...]) > 0)
    def _():
        o_ref[...] = -x_ref[...]


def branches(x):
    block = pl.BlockSpec((8, 128), lambda i: (i, 0))
    return pl.pallas_call(
        branch_kernel, grid=(4,), in_specs=[block], out_specs=block, out_shape=shape(32, 128)
    )(x)


def choice_kernel(x_ref, o_ref):
    o_ref[...] = jax.lax.cond(
        jnp.sum(x_ref[...]) > 0, lambda: x_ref[...] + 1, lambda: x_ref[...] - 1
    )


def copy_kernel(x_ref, o_ref, buffer, semaphore):
    copy = pltpu.make_async_copy(x_ref.at[pl.ds(8, 8)], buffer, semaphore)
    copy.start()
    copy.wait()
    o_ref[...] = buffer[...]


def copied(x):
    return pl.pallas_call(
        copy_kernel,
        in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
        out_shape=shape(8, 128),
        scratch_shapes=[pltpu.VMEM((8, 128), np.float32), pltpu.SemaphoreType.DMA],
    )(x)


def counted(function, *args):
    """What the first of the function's kernels decided."""
    jaxpr = jax.make_jaxpr(function)(*args)
    (site, *_) = export_tpu.sites(jaxpr)
    counter = counting.Counter()
    jax.clear_caches()
    dispatch.observe(counter)
    try:
        results = [np.asarray(jax.jit(function)(*args)) for _ in range(2)]
    finally:
        dispatch.observe(None)
    np.testing.assert_array_equal(*results)  # the second run isn't watched
    return counter.executed(noting.key(site))


def line_of(function, text):
    lines, first = inspect.getsourcelines(function)
    return f"{__file__}:{first + next(n for n, line in enumerate(lines) if text in line)}"


def test_turns_of_loops_and_scalar_memory():
    n = np.array([3, 0, 2, 1], np.int32)
    found = counted(turns, n, np.ones((32, 128), np.float32))
    assert found.loops == {line_of(turns_kernel, "fori_loop"): [3, 0, 2, 1]}
    assert found.scalars == {0: [3, 0, 2, 1]}
    assert not found.branches and not found.copies


def test_branches():
    x = np.repeat(np.array([1, -1, -1, 1], np.float32), 8)[:, None] * np.ones((1, 128), np.float32)
    found = counted(branches, x)
    assert found.branches == {line_of(branch_kernel, "pl.when"): [True, False, False, True]}


def test_which_of_two_branches_is_not_told():
    call = pl.pallas_call(choice_kernel, out_shape=shape(8, 128))
    found = counted(call, np.ones((8, 128), np.float32))
    assert list(found.branches.values()) == [[]]


def test_copies():
    found = counted(copied, np.ones((32, 128), np.float32))
    assert found.copies == {line_of(copy_kernel, "copy.start()"): (1, 8 * 128 * 4)}


def test_two_dimensions_of_scalar_memory():
    words = counting._words(np.array([[1, 2], [3, 4]], np.int32))
    assert len(words) == 256 and words[:2] == [1, 2] and words[128:130] == [3, 4]
    for other in (np.zeros((2, 129), np.int32), np.zeros(3, np.float32), np.zeros(4, np.int8)):
        with pytest.raises(counting._Elsewhere):
            counting._words(other)


def test_what_decides_nothing_is_left_alone():
    block = pl.BlockSpec((8, 128), lambda i: (i, 0))

    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] + 1

    call = pl.pallas_call(
        kernel, grid=(4,), in_specs=[block], out_specs=block, out_shape=shape(32, 128)
    )
    assert counted(call, np.ones((32, 128), np.float32)) is scalar_unit.NOTHING
