"""The report: what it says, where it goes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim import dispatch, report
from tests.shimmed import double, double_kernel, only_row, setting, shim

__all__ = ["setting", "shim"]

X = np.arange(8, dtype=np.float32)
DOUBLE_AT = f"{double_kernel.__code__.co_filename}:{double_kernel.__code__.co_firstlineno}"


def gridded(x):
    spec = pl.BlockSpec((2, 2), lambda i, j: (i, j))
    return pl.pallas_call(
        double_kernel,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(2, 3),
        in_specs=[spec],
        out_specs=spec,
        interpret=True,
    )(x)


def test_a_row_says_what_ran_and_what_it_cost(shim):
    function = jax.jit(lambda x: gridded(x) + 1)
    for _ in range(3):
        function(jnp.ones((4, 6)))
    row = only_row()
    assert row["name"] == "double_kernel"
    assert row["source"] == DOUBLE_AT
    assert row["grid"] == "(2, 3)"
    assert row["function"] == "<lambda>"
    assert row["calls"] == 3
    assert row["rung"] == "numpy"
    assert row["reason"]
    assert 0 < row["tracing_s"] < 60
    assert 0 < row["lowering_s"] < 60
    assert 0 < row["running_s"] < 60


@pytest.mark.parametrize("rung", ("numpy", "callback"))
def test_a_kernel_that_raised_is_in_it(shim, rung):
    def host(x):
        if x[0] == 0:
            raise ValueError("a zero")
        return x

    def kernel(x_ref, o_ref):
        shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
        o_ref[...] = jax.pure_callback(host, shape, x_ref[...])

    out = jax.ShapeDtypeStruct(X.shape, X.dtype)
    jitted = jax.jit(lambda x: pl.pallas_call(kernel, out_shape=out, interpret=True)(x))
    call: Callable[..., jax.Array] = jitted
    if rung == "callback":
        call = jitted.lower(X).compile()
    with pytest.raises(Exception, match="a zero"):
        jax.block_until_ready(call(X))
    row = only_row()
    assert (row["rung"], row["calls"], row["raised"]) == (rung, 1, 1)
    np.testing.assert_array_equal(call(X + 1), X + 1)
    row = only_row()
    assert (row["calls"], row["raised"], row["error"]) == (2, 1, "ValueError")
    assert "1 of 2 calls raised, the last one ValueError" in report.REPORT.table()
    report.REPORT.clear()
    assert not report.REPORT.rows()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_kernel_on_cores_is_the_users(shim):
    """Where XLA compiles the function around it, JAX has wrapped it in a function of its own."""
    mesh = pltpu.create_tensorcore_mesh("core", num_cores=1)

    def body(refs):
        @pl.core_map(mesh)
        def copy():
            pltpu.sync_copy(*refs)

    copied = jax.jit(lambda x: pl.run_state(body)((x, jnp.zeros_like(x)))[1])
    np.testing.assert_array_equal(copied.lower(X).compile()(X), X)
    row = only_row()
    assert row["rung"] == "callback"
    assert row["source"].startswith(f"{__file__}:")


@pytest.mark.skipif(
    jax.__version_info__ < (0, 10, 1), reason="JAX < 0.10.1 refuses such a kernel"
)
def test_a_pipeline_that_is_the_kernel_has_the_users_source(shim):
    """Called outside any jit, nothing but what the pipeline's body does has the user's frames."""
    x = np.ones((16, 128), np.float32)
    block = pl.BlockSpec((8, 128), lambda i: (i, 0))
    pipeline = pltpu.emit_pipeline(double_kernel, grid=(2,), in_specs=[block], out_specs=[block])
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    doubled = pl.pallas_call(
        pipeline,
        in_specs=[anywhere],
        out_specs=anywhere,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        interpret=True,
    )(x)
    np.testing.assert_array_equal(doubled, 2 * x)
    assert only_row()["source"].startswith(f"{double_kernel.__code__.co_filename}:")


def test_kernels_of_one_function_share_its_costs(shim):
    jax.jit(lambda x: double(gridded(x)))(jnp.ones((4, 6)))
    rows = shim.rows()
    assert [row["grid"] for row in rows] == ["(2, 3)", "()"]
    assert [row["shared_with"] for row in rows] == [1, 1]
    assert rows[0]["running_s"] == rows[1]["running_s"]
    assert "* of the whole jitted function" in shim.table()


def test_functions_that_do_the_same_are_one_row(shim):
    for _ in range(3):
        jax.jit(lambda x: double(x) - 3)(X)
    assert only_row()["calls"] == 3


def test_a_callback_counts_the_calls_of_its_kernel(shim):
    def twice(x):
        return jax.lax.fori_loop(0, 5, lambda _, c: double(c), x)

    jax.jit(twice).lower(X).compile()(X).block_until_ready()
    row = only_row()
    assert (row["rung"], row["calls"], row["function"]) == ("callback", 5, "jit_twice")
    assert row["tracing_s"] is None and row["running_s"] > 0


def test_calls_that_jax_interprets_are_counted_when_a_report_is_asked_for(shim, setting):
    from jax.experimental.pallas import tpu as pltpu

    setting(report="1")
    racing = pltpu.InterpretParams(detect_races=True)
    function = jax.jit(lambda x: double(x, racing))
    with pytest.warns(dispatch.FallbackWarning, match="detect_races"):
        for _ in range(3):
            np.testing.assert_array_equal(np.asarray(function(X)), 2 * X)
    assert only_row()["calls"] == 3
    assert only_row()["running_s"] > 0


def test_the_table_lines_up(shim):
    jax.jit(double)(X)
    lines = shim.table().splitlines()
    assert lines[0] == "pallas_shim: the Pallas kernels of this process"
    header, row = lines[1:]
    for title, cell in {
        "kernel": "double_kernel", "source": DOUBLE_AT, "grid": "()", "calls": "1", "rung": "numpy"
    }.items():
        assert row[header.index(title) :].startswith(cell)


def test_an_empty_report_says_so(shim):
    assert shim.table() == "pallas_shim: no Pallas kernel was called"


def test_to_stderr(shim, capsys):
    jax.jit(double)(X)
    report.write("1")
    written = capsys.readouterr()
    assert written.out == "" and "double_kernel" in written.err


def test_to_json(shim, tmp_path):
    jax.jit(double)(X)
    report.write(str(tmp_path / "report-{pid}.json"))
    written = json.loads((tmp_path / f"report-{os.getpid()}.json").read_text())
    assert written == {"pid": os.getpid(), "kernels": shim.rows()}


def test_a_path_that_can_not_be_written(shim, tmp_path, capsys):
    report.write(str(tmp_path / "missing" / "report.json"))
    assert "missing" in capsys.readouterr().err


def test_decisions_are_logged_once(shim, caplog):
    with caplog.at_level(logging.INFO, "pallas_shim"):

        def only_logged_here(x):
            return double(x) + 11

        function = jax.jit(only_logged_here)
        function(X)
        function(X)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "pallas_shim"]
    assert "double_kernel" in line and DOUBLE_AT in line and "numpy" in line
