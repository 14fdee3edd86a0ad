"""Ranking configurations: what is dropped and why, the order, and whether results are right."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from pallas_shim import chip, settings
from pallas_shim.chip import profile, session, tuning
from pallas_shim.cli import tune
from tests.chip.kernels import shape
from tests.processes.conftest import CHECKOUT, Python

PYTHON = Python(sys.executable, {"PYTHONPATH": f"{CHECKOUT / 'sitecustomize_pkg'}:{CHECKOUT}"})


@pytest.fixture(autouse=True)
def from_the_checkout(setting, monkeypatch):
    """The driver finds the fakes, and there is no libtpu."""
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    monkeypatch.setattr(session, "libtpu_version", lambda: None)
    setting(cache=None)


def halved(x, *, rows, off=0.0):
    """x / 2 in blocks of so many rows. With 24 rows it is wrong, by ``off``."""
    assert x.shape[0] % rows == 0, f"{rows} rows don't divide"

    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] / 2 + (off if rows == 24 else 0.0)

    block = pl.BlockSpec((rows, 128), lambda i: (i, 0))
    return pl.pallas_call(
        kernel, grid=(x.shape[0] // rows,), in_specs=[block], out_specs=block,
        out_shape=shape(*x.shape), interpret=True,
    )(x)  # fmt: skip


def configs(*rows, **others):
    return [{"rows": each, **others} for each in rows]


X = np.arange(48 * 128, dtype=np.float32).reshape(48, 128)


def rows(found):
    return [each.config["rows"] for each in found]


def test_what_is_dropped_and_why(shim):
    ranked, dropped = chip.rank(halved, configs(8, 7, 4, 48), (X,), tpu="v6e")
    assert rows(ranked) == [8, 48] and rows(dropped) == [7, 4]
    assert "7 rows don't divide" in dropped[0].why
    assert "refused (JAX's lowering)" in dropped[1].why and "divisible by 8" in dropped[1].why
    assert tuning.ranked_by(ranked) is None
    assert {each.unknown for each in ranked} == {"libtpu isn't installed"}
    # Two buffers of each block that moves, and one of those that stay.
    assert [each.vmem for each in ranked] == [2 * 2 * 8 * 128 * 4, 2 * 48 * 128 * 4]


def test_without_libtpu_blocks_that_do_not_fit_are_dropped(shim):
    argument = shape(4 * 16384, 128)  # in two buffers and 16 or 32 MiB
    for tpu, fits in (("v5e", [2048]), ("v6e", [2048, 16384])):
        ranked, dropped = chip.rank(halved, configs(2048, 16384), (argument,), tpu=tpu)
        assert rows(ranked) == fits
        assert all("too much for 16 MiB" in each.why for each in dropped)


def test_what_the_compiler_refuses_or_does_not_answer_is_dropped(shim):
    for executor, why in (
        ("refusing", "refused (Mosaic)"),
        ("failing", "no verdict: the executor"),
    ):
        ranked, dropped = chip.rank(
            halved, configs(8, 16), (X,), tpu="v6e", executor=f"tests.chip.fakes:{executor}"
        )
        assert not ranked and all(each.why.startswith(why) for each in dropped)


def test_the_order(shim, monkeypatch):
    """By estimates if all have one, else by lower bounds, else as they came."""
    times = {8: (3e-3, 3e-4), 16: (1e-3, 2e-4), 24: (2e-3, 1e-4)}
    known = {"estimates": (True, True), "bounds": (False, True), "nothing": (False, False)}

    def profiled(verdict):
        (seconds, bound) = times[heights[verdict.operands]]
        made = profile.Profile("halved", None, verdict.operands, "v6e", cycles=int(bound * 1e9))
        has_estimate, has_bound = known[case]
        if not has_bound:
            made = dataclasses.replace(made, cycles=None)
        if has_estimate or heights[verdict.operands] == 8:
            return dataclasses.replace(made, seconds=seconds, error="so far off")
        return dataclasses.replace(made, unknown="bound by compute")

    heights = {"(f32[8,128])": 8, "(f32[16,128])": 16, "(f32[24,128])": 24}
    monkeypatch.setattr(tuning.profile, "profile", profiled)
    monkeypatch.setattr(
        tuning.profile, "lower_bound", lambda made: None if made.cycles is None else made.cycles
    )

    def one_block(x, *, rows):
        return halved(x[:rows], rows=rows)

    for case, order in (
        ("estimates", [16, 24, 8]),
        ("bounds", [24, 16, 8]),
        ("nothing", [8, 16, 24]),
    ):
        ranked, _ = chip.rank(
            one_block, configs(8, 16, 24), (X,), tpu="v6e", executor="tests.chip.fakes:accepting"
        )
        assert rows(ranked) == order, case
    assert ranked[0].seconds == 3e-3 and ranked[1].unknown == "bound by compute"


def test_results_are_compared_with_the_first(shim):
    ranked, _ = chip.rank(halved, configs(7, 8, 24, 48, off=0.5), (X,), tpu="v6e", run=2)
    assert [(each.config["rows"], each.agrees) for each in ranked] == [
        (8, True), (24, False), (48, None),
    ]  # fmt: skip


def test_results_are_compared_with_a_reference(shim):
    def exact(x):
        return np.asarray(x, np.float64) / 2

    ranked, _ = chip.rank(halved, configs(24, 8, off=0.5), (X,), tpu="v6e", run=2, reference=exact)
    assert [each.agrees for each in ranked] == [False, True]


def test_a_run_that_fails(shim):
    def late(x, *, rows):
        if rows == 16:
            jax.debug.callback(lambda: 1 / 0)
        return halved(x, rows=rows)

    ranked, _ = chip.rank(late, configs(8, 16), (X,), tpu="v6e", run=2)
    assert ranked[0].agrees and not ranked[1].agrees and "division" in str(ranked[1].failure)


def test_a_function_without_a_kernel_and_one_that_is_never_traced(shim):
    ranked, dropped = chip.rank(lambda x, rows: jnp.sin(x), configs(8), (X,), tpu="v6e")
    assert not ranked and dropped[0].why == "it has no kernel"
    with pytest.raises(AssertionError, match="7 rows don't divide"):
        chip.rank(halved, configs(7, 9), (X,), tpu="v6e")


# -- the command -------------------------------------------------------------------------------

SCRIPT = (
    '''
import jax, numpy as np
from jax.experimental import pallas as pl

def halved(x, *, rows, name="a"):
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] / 2 + (rows == 24)
    block = pl.BlockSpec((rows, 128), lambda i: (i, 0))
    return pl.pallas_call(kernel, grid=(x.shape[0] // rows,), in_specs=[block], out_specs=block,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)

def inputs():
    return np.ones((48, 128), np.float32)

def alone(rows):
    return halved(inputs(), rows=rows)

exact = lambda x: x / 2
if __name__ == "__main__":
    print("not reached")
'''
)  # fmt: skip


def ran(tmp_path: pathlib.Path, *arguments):
    (tmp_path / "bench.py").write_text(SCRIPT)
    # A fake, which also keeps an installed libtpu out.
    return PYTHON.run(
        "-m", "pallas_shim", "tune", *arguments, cwd=tmp_path, JAX_PLATFORMS="cpu",
        PALLAS_NUMPY_CACHE="0",
    )  # fmt: skip


ACCEPTING = ("--executor", "tests.chip.fakes:accepting")


def test_the_command(tmp_path):
    got = ran(
        tmp_path, "--tpu", "v6e", "--vary", "rows=4,8,16", "--vary", "name=a,b", "--args", "inputs",
        "--reference", "exact", "--run", "2", "-o", "ranks.json", *ACCEPTING, "bench.py:halved",
    )  # fmt: skip
    assert got.returncode == 0, got.stderr
    assert "rows=8 name=a" in got.stdout and got.stdout.count("right") == 2
    assert "dropped: 2 of 6" in got.stdout and "rows=4 name=a; rows=4 name=b" in got.stdout
    assert "divisible by 8 and 128" in got.stdout and "not reached" not in got.stdout
    document = json.loads((tmp_path / "ranks.json").read_text())
    assert document["ranked_by"] is None and document["tpu"] == "v6e"
    assert [row["config"] for row in document["ranked"]][0] == {"rows": 8, "name": "a"}
    assert document["dropped"][0]["kernels"][0]["outcome"] == "refused"


@pytest.mark.parametrize(
    "values, status, said",
    [("8,24", 1, "WRONG"), ("4", 98, "where no configuration can be used")],
)
def test_the_status(tmp_path, values, status, said):
    got = ran(tmp_path, "--tpu=v6e", f"--vary=rows={values}", *ACCEPTING, "bench.py:alone")
    assert got.returncode == status and said in got.stdout, got.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "the following arguments are required"),
        (["--tpu", "v9", "--vary", "a=1", "bench.py:alone"], "invalid choice: 'v9'"),
        (["--tpu", "v6e", "--vary", "rows", "bench.py:alone"], "it takes NAME=VALUE,VALUE"),
        (["--tpu", "v6e", "--vary", "rows=8", "bench.py"], "it takes script.py:function"),
        (["--tpu", "v6e", "--vary", "rows=8", "no.py:alone"], "there is no file no.py"),
        (["--tpu", "v6e", "--vary", "rows=8", "bench.py:no"], "bench has no no"),
        (["--tpu", "v6e", "--vary", "rows=8", "no_such_module:f"], "there is no module"),
    ],
)
def test_a_bad_command_line(shim, tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "bench.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(settings.current, "cache_clear", lambda: None, raising=False)
    for name in ("PALLAS_NUMPY_COMPILE", "PALLAS_NUMPY_STRICT"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(SystemExit) as ended:
        tune.main(arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err
    sys.modules.pop("bench", None)


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        tune.main(["--help"])
    assert "bench.py:matmul" in capsys.readouterr().out
