"""Grids that the two cores of a TPU share, checked."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tests.check.faults import ANY, BY_ROWS, floats, out, parallel
from tests.check.harness import check

signal = getattr(pl, "semaphore_signal", None) or pltpu.semaphore_signal
wait = getattr(pl, "semaphore_wait", None) or pltpu.semaphore_wait


def running_sum(starts: str):
    """The sum of the rows until here; it starts again ``starts``: "once", or "each" time."""

    def kernel(x_ref, o_ref, total_ref):
        @pl.when((pl.program_id(1) == 0) & ((starts == "each") | (pl.program_id(0) == 0)))
        def _():
            total_ref[...] = jnp.zeros_like(total_ref)

        total_ref[...] += x_ref[...]
        o_ref[...] = total_ref[...]

    row = pl.BlockSpec((8, 128), lambda i, j: (2 * i + j, 0))
    return pl.pallas_call(
        kernel, out(32, 128), grid=(2, 2), in_specs=[row], out_specs=row,
        scratch_shapes=[pltpu.VMEM((8, 128), jnp.float32)],
        compiler_params=parallel("parallel", "arbitrary"),
    )  # fmt: skip


def test_a_sum_that_each_core_starts():
    checked = check(running_sum("each"), floats(32, 128), tpu_cores=2)
    assert not checked.findings and not checked.not_checked


def test_a_sum_that_only_one_core_starts():
    x = floats(32, 128)
    checked = check(running_sum("once"), x, tpu_cores=2)
    assert checked.rules == ["races/carried-over-parallel"]
    (finding,) = checked.findings
    assert finding.ref == "total_ref" and finding.accesses[0].cell == (1, 0)
    (got,) = checked.results
    np.testing.assert_array_equal(np.isnan(got[::8, 0]), [False, False, True, True])


@pytest.mark.filterwarnings("ignore:the Pallas kernel")
@pytest.mark.parametrize("left_out", [None, "signal", "wait", "both"])
def test_cores_that_exchange_what_they_wrote(left_out):
    def kernel(x_ref, o_ref, both_ref, semaphore, copied):
        core = pl.program_id(0)
        pltpu.make_async_copy(x_ref, both_ref.at[core], copied).start()
        pltpu.make_async_copy(x_ref, both_ref.at[core], copied).wait()
        if left_out not in ("signal", "both"):
            signal(semaphore, 1, core_index=1 - core)
        if left_out not in ("wait", "both"):
            wait(semaphore, 1)
        pltpu.make_async_copy(both_ref.at[1 - core], o_ref, copied).start()
        pltpu.make_async_copy(both_ref.at[1 - core], o_ref, copied).wait()

    f = pl.pallas_call(
        kernel, [out(16, 128), out(2, 8, 128)], grid=(2,), in_specs=[BY_ROWS],
        out_specs=[BY_ROWS, ANY],
        scratch_shapes=[pltpu.SemaphoreType.REGULAR, pltpu.SemaphoreType.DMA],
        compiler_params=parallel("core_parallel"),
    )  # fmt: skip
    x = floats(16, 128)
    if left_out == "signal":
        with pytest.raises(Exception, match="semaphore"):
            check(f, x, tpu_cores=2)
        return
    checked = check(f, x, tpu_cores=2)
    if left_out is None:
        assert not checked.findings and not checked.not_checked
        np.testing.assert_array_equal(checked.results[0], np.roll(x, 8, 0))
    if left_out == "wait":
        assert {"sync/semaphore-left", "races/copy-unordered"} <= set(checked.rules), checked.rules
    if left_out == "both":
        assert "races/cells" in checked.rules, checked.rules


FAULTS = {
    None: None,
    "a slice outside": ("bounds/outside-ref", "x_ref", (1, 0)),
    "a block outside": ("bounds/block-outside", "x_ref", (1, 0)),
    "scratch that nobody wrote": ("uninitialized/read-before-write", "own_ref", (0, 0)),
    "a row that one core leaves out": ("uninitialized/never-written", "both_ref", None),
    "a block that one core leaves out": ("uninitialized/never-written", "o_ref", None),
    "a block that comes back": ("blocks/revisited-block", "o_ref", None),
}


@pytest.mark.filterwarnings("ignore:the Pallas kernel")
@pytest.mark.parametrize("fault", FAULTS)
def test_what_cores_that_wait_do_wrongly(fault):
    """Both cores write a row, and read the other's. Each has two cells, and one block."""

    def kernel(at_ref, x_ref, o_ref, both_ref, own_ref, semaphore, copied):
        core, i = pl.program_id(0), pl.program_id(1)
        rows = pl.ds(jnp.where((core == 1) & (fault == "a slice outside"), at_ref[0], 0), 8)
        if fault != "scratch that nobody wrote":
            own_ref[...] = x_ref[rows]

        @pl.when((i == 0) & ((core == 0) | (fault != "a row that one core leaves out")))
        def _():
            pltpu.make_async_copy(own_ref, both_ref.at[core], copied).start()
            pltpu.make_async_copy(own_ref, both_ref.at[core], copied).wait()

        @pl.when(i == 0)
        def _():
            signal(semaphore, 1, core_index=1 - core)
            wait(semaphore, 1)

        pltpu.make_async_copy(both_ref.at[1 - core], own_ref, copied).start()
        pltpu.make_async_copy(both_ref.at[1 - core], own_ref, copied).wait()

        @pl.when((i < 2) & ((core == 0) | (fault != "a block that one core leaves out")))
        def _():
            o_ref[...] = own_ref[...] * 2

    factor = 2 if fault == "a block outside" else 1
    o_map = (lambda i, j, at: (2 * i + j % 2, 0)) if "comes back" in str(fault) else None
    grid = (2, 3 if o_map else 2)
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, grid=grid,
        in_specs=[pl.BlockSpec((8, 128), lambda i, j, at: (factor * i, 0))],
        out_specs=[pl.BlockSpec((8, 128), o_map or (lambda i, j, at: (i, 0))), ANY],
        scratch_shapes=[pltpu.VMEM((8, 128), jnp.float32), pltpu.SemaphoreType.REGULAR,
                        pltpu.SemaphoreType.DMA],
    )  # fmt: skip
    f = pl.pallas_call(
        kernel, [out(32 if o_map else 16, 128), out(2, 8, 128)], grid_spec=grid_spec,
        compiler_params=parallel("parallel", "arbitrary"),
    )
    x = floats(16, 128)
    checked = check(f, jnp.int32([4]), x, tpu_cores=2)
    assert not checked.not_checked
    if fault is None:
        assert not checked.findings
        np.testing.assert_array_equal(checked.results[0], 2 * np.roll(x, 8, 0))
        return
    rule, ref, cell = FAULTS[fault]
    (finding,) = [f for f, name in zip(checked.findings, checked.rules, strict=True)
                  if name == rule]  # fmt: skip
    assert finding.ref == ref
    if cell is not None:
        assert finding.accesses[0].cell == cell
