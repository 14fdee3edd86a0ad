"""The report: what it says, where it goes."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

import pallas_shim
from pallas_shim import dispatch
from pallas_shim.reports import document, files
from pallas_shim.reports.document import Document
from tests.shimmed import double, double_kernel, only_row, setting, shim, unruly

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
    assert "1 of 2 calls raised, the last one ValueError" in str(pallas_shim.report())
    shim.clear()
    assert not pallas_shim.report().rows


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
    assert "* of the whole jitted function" in str(pallas_shim.report())


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


def test_calls_that_jax_interprets_are_counted_when_a_report_is_asked_for(shim, monkeypatch):
    monkeypatch.setattr(shim, "wanted", True)
    function = jax.jit(lambda x: unruly(x))
    with pytest.warns(dispatch.FallbackWarning, match="unknown_to_the_shim"):
        for _ in range(3):
            np.testing.assert_array_equal(np.asarray(function(X)), 3 * X)
    assert only_row()["calls"] == 3
    assert only_row()["running_s"] > 0


def test_the_table_lines_up(shim):
    jax.jit(double)(X)
    title, header, row, reason, *_ = str(pallas_shim.report()).splitlines()
    assert title == "pallas_shim: the Pallas kernels of this process"
    for column, cell in {
        "kernel": "double_kernel", "function": "double", "source": "tests/shimmed.py:",
        "grid": "()", "calls": "1", "rung": "numpy",
    }.items():  # fmt: skip
        assert row[header.index(column) :].startswith(cell)
    assert reason.strip().startswith("the evaluator has a rule")


def row(**changes):
    made = {
        "name": "kernel", "source": "/a/x.py:1", "grid": "(2,)", "function": "f", "calls": 2,
        "rung": "numpy", "reason": "because", "tracing_s": None, "lowering_s": 0.5,
        "running_s": 0.25, "shared_with": 0, "cache": None, "raised": 0, "error": None,
        "native": None,
    }  # fmt: skip
    return {**made, **changes}


def of(*processes) -> Document:
    """A document of processes with these rows."""
    entries = [
        {"pid": pid, "began": "2026-01-01T00:00:00.000+00:00", "kernels": rows}
        for pid, rows in enumerate(processes, 1)
    ]
    return Document(tuple(entries))


def test_the_table_fits():
    long = row(
        name="a_kernel_of_" * 12,
        function="<lambda> in " * 9,
        source="/" + "a_directory/" * 20 + "file.py:123456",
        grid="(1024, 1024, 1024)",
        calls=123456789,
        reason="reason " * 60,
    )
    lines = str(of([long, row()])).splitlines()
    assert max(map(len, lines)) <= 100
    assert "".join(lines).count("reason ") + "".join(lines).count("reason\n") >= 55
    assert any(line.startswith("kernel  ") for line in lines)


def test_equal_names_are_told_apart():
    text = str(of([row(), row(source="/b/x.py:1"), row(function="g"), row(grid="(3,)")]))
    assert " a/x.py:1" in text and " b/x.py:1" in text
    assert len([line for line in text.splitlines() if line.startswith("kernel  ")]) == 5
    # Told apart by what the report doesn't know: still two rows.
    assert str(of([row(), row()])).count("because") == 2


def test_equal_rows_of_processes_are_one():
    one, other = row(tracing_s=1.0), row(tracing_s=2.0, raised=1, error="ValueError")
    title, _, line, reason = str(of([one], [other], [])).splitlines()
    assert title == "pallas_shim: the Pallas kernels of 3 processes"
    assert line.split()[4:] == ["4", "numpy", "3.000", "1.000", "0.500"]
    assert "1 of 4 calls raised, the last one ValueError; in 2 processes" in reason
    assert len(of([one], [other]).rows) == 2


def test_an_empty_report_says_so(shim):
    assert str(pallas_shim.report()) == "pallas_shim: no Pallas kernel was called in this process"


def test_html(shim):
    jax.jit(lambda x: double(x))(X)
    shown = pallas_shim.report()._repr_html_()
    assert "double_kernel" in shown and "&lt;lambda&gt;" in shown and "<lambda>" not in shown


def test_a_report_does_not_change(shim):
    before = pallas_shim.report()
    jax.jit(double)(X)
    assert before.rows == [] and len(pallas_shim.report().rows) == 1


def test_to_stderr(shim, capsys):
    jax.jit(double)(X)
    files.write("1")
    written = capsys.readouterr()
    assert written.out == "" and "double_kernel" in written.err


def test_to_json(shim, tmp_path):
    jax.jit(double)(X)
    files.write(str(tmp_path / "report-{pid}.json"))
    written = json.loads((tmp_path / f"report-{os.getpid()}.json").read_text())
    assert (written["schema"], written["schema_version"]) == ("pallas_shim.report", 1)
    (process,) = written["processes"]
    assert process["pid"] == os.getpid() and process["kernels"] == shim.rows()
    assert process["argv"] == sys.argv and process["host"]
    assert process["began"] <= process["ended"]
    assert process["versions"]["jax"] == jax.__version__
    assert process["versions"]["numpy"] == np.__version__
    again = document.from_dict(json.loads(pallas_shim.report().to_json()))
    assert again.rows == pallas_shim.report().rows


@pytest.mark.parametrize(
    "content, said",
    [
        ("nonsense", "can't be read"),
        ('{"pid": 3, "kernels": []}', "isn't a report"),
        ('{"schema": "pallas_shim.report", "schema_version": 99}', "schema version is 99"),
    ],
)
def test_what_is_no_report(tmp_path, content, said):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(document.NotAReport, match=said):
        files.read(str(tmp_path / "x.json"))
    with pytest.raises(document.NotAReport, match="holds no report"):
        (tmp_path / "empty").mkdir()
        files.read(str(tmp_path / "empty"))


def test_a_path_that_can_not_be_written(shim, tmp_path, capsys):
    (tmp_path / "a file").write_text("")
    files.write(str(tmp_path / "a file" / "report.json"))
    assert "a file" in capsys.readouterr().err


def test_decisions_are_logged_once(shim, caplog):
    with caplog.at_level(logging.INFO, "pallas_shim"):

        def only_logged_here(x):
            return double(x) + 11

        function = jax.jit(only_logged_here)
        function(X)
        function(X)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "pallas_shim"]
    assert "double_kernel" in line and DOUBLE_AT in line and "numpy" in line
