"""python -m tests.record.whole FILE DUMPS OUT TPU: compiles a case's whole function, and keeps what
is needed of the compiler's dumps in OUT. `times` starts it, for each case."""

from __future__ import annotations

import pathlib
import shutil
import sys
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from pallas_shim.chip import dumps, tpus
from pallas_shim.jax_compat.hooks import tpu_info
from tests.record.__main__ import function_of


def main(file: str, dump: str, out: str, name: str) -> None:
    target = tpus.target(name)
    function, make = function_of(pathlib.Path(file))
    described = topologies.get_topology_desc(platform="tpu", topology_name=target.topology_for(1))
    sharding = SingleDeviceSharding(described.devices[0])

    def placed(given: Any) -> Any:
        return jax.ShapeDtypeStruct(given.shape, given.dtype, sharding=sharding)

    arguments = jax.tree.map(placed, jax.eval_shape(make))
    with tpu_info.pretended(target.tpu.kind, target.tpu.cores):
        lowered = jax.jit(function).lower(*arguments)
        shutil.rmtree(dump)
        pathlib.Path(dump).mkdir()
        text = lowered.compile().as_text() or ""
    kept = pathlib.Path(out)
    kept.mkdir(parents=True)
    for path in pathlib.Path(dump).iterdir():
        wanted = ("-final_bundles.txt", "utilization.txt", "-registers-and-allocations.txt")
        if path.name.endswith(wanted) and "schedule-analysis" not in path.name:
            shutil.copy(path, kept / path.name)
    # The last, so what is here is complete.
    (kept / "hlo.txt").write_text(dumps.without_long_lines(text))


if __name__ == "__main__":
    main(*sys.argv[1:])
