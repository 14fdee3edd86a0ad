"""Entry points are read once, and again when packages come."""

from __future__ import annotations

import os
import sys

import importlib_metadata
import pytest

from pallas_shim.discovery import installed


@pytest.fixture
def offer(tmp_path, monkeypatch):
    """Installs a package that offers a rule, in a directory that may be on sys.path already."""
    offered = iter(range(9))

    def install(directory):
        number = next(offered)
        info = tmp_path / directory / f"package{number}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: package{number}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[pallas_shim.test]\nx = module{number}\n")
        # Two changes may be one to a clock that ticks slowly.
        os.utime(info.parent, ns=(number, number))
        path = str(info.parent)
        if path not in sys.path:
            monkeypatch.setattr(sys, "path", [*sys.path, path])

    return install


def _modules():
    return sorted(entry_point.module for entry_point in installed("pallas_shim.test"))


def test_packages_that_come_are_seen(offer):
    assert _modules() == []
    offer("one")
    assert _modules() == ["module0"]
    offer("one")
    assert _modules() == ["module0", "module1"]
    offer("other")
    assert _modules() == ["module0", "module1", "module2"]


def test_they_are_read_once(offer, tmp_path, monkeypatch):
    # In the checkout, other tests make files meanwhile.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" in path])
    offer("one")
    assert _modules() == ["module0"]
    monkeypatch.setattr(importlib_metadata, "entry_points", None)
    (tmp_path / "bench.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), "", "/no/such/directory", *sys.path])
    assert _modules() == ["module0"]
