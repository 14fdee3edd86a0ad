"""The process between the user's and the compilers: executors of all kinds, and what is kept on
disk."""

from __future__ import annotations

import os
import pathlib

import pytest
from jax.experimental import pallas as pl

from pallas_shim.cache import store
from pallas_shim.chip import api, session, verdicts
from pallas_shim.chip.jobs import ACCEPTED, NO_VERDICT, REFUSED
from tests.chip.kernels import add_one, added, bad_blocks, shape

CHECKOUT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def from_the_checkout(monkeypatch, tmp_path):
    """The driver finds the fakes, and nothing is left in the temporary directory."""
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    yield
    assert not list((tmp_path / "tmp").iterdir())


def asked(executor, *, tpu="v6e", limits=None):
    return api.verdicts(
        added(), shape(512, 256), tpu=tpu, executor=f"tests.chip.fakes:{executor}", limits=limits
    )


def test_an_executor_of_the_users(shim):
    found = asked("accepting", tpu=["v5e", "v6e", "v7x"])
    assert [v.answer.outcome for v in found] == [ACCEPTED] * 3
    assert all(v.answer.code_size > 1000 for v in found)  # it got a module
    assert [v.target for v in found] == ["v5e", "v6e", "v7x"]
    (refused,) = asked("refusing")
    assert refused.answer.outcome == REFUSED and refused.answer.message in verdicts.text(
        [refused.row()]
    )


def test_what_seems_too_large_is_asked_with_an_empty_body(shim):
    def told(rows):
        call = pl.pallas_call(add_one, out_shape=shape(rows, 1024))
        (found,) = api.verdicts(
            call, shape(rows, 1024), tpu="v6e", executor="tests.chip.fakes:hollow"
        )
        return found.answer.message

    assert told(512) is None
    assert told(8192) == "True"


def test_our_own_pool_of_processes(shim):
    found = asked("threads", tpu=["v5e", "v6e", "v7x", "v4"])
    assert [v.answer.outcome for v in found] == [ACCEPTED] * 4
    pids = {v.answer.code_size for v in found}
    assert 1 <= len(pids) <= 2 and os.getpid() not in pids


@pytest.mark.parametrize(
    "executor, reason",
    [
        ("failing", "the executor failed: RuntimeError: the cluster is gone"),
        ("dying", "the compiling process ended"),
        ("silent", "doesn't answer"),
        ("chattering", "the compiling process failed: UnpicklingError|EOFError"),
        ("no_executor", "no_executor() gives a object, which has no submit"),
        ("no_such", "AttributeError: module 'tests.chip.fakes' has no attribute 'no_such'"),
    ],
)
def test_what_goes_wrong_is_no_verdict(shim, monkeypatch, executor, reason):
    monkeypatch.setattr(session._Compiler, "_PATIENCE", 4.0)
    found = asked(executor, tpu=["v5e", "v6e"])
    assert [v.answer.outcome for v in found] == [NO_VERDICT] * 2
    message = str(found[1].answer.message)
    assert any(part in message for part in reason.split("|")), message


def test_no_room_for_temporary_files(shim, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.mkdir", full)
    (found,) = asked("accepting")
    assert found.answer.outcome == NO_VERDICT
    assert "No space left on device" in str(found.answer.message)


def test_no_process_can_be_started(shim, monkeypatch):
    def no_memory(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("subprocess.Popen", no_memory)
    (found,) = asked("accepting")
    assert found.answer.outcome == NO_VERDICT
    assert "Cannot allocate memory" in str(found.answer.message)


@pytest.fixture
def kept(setting, monkeypatch, tmp_path):
    """Verdicts are kept in a directory, as with a libtpu of some version."""
    setting(cache=str(tmp_path / "kept"))
    monkeypatch.setenv("TEST_NOTE", str(tmp_path / "note"))
    monkeypatch.setattr(session, "libtpu_version", lambda: "9.9")
    return lambda: len((tmp_path / "note").read_text())


def test_a_verdict_is_remembered(shim, kept):
    # From one line: the module holds the lines through which the kernel was reached.
    (first,), (second,) = (asked("accepting") for _ in range(2))
    assert kept() == 1 and not first.remembered and second.remembered
    assert second.answer.code_size == first.answer.code_size
    assert "known from an earlier run" in verdicts.text([second.row()])
    asked("accepting", tpu="v5e")
    assert kept() == 2


def test_another_libtpu_is_asked_anew(shim, kept, monkeypatch):
    for version in ("9.9", "10.0", "10.0"):
        monkeypatch.setattr(session, "libtpu_version", lambda version=version: version)
        (found,) = asked("accepting")
    assert kept() == 2 and found.remembered


def test_no_verdict_is_not_remembered(shim, kept):
    for _ in range(2):
        asked("failing")
    assert kept() == 2


def test_a_damaged_verdict_is_asked_anew(shim, kept, tmp_path):
    for _ in range(2):
        (found,) = asked("accepting")
        held = store.store(str(tmp_path / "kept"))
        (file,) = (tmp_path / "kept").glob("verdict-*")
        held.write(file.name.removesuffix(".program"), b'{"outcome": "accepted"}')
    assert kept() == 2 and not found.remembered


def test_with_the_cache_off_nothing_is_kept(shim, kept, setting):
    setting(cache=None)
    for _ in range(2):
        asked("accepting")
    assert kept() == 2


def test_a_refusal_of_the_lowering_needs_no_compiler(shim, kept):
    found = api.verdicts(
        bad_blocks(), shape(500, 300), tpu="v6e", executor="tests.chip.fakes:dying"
    )
    assert [v.answer.outcome for v in found] == [REFUSED]
