"""What a view says of kernels, and the page that shows it."""

from __future__ import annotations

import contextlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from pallas_shim import recording
from pallas_shim.recording import function
from pallas_shim.view import data, measures, page, perfetto
from tests.kernels import blocks, control, memory, numeric, refs, transforms
from tests.kernels.harness import abstract_tpu, cases
from tests.oracle import compare
from tests.shimmed import shim  # noqa: F401
from tests.view import kernels
from tests.view.kernels import numbers

pytestmark = pytest.mark.usefixtures("shim")


def recorded(call, *args):
    """The trace of a call, as the page has it, and what the call returned."""
    with recording.record("test") as trace:
        result = np.asarray(call(*args))
    (held,) = re.findall(
        r'<script type="application/json" id="trace">(.*?)</script>', page.render(trace), re.S
    )
    return json.loads(held), result


def only_run(data):
    (kernel,) = data["kernels"]
    (run,) = kernel["runs"]
    return kernel, run, {operand["name"]: operand for operand in run["operands"]}


def test_blocks_of_a_matmul():
    x, y = numbers(32, 64) / 999, numbers(64, 128) / 999
    data, result = recorded(kernels.matmul, x, y)
    np.testing.assert_allclose(result, x @ y, rtol=1e-5)
    kernel, run, operands = only_run(data)
    assert kernel["name"] == "matmul_kernel" and data["notes"] == kernel["notes"] == []
    assert run["grid"] == [4, 4, 4] and run["cells"] == run["recorded"] == 64
    cells = list(np.ndindex(4, 4, 4))
    for name, place in {
        "x_ref": lambda i, j, k: [8 * i, 16 * k],
        "y_ref": lambda i, j, k: [16 * k, 32 * j],
        "o_ref": lambda i, j, k: [8 * i, 32 * j],
    }.items():
        operand = operands[name]
        starts = [operand["blocks"][n] for n in operand["block_of_cell"]]
        assert starts == [place(*cell) for cell in cells]
        assert operand["coverage"]["never"] == operand["coverage"]["overlapped"] == 0
    assert operands["x_ref"]["coverage"]["returning"] == 16
    assert operands["o_ref"]["coverage"] == {
        "never": 0, "overlapped": 0, "partly": 0, "outside": 0, "revisited": 16, "returning": 0,
    }  # fmt: skip
    # Both inputs' blocks change with each cell; the output's after each fourth one.
    assert set(run["fetched"]) == {4 * (8 * 16 + 16 * 32)}
    assert run["written_back"] == [0, 0, 0, 4 * 8 * 32] * 16
    lines = [line["text"].strip() for line in kernel["lines"]]
    done = [
        {(lines[a["line"]], run["operands"][a["operand"]]["name"], a["kind"], a["nbytes"])
         for a in run["patterns"][pattern]} for pattern in run["pattern_of_cell"][:4]
    ]  # fmt: skip
    zero, add = (
        "acc_ref[...] = jnp.zeros_like(acc_ref)",
        ("acc_ref[...] += jnp.dot(x_ref[...], y_ref[...])"),
    )
    always = {
        (add, "x_ref", "reads", 512), (add, "y_ref", "reads", 2048),
        (add, "acc_ref", "reads", 1024), (add, "acc_ref", "writes", 1024),
    }  # fmt: skip
    out = "o_ref[...] = acc_ref[...]"
    assert done[0] == always | {(zero, "acc_ref", "writes", 1024)}
    assert done[1] == done[2] == always
    assert done[3] == always | {(out, "acc_ref", "reads", 1024), (out, "o_ref", "writes", 1024)}
    heat = operands["x_ref"]["heat"]
    assert {n for row in heat["reads"] for n in row} == {4}
    np.testing.assert_allclose(np.ravel(operands["o_ref"]["heat"]["values"])[:64],
                               np.ravel(x @ y)[:128].reshape(-1, 2).mean(1), rtol=1e-3)  # fmt: skip


def test_many_cells_make_a_small_page():
    x = numbers(10_000 * 4)
    with recording.record("test") as trace:
        result = kernels.add(x, x, 10_000)
    np.testing.assert_array_equal(result, x + x)
    text = page.render(trace)
    assert len(text) < 5_000_000
    run = trace.kernels[0].runs[0]
    assert run.recorded == run.cells == 10_000 and len(run.patterns) == 1
    assert run.operands[2].blocks[9_999] == (4 * 9_999,)


def test_more_cells_than_are_shown(monkeypatch):
    monkeypatch.setattr(function, "MOST_CELLS", 100)
    x = numbers(4096)
    data, result = recorded(kernels.add, x, x, 1024)
    np.testing.assert_array_equal(result, x + x)
    kernel, run, operands = only_run(data)
    assert run["recorded"] == 100 and run["cells"] == 1024
    assert kernel["notes"][0].startswith("The first 100 of 1,024 cells are shown")
    assert operands["x_ref"]["coverage"]["never"] == 4096 - 400


def test_blocks_that_are_looked_up():
    rows = np.array([7, 2, 2, 5], np.int32)
    x = numbers(8, 128)
    data, result = recorded(kernels.pick, rows, x)
    np.testing.assert_array_equal(result, x[rows] * 2)
    _, run, operands = only_run(data)
    assert operands["rows_ref"]["role"] == "prefetch"
    assert operands["x_ref"]["blocks"] == [[7, 0], [2, 0], [5, 0]]
    assert operands["x_ref"]["block_of_cell"] == [0, 1, 1, 2]
    assert operands["x_ref"]["coverage"]["never"] == 5 * 128
    assert run["fetched"] == [512, 512, 0, 512]  # the same block isn't fetched again


def test_copies_and_semaphores():
    x = numbers(32, 128)
    data, result = recorded(kernels.copies, x)
    np.testing.assert_array_equal(result, x * 2)
    kernel, run, operands = only_run(data)
    assert not operands["x_hbm"]["piped"] and operands["sem"]["dtype"] == "semaphore"
    copies = [event for event in kernel["events"] if event["kind"] == "copy"]
    waits = [event for event in kernel["events"] if event["kind"] == "wait"]
    assert len(copies) == len(waits) == 8
    assert {copy["nbytes"] for copy in copies} == {4096} and run["copied"] == [8 * 4096]
    assert all(copy["awaited"] for copy in copies)
    assert [copy["semaphore"] for copy in copies] == [
        "sem[0]", "sem[1]", "sem[2]", "sem[0]", "sem[2]", "sem[1]", "sem[2]", "sem[2]",
    ]  # fmt: skip
    assert copies[1]["text"] == "x_hbm[8:16, 0:128] → buf[1:2, 0:8, 0:128]"
    # The second copy is in flight while the first is used.
    first, second = copies[:2]
    assert first["start"] < second["start"] < first["end"] < second["end"]
    assert first["end"] == waits[0]["end"] and waits[0]["semaphore"] == "sem[0]"


def odd_kernel(x_ref, o_ref):
    o_ref[...] = jnp.full(o_ref.shape, x_ref[0, 0])


@jax.jit
def odd(x):
    return pl.pallas_call(
        odd_kernel,
        grid=(4,),
        in_specs=[pl.BlockSpec((4, 8), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((4, 8), lambda i: (i % 2, 0)),
        out_shape=jax.ShapeDtypeStruct((12, 8), jnp.float32),
        interpret=True,
    )(x)


def test_gaps_and_what_sticks_out():
    data, _ = recorded(odd, numbers(10, 8))
    _, run, operands = only_run(data)
    read = operands["x_ref"]["coverage"]
    assert (read["never"], read["partly"], read["outside"]) == (0, 1, 1)
    written = operands["o_ref"]["coverage"]
    assert (written["never"], written["revisited"], written["returning"]) == (4 * 8, 2, 2)
    assert operands["x_ref"]["heat"]["reads"][0][:2] == [1, 0]
    assert run["fetched"] == [128, 128, 64, 0]
    assert run["written_back"] == [128] * 4


def test_overlaps():
    coverage = measures.coverage((10,), (4,), [(0,), (2,), (8,)], [0, 1, 2, 0])
    assert (coverage.never, coverage.overlapped, coverage.partly) == (2, 2, 1)
    assert (coverage.revisited, coverage.returning) == (1, 1)


@jax.jit
def in_a_loop(x):
    return jax.lax.fori_loop(0, 3, lambda _, y: kernels.add(y, y, 2), x)


def test_a_kernel_that_runs_again():
    data, result = recorded(lambda x: [in_a_loop(x), in_a_loop(x)][1], numbers(8))
    np.testing.assert_array_equal(result, numbers(8) * 8)
    kernel, run, _ = only_run(data)
    assert run["times"] == 3 and run["recorded"] == 2 and kernel["calls"] == 2
    notes = [note.split(".")[0] for note in kernel["notes"]]
    assert notes == ["The kernel ran 3 times in a call", "Its function was called 2 times"]


def test_a_kernel_called_by_xla():
    def outside(x):
        return jnp.linalg.svd(kernels.add(x, x, 2).reshape(2, 4))[1]

    data, result = recorded(jax.jit(outside), numbers(8))
    np.testing.assert_allclose(result, np.linalg.svd(numbers(2, 4) * 2)[1], rtol=1e-5)
    assert [kernel["name"] for kernel in data["kernels"]] == ["add_kernel"]


def failing_kernel(x_ref, o_ref):
    def stop(_):
        raise ValueError("stopped")

    jax.debug.callback(stop, x_ref[0])
    o_ref[...] = x_ref[...]


def test_a_kernel_that_fails():
    @jax.jit
    def call(x):
        spec = pl.BlockSpec((2,), lambda i: (i,))
        return pl.pallas_call(
            failing_kernel, grid=(4,), in_specs=[spec], out_specs=spec, out_shape=x, interpret=True
        )(x)

    with recording.record("test") as trace, pytest.raises(Exception, match="stopped"):
        jax.block_until_ready(call(jnp.zeros(8)))
    assert trace.kernels[0].runs[0].recorded == 1


def test_nothing_is_recorded_outside():
    x = numbers(8)
    kernels.add(x, x, 2)
    found, _ = recorded(lambda: x)
    kernels.add(x, x, 2)
    assert found["kernels"] == []
    assert "No Pallas kernel ran" in page.render(data.Trace("t", "", {}, [], []))


def test_in_a_notebook():
    with recording.record("<b>a & b</b>") as trace:
        kernels.add(numbers(8), numbers(8), 2)
    shown = trace._repr_html_()
    assert shown.startswith('<iframe srcdoc="') and "<b>a" not in shown


def test_perfetto():
    with recording.record("test") as trace:
        kernels.copies(numbers(32, 128))
        kernels.add(numbers(8), numbers(8), 4)
    made = json.loads(json.dumps(perfetto.events(trace)))["traceEvents"]
    assert {event["ph"] for event in made} == {"M", "X", "C"}
    names = {event["args"]["name"] for event in made if event["ph"] == "M"}
    assert {"sem[0]", "sem[1]", "sem[2]", "cells"} <= names
    slices = [event for event in made if event["ph"] == "X"]
    assert all(event["dur"] > 0 and event["pid"] and event["tid"] for event in slices)
    assert len([event for event in slices if event["cat"] == "copy"]) == 8
    # Slices of a thread don't overlap.
    ends: dict[tuple[int, int], int] = {}
    for event in sorted(slices, key=lambda event: event["ts"]):
        thread = event["pid"], event["tid"]
        assert event["ts"] >= ends.get(thread, 0)
        ends[thread] = event["ts"] + event["dur"]


def test_a_bug_in_the_recorder_costs_no_call(monkeypatch):
    monkeypatch.setattr(measures.HeatMap, "add", lambda *_: 1 / 0)
    x = numbers(8)
    data, result = recorded(kernels.add, x, x, 2)
    np.testing.assert_array_equal(result, x + x)
    assert "bug in pallas_shim: ZeroDivisionError" in data["kernels"][0]["notes"][0]


CASES = cases(blocks, control, memory, numeric, refs, transforms)


@pytest.mark.parametrize("name", list(CASES)[::9])
def test_values_stay_right(name):
    """Each kernel gives while it is recorded what it gives otherwise."""
    f, args, *_ = CASES[name].build()
    with abstract_tpu() if CASES[name].tpu else contextlib.nullcontext():
        want = jax.tree.leaves(jax.jit(f)(*args))
        with recording.record(name) as trace:
            got = jax.tree.leaves(jax.jit(f)(*args))
    for one, other in zip(got, want, strict=True):
        compare(np.asarray(one), np.asarray(other), ulp=64, rtol=1e-5)
    assert trace.kernels and not trace.notes
    for kernel in trace.kernels:
        assert not any("bug" in note for note in kernel.notes)


def add_into(x_ref, into_ref, o_ref):
    o_ref[...] = into_ref[...] + x_ref[...]


def test_bytes_of_an_array_that_is_written_over():
    @jax.jit
    def call(x, into):
        spec = pl.BlockSpec((2,), lambda i: (i,))
        return pl.pallas_call(
            add_into, grid=(4,), in_specs=[spec, spec], out_specs=spec, out_shape=into,
            input_output_aliases={1: 0}, interpret=True,
        )(x, into)  # fmt: skip

    x = numbers(8)
    data, result = recorded(call, x, x)
    np.testing.assert_array_equal(result, x + x)
    _, run, operands = only_run(data)
    assert [operands[name]["role"] for name in ("x_ref", "into_ref", "o_ref")] == [
        "input", "input", "input and output",
    ]  # fmt: skip
    # An output isn't fetched; the input that it shares its array with is.
    assert run["fetched"] == [16] * 4 and run["written_back"] == [8] * 4
