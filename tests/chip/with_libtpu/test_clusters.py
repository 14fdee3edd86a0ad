"""Kernels compiled by the workers of a Dask and of a Ray cluster on this machine."""

from __future__ import annotations

import pytest

from pallas_shim.chip import api
from pallas_shim.chip.jobs import ACCEPTED
from tests.chip.kernels import added, shape


@pytest.mark.parametrize("package, executor", [("distributed", "dask"), ("ray", "ray")])
def test_a_cluster(shim, setting, monkeypatch, package, executor):
    pytest.importorskip(package)
    # The names of sockets in it have to be short.
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    setting(cache=None)
    found = api.verdicts(added(), shape(512, 256), tpu=["v5e", "v6e"], executor=f"{executor}:local")
    assert [v.answer.outcome for v in found] == [ACCEPTED] * 2, found
    assert all(v.answer.bundles for v in found)
