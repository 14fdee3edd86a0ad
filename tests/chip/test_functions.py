"""The functions that called kernels: which are noted, exported and compiled as a whole, and why the
others aren't."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_shim.chip import front, noting, profiling, scalar_unit, session, tpus
from pallas_shim.jax_compat import export_tpu
from tests.chip.kernels import added, bad_blocks, shape


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parents[2]))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(noting, "FUNCTIONS", noting.Noted(noting.function_key))
    monkeypatch.setattr(noting, "REACHED", noting.reached())
    (tmp_path / "tmp").mkdir()
    yield
    assert not list((tmp_path / "tmp").iterdir())


def of(function, *args, sharded=False, donated=()):
    jaxpr = jax.make_jaxpr(function)(*args)
    return export_tpu.JittedFunction(function.__name__, jaxpr, donated, sharded, False)


def test_functions_are_noted_once_when_they_are_called(shim, setting, here):
    setting(compile=("v6e",), profile="1", cache=None)
    held = np.ones((512, 256), np.float32)

    def layer(x):
        return jax.lax.fori_loop(0, 3, lambda _, y: added(interpret=True)(y) * held, x)

    for _ in range(2):
        jax.jit(layer, donate_argnums=0)(jnp.ones((512, 256)))
        jax.jit(lambda x: x + 1)(jnp.ones((512, 256)))
    (found,) = noting.FUNCTIONS.take()
    assert (found.name, found.donated, found.is_sharded) == ("layer", (0,), False)
    module = export_tpu.exported_whole(found, "TPU v6 lite", 1).mlir_module()
    assert "tpu_custom_call" in module and "callback" not in module


def test_ctrl_c_while_functions_are_compiled(shim, setting, here, monkeypatch, tmp_path, capsys):
    """What is known by then is shown and written."""
    setting(compile=("v6e",), profile=str(tmp_path / "profile.json"), cache=None)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(session.Session, "compile_functions", interrupted)
    monkeypatch.setattr(session, "libtpu_version", lambda: None)
    jax.jit(added(interpret=True))(jnp.ones((512, 256)))
    front._profile(front.compile_reached(), str(tmp_path / "profile.json"))
    said = capsys.readouterr().err
    assert "interrupted while whole functions" in said and "where the time goes" in said
    rows = json.loads((tmp_path / "profile.json").read_text())
    assert len(rows["profiles"]) == 1 and rows["functions"] == []


def test_large_constants_become_arguments(shim):
    held = jnp.ones((512, 1024))

    def function(x):
        return added(interpret=True)(x) + (x @ x.T) @ held[:, :256]

    found = of(function, jnp.ones((512, 256)))
    exported = export_tpu.exported_whole(found, "TPU v6 lite", 1)
    assert [aval.shape for aval in exported.in_avals] == [(512, 256), (512, 1024)]
    assert len(exported.serialize()) < 1 << 20


def test_functions_that_are_not_compiled_say_why(shim, here, monkeypatch):
    monkeypatch.setattr(session, "libtpu_version", lambda: "9.9")

    def prints(x):
        jax.debug.callback(lambda y: None, x[0, 0])
        return added(interpret=True)(x)

    def refused(x):
        return bad_blocks()(x)

    def fits(x):
        return added(interpret=True)(x)

    x, bad = shape(512, 256), shape(500, 300)
    functions = [of(prints, x), of(refused, bad), of(fits, x, sharded=True), of(fits, x)]
    sites = [site for f in functions for site in export_tpu.sites(f.jaxpr)]
    executor = "tests.chip.fakes:functions"
    targets = [tpus.target("v6e")]
    found = session.compile_kernels(sites, targets, executor=executor)
    made = profiling.of_functions(
        functions, targets, found, lambda key: scalar_unit.NOTHING, executor
    )
    assert [each.function for each in made] == ["prints", "refused", "fits", "fits"]
    said = [str(each.unknown) for each in made]
    assert "exporting it failed" in said[0]
    assert said[1].endswith("add_one is refused")
    assert "it runs on several devices" in said[2]
    assert made[3].unknown is None and made[3].seconds is not None
    (kernel,) = (o for o in made[3].operations if o.is_kernel)
    assert kernel.origin == "add_one" and kernel.placed[0].name == "x_ref"
