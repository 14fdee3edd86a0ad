"""Times kernels whose devices talk, against JAX's TPU interpreter where that finishes.

    python benchmarks/devices.py [--docs DIR] [--seconds 60]

Each way to run a kernel has a process of its own with eight devices of the CPU. JAX's interpreter
is `pltpu.InterpretParams` on stock JAX; it is ended after the limit. Times are of the processor.
`np.copyto` copies the bytes of all shards in the shim's process.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tables import table

ROOT = pathlib.Path(__file__).resolve().parents[1]
MESH = pl.DeviceIdType.MESH
DMA, REGULAR = pltpu.SemaphoreType.DMA, pltpu.SemaphoreType.REGULAR
_signal = getattr(pl, "semaphore_signal", None) or pltpu.semaphore_signal
_wait = getattr(pl, "semaphore_wait", None) or pltpu.semaphore_wait


def _neighbours() -> tuple[Any, Any, Any, int]:
    me, n = lax.axis_index("x"), lax.axis_size("x")
    return me, lax.rem(me + 1, n), lax.rem(me + n - 1, n), n


def _barrier() -> None:
    _, right, left, _ = _neighbours()
    semaphore = pltpu.get_barrier_semaphore()
    for other in (left, right):
        _signal(semaphore, 1, device_id={"x": other}, device_id_type=MESH)
    _wait(semaphore, 2)


def _call(kernel: Callable[..., None], out: Any, scratch: Sequence[Any], space: Any) -> Any:
    spec = pl.BlockSpec(memory_space=space)
    stock = os.environ.get("PALLAS_NUMPY", "0") == "0"
    return pl.pallas_call(
        kernel, out_shape=out, in_specs=[spec], out_specs=spec, scratch_shapes=list(scratch),
        compiler_params=pltpu.CompilerParams(collective_id=0),
        interpret=pltpu.InterpretParams() if stock else False,
    )  # fmt: skip


def _to_the_right(source: Any, target: Any, send: Any, receive: Any) -> None:
    _, right, _, _ = _neighbours()
    copy = pltpu.make_async_remote_copy(
        source, target, send, receive, device_id={"x": right}, device_id_type=MESH
    )
    copy.start()
    copy.wait()


def permute(x: Any) -> Any:
    def kernel(x_ref, o_ref, send, receive):
        _barrier()
        _to_the_right(x_ref, o_ref, send, receive)

    return _call(kernel, jax.ShapeDtypeStruct(x.shape, x.dtype), [DMA, DMA], pl.ANY)(x)


def all_gather(x: Any) -> Any:
    """Every device gets all shards; each goes round."""
    devices = lax.axis_size("x")

    def kernel(x_ref, o_ref, own, send, receive):
        me, _, _, n = _neighbours()
        _barrier()
        copy = pltpu.make_async_copy(x_ref, o_ref.at[me], own)
        copy.start()
        copy.wait()

        def step(i, carry):
            slot = lax.rem(me + n - i, n)
            _to_the_right(o_ref.at[slot], o_ref.at[slot], send, receive)
            return carry

        lax.fori_loop(0, n - 1, step, 0)

    out = jax.ShapeDtypeStruct((devices, *x.shape), x.dtype)
    return _call(kernel, out, [DMA] * 3, pl.ANY)(x)


def reduce_scatter(x: Any) -> Any:
    """Each device gets the sum of its chunk over all devices; sums go round."""

    def kernel(x_ref, o_ref, total, got, send, receive, room):
        me, _, left, n = _neighbours()
        _barrier()
        total[...] = x_ref[lax.rem(me + n - 1, n)]
        for step in range(n - 1):
            _signal(room, 1, device_id={"x": left}, device_id_type=MESH)
            _wait(room, 1)
            _to_the_right(total, got, send, receive)
            total[...] = got[...] + x_ref[lax.rem(me + 2 * n - 2 - step, n)]
        o_ref[...] = total[...]

    chunk = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    vmem = pltpu.VMEM(chunk.shape, chunk.dtype)
    return _call(kernel, chunk, [vmem, vmem, DMA, DMA, REGULAR], pltpu.VMEM)(x)


def all_reduce(x: Any) -> Any:
    n = lax.axis_size("x")
    return all_gather(reduce_scatter(x.reshape(n, -1, x.shape[-1]))).reshape(x.shape)


# The kernel, the number of devices, and a device's shard of float32.
KERNELS: dict[str, tuple[Callable[[Any], Any], int, tuple[int, ...]]] = {
    "ring all-gather, 4 x (8, 128)": (all_gather, 4, (8, 128)),
    "ring reduce-scatter, 4 x (4, 8, 128)": (reduce_scatter, 4, (4, 8, 128)),
    "permute, 4 x (8, 128)": (permute, 4, (8, 128)),
    "permute, 4 x 4 MB": (permute, 4, (1024, 1024)),
    "ring all-reduce, 8 x 1 MB": (all_reduce, 8, (2048, 128)),
}


def one(name: str) -> dict[str, float]:
    """The seconds of the first call, of warm ones, and of a copy of the shards."""
    function, count, shard = KERNELS[name]
    on = Mesh(np.array(jax.devices()[:count]), ("x",))
    spec = PartitionSpec("x")
    kwargs: dict[str, Any] = {"mesh": on, "in_specs": spec, "out_specs": spec}
    run = jax.jit(jax.shard_map(function, check_vma=False, **kwargs))
    whole = np.arange(count * np.prod(shard), dtype=np.float32).reshape(-1, *shard[1:])
    x = jax.device_put(jnp.asarray(whole), NamedSharding(on, spec))
    first = _seconds(run, x)
    calls = 20 if first < 2 else 5
    warm = statistics.median(_seconds(run, x) for _ in range(calls))
    target = np.empty_like(whole)
    copy = statistics.median(_seconds(np.copyto, target, whole) for _ in range(20))
    return {"first": first, "warm": warm, "copy": copy}


def _seconds(function: Callable[..., Any], *args: Any) -> float:
    """The time of the processor for a call, as other programs may run on the machine."""
    start = time.process_time()
    jax.block_until_ready(function(*args))
    return time.process_time() - start


def measure(name: str, shim: bool, limit: float) -> dict[str, float] | None:
    """The figures of a fresh process. None if it didn't end in time."""
    path = [ROOT / "sitecustomize_pkg", ROOT]
    environment = {
        **os.environ,
        "PALLAS_NUMPY": "1" if shim else "0",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, path)),
    }
    command = [sys.executable, __file__, "--one", name]
    try:
        ran = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return None
    if ran.returncode:
        raise SystemExit(f"{name} failed:\n{ran.stderr[-3000:]}")
    return json.loads(ran.stdout.splitlines()[-1])


def rows(names: Sequence[str], limit: float) -> list[list[str]]:
    found = []
    for name in names:
        ours, stock = measure(name, True, limit), measure(name, False, limit)
        assert ours is not None, f"{name} didn't end in {limit:g} s"
        found.append(
            [
                name, _text(ours["first"]), _text(ours["warm"]),
                f"{ours['warm'] / ours['copy']:.3g}",
                *(("-", f"not in {limit:g} s", "-") if stock is None else (
                    _text(stock["first"]), _text(stock["warm"]),
                    f"{stock['warm'] / ours['warm']:.3g}",
                )),
            ]
        )  # fmt: skip
        print(" | ".join(found[-1]), file=sys.stderr)
    return found


def _text(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


HEAD = ("kernel", "first", "warm", "warm / np.copyto", "InterpretParams: first", "warm", "ratio")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--docs", type=pathlib.Path, help="write devices.md there")
    parser.add_argument("--seconds", type=float, default=60, help="the limit of a process")
    parser.add_argument("--only", nargs="*", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--one", choices=KERNELS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one)))
        return 0
    text = table(HEAD, rows(options.only, options.seconds))
    print(text)
    if options.docs is not None:
        how = " ".join((__doc__ or "").split("\n\n")[2].split())
        parts = [
            "# Kernels whose devices talk",
            "<!-- Generated by python benchmarks/devices.py --docs docs; don't edit. -->",
            f"JAX {jax.__version__}. {how}",
            text,
        ]
        (options.docs / "devices.md").write_text("\n\n".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
