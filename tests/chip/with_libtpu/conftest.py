"""The shim, and a temporary directory in which nothing may be left."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch, tmp_path):
    directory = tmp_path / "tmp"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = _of_libtpu()
    yield
    assert not list(directory.iterdir())
    # libtpu writes its logs and a lock there if it isn't told otherwise.
    assert _of_libtpu() <= before
    with open("/proc/self/maps", encoding="ascii", errors="replace") as file:
        assert not any("libtpu" in line for line in file)  # this process never loads it


def _of_libtpu() -> set[str]:
    return {name for name in os.listdir("/tmp") if name.startswith(("libtpu", "tpu_logs"))}
