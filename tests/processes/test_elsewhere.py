"""Workers of Dask and Ray have the shim, and their kernels are in the report."""

from __future__ import annotations

import sys

import pytest

from pallas_shim.reports import files
from tests.processes.conftest import CHECKOUT, Python

WORK = """
def work(i):
    import jax, numpy as np
    from jax.experimental import pallas as pl
    def kernel(x_ref, o_ref):
        o_ref[...] = x_ref[...] * 2
    out = jax.ShapeDtypeStruct((8,), np.float32)
    double = jax.jit(lambda x: pl.pallas_call(kernel, out_shape=out)(x))
    return float(double(np.full(8, i, np.float32))[0])
"""

DASK = """
from distributed import Client, LocalCluster

if __name__ == "__main__":
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster) as client:
        print(client.gather(client.map(work, range(4))))
"""

RAY = """
import tempfile
import ray

if __name__ == "__main__":
    # The paths of its sockets have to be short.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as directory:
        ray.init(
            num_cpus=2, include_dashboard=False, configure_logging=False, _temp_dir=directory
        )
        print(ray.get([ray.remote(work).remote(i) for i in range(4)]))
        ray.shutdown()
"""


@pytest.mark.parametrize("package, start", [("distributed", DASK), ("ray", RAY)])
def test_workers(tmp_path, package, start):
    pytest.importorskip(package)
    script = tmp_path / "script.py"
    script.write_text(WORK + start)
    python = Python(sys.executable, {"PYTHONPATH": str(CHECKOUT / "sitecustomize_pkg")})
    report = tmp_path / "report.json"
    variables = {"PALLAS_NUMPY": "1", "PALLAS_NUMPY_REPORT": str(report)}
    got = python.run(script, cwd=tmp_path, RAY_USAGE_STATS_ENABLED="0", **variables)
    assert (got.returncode, got.stdout) == (0, "[0.0, 2.0, 4.0, 6.0]\n"), got.stderr
    rows = files.read(str(report)).rows
    assert sum(row["calls"] for row in rows) == 4
    assert {row["rung"] for row in rows} == {"numpy"}
