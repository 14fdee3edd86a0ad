"""Programs in several orders of copies: the right ones compute the same, the others are found."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.evaluator import compiler, schedules
from pallas_shim.evaluator.execute import Executable
from pallas_shim.evaluator.lower import lower
from pallas_shim.evaluator.machine import order
from pallas_shim.evaluator.machine.order import Order
from pallas_shim.evaluator.machine.scheduler import Deadlock

X = np.arange(2 * 8 * 128, dtype=np.float32).reshape(2, 8, 128)
HBM = pl.BlockSpec(memory_space=pl.ANY)
DMA = pltpu.SemaphoreType.DMA


def jaxpr_of(kernel, *scratch, out=HBM, interpret=False):
    call = pl.pallas_call(
        kernel, out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32), in_specs=[HBM],
        out_specs=out, scratch_shapes=list(scratch), interpret=interpret,
    )  # fmt: skip
    return jax.make_jaxpr(call)(jnp.asarray(X))


def timed(kernel, *scratch, **kwargs):
    return Executable(lower(jaxpr_of(kernel, *scratch, **kwargs), timed=True), lambda _: False)


VMEM = pltpu.VMEM((8, 128), jnp.float32)
WHOLE = pl.BlockSpec(memory_space=pltpu.VMEM)


def waits(x, o, buf, sem):
    copy = pltpu.make_async_copy(x.at[0], buf, sem)
    copy.start()
    copy.wait()
    o[...] = buf[...] + 1


def reads_early(x, o, buf, sem):
    copy = pltpu.make_async_copy(x.at[0], buf, sem)
    copy.start()
    o[...] = buf[...] + 1
    copy.wait()


def overwrites_the_source(x, o, buf, sem):
    buf[...] = jnp.ones_like(buf)
    copy = pltpu.make_async_copy(buf, o, sem)
    copy.start()
    buf[...] = 2 * jnp.ones_like(buf)
    copy.wait()


def two_to_one_place(x, o, sems):
    copies = [pltpu.make_async_copy(x.at[i], o, sems.at[i]) for i in range(2)]
    for copy in copies:
        copy.start()
    for copy in copies:
        copy.wait()


def one_after_the_other(x, o, sems):
    for i in range(2):
        copy = pltpu.make_async_copy(x.at[i], o, sems.at[i])
        copy.start()
        copy.wait()


def side_by_side(x, o, a, b, sems):
    """Two copies under way at once, waited for the other way round."""
    copies = [pltpu.make_async_copy(x.at[i], to, sems.at[i]) for i, to in enumerate((a, b))]
    for copy in copies:
        copy.start()
    for copy in reversed(copies):
        copy.wait()
    o[...] = a[...] + b[...]


RIGHT = {
    "waits": (waits, (VMEM, DMA), WHOLE, X[0] + 1),
    "one_after_the_other": (one_after_the_other, (DMA((2,)),), HBM, X[1]),
    "side_by_side": (side_by_side, (VMEM, VMEM, DMA((2,))), WHOLE, X[0] + X[1]),
}
WRONG = {
    "reads_early": (reads_early, (VMEM, DMA), WHOLE),
    "overwrites_the_source": (overwrites_the_source, (VMEM, DMA), HBM),
    "two_to_one_place": (two_to_one_place, (DMA((2,)),), HBM),
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("checked", [False, True])
def test_right_kernels_compute_the_same_in_all_orders(name, checked):
    kernel, scratch, out, want = RIGHT[name]
    interpret = pltpu.InterpretParams() if checked and out is WHOLE else False
    executable = timed(kernel, *scratch, out=out, interpret=interpret)
    found = schedules.explore(executable, [X], 300)
    assert found.other is None and found.complete, found
    assert 3 <= found.runs < 300
    for each in (order.OWN_ORDER, order.LATE, Order(5)):
        with order.running(each):
            np.testing.assert_array_equal(executable(X)[0], want)


def test_all_orders_are_tried_if_there_are_no_more_than_asked_for():
    kernel, scratch, out, _ = RIGHT["side_by_side"]
    executable = timed(kernel, *scratch, out=out)
    number = schedules.explore(executable, [X], 300).runs
    assert 20 < number < 150
    assert schedules.explore(executable, [X], number) == (None, "", number, True)
    assert not schedules.explore(executable, [X], number - 1).complete


@pytest.mark.parametrize("name", WRONG)
def test_wrong_kernels_are_found_and_both_results_come_again(name):
    kernel, scratch, out = WRONG[name]
    executable = timed(kernel, *scratch, out=out)
    for count, seed in ((100, 0), (12, 7)):
        found = schedules.explore(executable, [X], count, seed)
        assert found.other is not None, found
        results = []
        for each in (order.OWN_ORDER, found.other, order.parse(str(found.other))):
            with order.running(each):
                results.append(executable(X)[0])
        assert results[0].tobytes() != results[1].tobytes()
        assert results[1].tobytes() == results[2].tobytes()


def test_seeds_draw_orders_and_draw_them_again():
    executable = timed(reads_early, VMEM, DMA, out=WHOLE)
    seen = []
    for _ in range(2):
        row = []
        for seed in range(12):
            with order.running(Order(seed)):
                row.append(executable(X)[0].tobytes())
        seen.append(row)
    assert seen[0] == seen[1] and len(set(seen[0])) == 2


def test_a_wait_without_a_copy_is_a_deadlock():
    def kernel(x, o, buf, sem):
        pltpu.make_async_copy(x.at[0], buf, sem).wait()
        o[...] = buf[...]

    executable = timed(kernel, VMEM, DMA, out=WHOLE)
    with pytest.raises(Deadlock, match="waits for sem, which has 0 and needs 1024"):
        schedules.explore(executable, [X], 10)


@pytest.mark.parametrize(
    "text", ["early", "late", "0", "17", "choices:", "choices:0,2,1"]
)
def test_an_order_is_its_text(text):
    assert str(order.parse(text)) == text


def test_a_finding_names_the_kernel_and_both_orders():
    found: list[object] = []
    asked = schedules.Schedules(20, 0, "reads_early", "here.py:3", lambda *why: None)
    options = compiler.Options(schedules=asked, found=found.append)
    executable = compiler.compile(
        jaxpr_of(reads_early, VMEM, DMA, out=WHOLE), name="f", options=options
    )
    np.testing.assert_array_equal(executable(X)[0], X[0] + 1)
    executable(X)
    (finding,) = found
    assert (finding.kind, finding.rule, finding.kernel) == (
        "races", "order-dependent", "reads_early",
    )  # fmt: skip
    assert "its result 0 is 1.0 at [0, 0] in the order early, and nan" in finding.message
    assert "PALLAS_NUMPY_SEED=late" in finding.advice


def test_what_calls_back_is_not_run_again():
    calls, skipped = [], []

    def kernel(x, o, buf, sem):
        waits(x, o, buf, sem)
        jax.debug.callback(lambda: calls.append(1))

    asked = schedules.Schedules(20, 0, "kernel", None, lambda *why: skipped.append(why))
    options = compiler.Options(schedules=asked)
    jaxpr = jaxpr_of(kernel, VMEM, DMA, out=WHOLE)
    compiler.compile(jaxpr, name="f", options=options)(X)
    assert calls == [1]
    assert "calls back to the host" in skipped[0][1]


def test_copies_that_happen_when_they_are_waited_for():
    """As ``InterpretParams`` asks by default. A right kernel goes on with copies at once."""
    for kernel, want in ((waits, X[0] + 1), (reads_early, np.full((8, 128), np.nan, np.float32))):
        options = compiler.Options(late=True)
        jaxpr = jaxpr_of(kernel, VMEM, DMA, out=WHOLE, interpret=pltpu.InterpretParams())
        executable = compiler.compile(jaxpr, name="f", options=options)
        for _ in range(2):
            np.testing.assert_array_equal(executable(X)[0], want)
        assert isinstance(executable, schedules.LateExecutable)
        at_once = executable._chosen is executable._at_once
        assert at_once == (kernel is waits)
