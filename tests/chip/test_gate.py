"""PALLAS_NUMPY_STRICT with PALLAS_NUMPY_COMPILE: a refused kernel raises at its call."""

from __future__ import annotations

import os
import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.chip import front, gate, noting, session
from pallas_shim.jax_compat import export_tpu
from pallas_shim.reports.uses import REPORT
from tests.chip.kernels import shape

CHECKOUT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def asked(shim, setting, monkeypatch, tmp_path):
    """Sets the executor; nothing is left when the process ends."""

    def ask(executor=None, tpus=("v6e",), **others):
        named = None if executor is None else f"tests.chip.fakes:{executor}"
        setting(compile=tpus, compile_executor=named, strict=True, cache=None, **others)

    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(session, "libtpu_version", lambda: None)
    monkeypatch.setattr(gate, "_at_once", gate._AtOnce())
    monkeypatch.setattr(noting, "REACHED", noting.reached())
    monkeypatch.setattr(REPORT, "verdicts", [])
    (tmp_path / "tmp").mkdir()
    yield ask
    gate.take()
    assert not list((tmp_path / "tmp").iterdir())


def added(rows):
    """x + 1 in blocks of so many rows of 128."""

    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] + 1

    block = pl.BlockSpec((rows, 128), lambda i: (i, 0))
    return pl.pallas_call(
        kernel, grid=(2,), in_specs=[block], out_specs=block, out_shape=shape(2 * rows, 128),
        interpret=True,
    )  # fmt: skip


def test_what_the_lowering_refuses_is_raised_at_each_call(asked):
    asked()
    call = jax.jit(added(4))
    for _ in range(2):
        with pytest.raises(ValueError, match="divisible by 8 and 128") as raised:
            call(jnp.ones((8, 128)))
        assert any("v6e: the TPU's compiler refuses" in note for note in raised.value.__notes__)
    assert float(jax.jit(added(8))(jnp.ones((16, 128))).sum()) == 2 * 16 * 128
    found = front.compile_reached()
    assert [v.answer.outcome for v in found] == ["refused", "lowered"]
    assert [row["outcome"] for row in REPORT.verdicts] == ["refused", "lowered"]
    assert not front.compile_reached()


def test_without_strict_it_runs(asked, setting):
    asked()
    setting(strict=False)
    assert float(jax.jit(added(4))(jnp.ones((8, 128))).sum()) == 2 * 8 * 128


def test_an_equal_kernel_is_compiled_once(asked):
    asked("accepting")
    for _ in range(2):
        jax.jit(added(8))(jnp.ones((16, 128)))
    assert len(front.compile_reached()) == 1


@pytest.mark.parametrize(
    "calls",
    [
        lambda x: added(4)(x),
        lambda x: jax.jit(jax.vmap(added(4)))(x[None]),
        lambda x: jax.lax.scan(lambda c, _: (added(4)(c), ()), x, None, 3)[0],
        lambda x: jax.jit(lambda x: added(4)(x)).lower(x).compile()(x),
        lambda x: jax.jit(lambda x: jnp.sort(added(4)(jnp.tile(x, (1, 1))), axis=0))(x),
    ],
    ids=["eager", "vmap", "scan", "lowered", "with others"],
)
def test_wherever_the_kernel_is_called(asked, calls):
    asked()
    with pytest.raises(ValueError, match="divisible by 8 and 128"):
        calls(jnp.ones((8, 128)))


def test_while_jax_is_set_otherwise(asked):
    """A kernel is exported as when the process ends, whatever is set around its call."""
    asked()
    with jax.enable_x64(True), jax.disable_jit(), pytest.raises(ValueError, match="divisible by"):
        added(4)(np.ones((8, 128), np.float32))


def test_what_the_compiler_refuses_is_raised_as_jax_raises_it(asked):
    asked("refusing")
    with pytest.raises(jax.errors.JaxRuntimeError, match="Mosaic failed to compile"):
        jax.jit(added(8))(jnp.ones((16, 128)))


def test_a_refusal_with_a_place_is_mosaics_error(shim):
    place = 'loc("add"("kernel"("/home/me/bench.py":4:15 to :31)))'
    error = export_tpu.compile_error(
        f"INTERNAL: Mosaic failed to compile TPU kernel: Only i32\n\nat location: {place}\n\nThe "
    )
    assert type(error).__name__ == "MosaicError" and "Only i32" in str(error)


def test_no_verdict_is_no_error(asked):
    asked("failing")
    assert float(jax.jit(added(8))(jnp.ones((16, 128))).sum()) == 2 * 16 * 128


def test_the_processes_stay_until_the_end(asked):
    asked("threads")
    for rows in (8, 16, 24):
        jax.jit(added(rows))(jnp.ones((2 * rows, 128)))
    found = front.compile_reached()
    assert len(found) == 3 and len({v.answer.code_size for v in found}) <= 2  # their numbers


def test_a_compiler_that_ended_is_started_anew(asked):
    asked("dying")
    for rows in (8, 16):
        jax.jit(added(rows))(jnp.ones((2 * rows, 128)))
    assert [v.answer.outcome for v in front.compile_reached()] == ["no verdict"] * 2


def test_threads(asked):
    asked("accepting")
    call = jax.jit(added(8))
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(float(call(jnp.ones((16, 128))).sum())))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [2.0 * 16 * 128] * 4 and len(front.compile_reached()) == 1


@pytest.mark.filterwarnings("ignore:os.fork")
def test_a_forked_process_leaves_the_compiler_to_its_parent(asked):
    asked("accepting")
    jax.jit(added(8))(jnp.ones((16, 128)))
    child = os.fork()
    if child == 0:
        os._exit(len(gate.take()))
    assert os.waitpid(child, 0)[1] == 0
    jax.jit(added(16))(jnp.ones((32, 128)))
    assert [v.answer.outcome for v in front.compile_reached()] == ["accepted"] * 2


def test_several_tpus(asked):
    asked("accepting", tpus=("v5e", "v6e"))
    jax.jit(added(8))(jnp.ones((16, 128)))
    assert [v.target for v in front.compile_reached()] == ["v5e", "v6e"]


def test_a_memory_of_a_core_is_named(asked):
    """The refusal of a kernel whose operands are in SMEM comes from its own lowering, too."""
    asked()

    def kernel(x_ref, o_ref):
        o_ref[0] = jnp.sort(x_ref[...])[0]

    call = pl.pallas_call(
        kernel, out_shape=shape(1), in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM)],
        out_specs=pl.BlockSpec(memory_space=pltpu.SMEM), interpret=True,
    )  # fmt: skip
    with pytest.raises(Exception) as raised:
        call(jnp.ones(8))
    assert any("the TPU's compiler refuses" in note for note in raised.value.__notes__)
