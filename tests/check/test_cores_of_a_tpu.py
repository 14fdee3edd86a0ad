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
        assert not checked.findings
        np.testing.assert_array_equal(checked.results[0], np.roll(x, 8, 0))
    if left_out == "wait":
        assert {"sync/semaphore-left", "races/copy-unordered"} <= set(checked.rules), checked.rules
    if left_out == "both":
        assert "races/cells" in checked.rules, checked.rules
