"""What a script has around its kernels: devices, threads, the profiler, effects, guards."""

from __future__ import annotations

import glob
import gzip
import json
import os
import pathlib
import subprocess
import sys
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

import pallas_shim
from tests.shimmed import double, rungs, setting, shim

__all__ = ["setting", "shim"]

X = np.arange(8, dtype=np.float32)
ROOT = pathlib.Path(__file__).parents[1]


def traced_events(directory, run) -> list[str]:
    with jax.profiler.trace(str(directory)):
        run()
    (path,) = glob.glob(f"{directory}/plugins/profile/*/*.json.gz")
    with gzip.open(path, "rb") as file:
        events = json.load(file)["traceEvents"]
    return [event.get("name", "") for event in events if event.get("dur", 0) > 0]


def test_the_profiler_shows_each_call(shim, tmp_path):
    def my_sort(x):
        return double(x)

    function = jax.jit(my_sort)
    function(X)
    events = traced_events(tmp_path, lambda: [function(X).block_until_ready() for _ in range(3)])
    assert rungs() == {"numpy"}
    assert sum(name.split("(")[0] == "jit_my_sort" for name in events) == 3


def printing_kernel(x_ref, o_ref):
    jax.debug.print("first {}", x_ref[0])
    o_ref[...] = x_ref[...] * 2


def printing(x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(printing_kernel, out_shape=shape, interpret=True)(x)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_kernel_prints(ahead, shim, capsys):
    function: Any = jax.jit(printing)
    if ahead:
        function = function.lower(X).compile()
    function(X)
    jax.effects_barrier()
    assert capsys.readouterr().out == "first 0.0\n"
    assert rungs() == {"callback" if ahead else "numpy"}


def test_ordered_effects_stay_in_order(shim, capsys):
    def announce(n):
        def function(x):
            jax.debug.print("call {}", n, ordered=True)
            return double(x) if n % 2 else x * 2

        return jax.jit(function)

    x = X
    for n in range(6):
        x = announce(n)(x)
    jax.effects_barrier()
    assert capsys.readouterr().out == "".join(f"call {n}\n" for n in range(6))
    np.testing.assert_array_equal(np.asarray(x), X * 64)


def test_under_a_transfer_guard(shim):
    x = jnp.asarray(X)
    function = jax.jit(double)
    with jax.transfer_guard("disallow"):
        out = function(x)
    np.testing.assert_array_equal(np.asarray(out), 2 * X)
    assert rungs() == {"numpy"}


def test_while_another_function_is_traced(shim):
    seen = []

    def outer(x):
        with jax.ensure_compile_time_eval():
            seen.append(np.asarray(jax.jit(double)(jnp.asarray(X))))
        return x + seen[-1]

    np.testing.assert_array_equal(np.asarray(jax.jit(outer)(X)), 3 * X)
    np.testing.assert_array_equal(seen[0], 2 * X)


def test_mutable_arrays_stay_with_xla(shim):
    new_ref = getattr(jax, "new_ref", None) or jax.array_ref
    ref = new_ref(jnp.asarray(X))

    @jax.jit
    def accumulate(ref):
        ref[...] = double(ref[...])

    accumulate(ref)
    accumulate(ref)
    np.testing.assert_array_equal(np.asarray(ref[...]), 4 * X)
    assert rungs() == {"callback"}


MANY_DEVICES = """
import functools, threading
import jax, jax.numpy as jnp, numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from tests.shimmed import double, rungs
from pallas_shim.reports.uses import REPORT

devices = jax.devices()
assert len(devices) == 8
X = np.arange(64, dtype=np.float32).reshape(8, 8)
mesh = Mesh(np.array(devices), ("i",))
shard_map = getattr(jax, "shard_map", None) or jax.experimental.shard_map.shard_map

def check(name, got, want, rung):
    np.testing.assert_array_equal(np.asarray(got), want, err_msg=name)
    assert rungs() == {rung}, (name, REPORT.rows())
    REPORT.clear()

# Results go where the arguments are; so does an error.
on_third = jax.device_put(X, devices[3])
out = jax.jit(double)(on_third)
assert out.devices() == {devices[3]} and out.committed
check("third device", out, 2 * X, "numpy")
with jax.default_device(devices[2]):
    out = jax.jit(double)(X)
assert out.devices() == {devices[2]} and not out.committed
check("default device", out, 2 * X, "numpy")
try:
    jax.jit(lambda x, y: double(x) + y)(on_third, jax.device_put(X, devices[1]))
except ValueError as error:
    assert "device" in str(error)
else:
    raise AssertionError("arguments on two devices")
REPORT.clear()

split = jax.device_put(X, NamedSharding(mesh, P("i")))
out = jax.jit(double)(split)
check("sharded argument", out, 2 * X, "callback")
assert out.sharding.device_set == set(devices), out.sharding

with (getattr(jax, "set_mesh", None) or jax.sharding.use_mesh)(mesh):
    out = jax.jit(double)(X)
check("mesh in context", out, 2 * X, "callback")
assert out.sharding.is_fully_replicated and len(out.devices()) == 8, out.sharding

mapped = shard_map(lambda x: double(x) + lax.psum(x, "i"), mesh=mesh, in_specs=P("i"),
                   out_specs=P("i"), **{UNCHECKED: False})
for _ in range(3):
    check("shard_map", jax.jit(mapped)(split), 2 * X + X.sum(0), "numpy")

def loop(x):
    return lax.fori_loop(0, 20, lambda i, c: double(c) - c + lax.psum(c, "i") * 0, x)
mapped = shard_map(loop, mesh=mesh, in_specs=P("i"), out_specs=P("i"), **{UNCHECKED: False})
check("loop in shard_map", jax.jit(mapped)(split), X, "numpy")

check("pmap", jax.pmap(lambda x: double(x) + lax.psum(x, "i"), axis_name="i")(X),
      2 * X + X.sum(0), "numpy")

# Many threads, each with its own programs that call back.
def work(n):
    function = jax.jit(lambda x: lax.fori_loop(0, 10, lambda _, c: double(c) / 2 + n, x))
    compiled = function.lower(jax.ShapeDtypeStruct(X.shape, X.dtype)).compile()
    for _ in range(5):
        results[n] = np.asarray(compiled(X))
results = [None] * 6
threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for n, result in enumerate(results):
    np.testing.assert_array_equal(result, X + 10 * n)
print("fine")
"""


TALKING_DEVICES = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from tests.shimmed import rungs
from pallas_shim.reports.uses import REPORT

devices = jax.devices()
X = np.arange(8 * 128 * len(devices), dtype=np.float32).reshape(8, -1)
shard_map = getattr(jax, "shard_map", None) or jax.experimental.shard_map.shard_map
HBM = pl.BlockSpec(memory_space=pl.ANY)

def to_the_right(x_ref, out_ref, sent, received):
    i, n = lax.axis_index("i"), len(devices)
    ready = pltpu.get_barrier_semaphore()
    pl.semaphore_signal(ready, 1, device_id=(lax.rem(i + n - 1, n),))
    pl.semaphore_wait(ready, 1)
    copy = pltpu.make_async_remote_copy(x_ref, out_ref, sent, received, (lax.rem(i + 1, n),))
    copy.start()
    copy.wait()

def by_itself(x_ref, out_ref, sent, received):
    copy = pltpu.make_async_copy(x_ref, out_ref, sent)
    copy.start()
    copy.wait()

def run(kernel, devices, **options):
    call = pl.pallas_call(
        kernel, jax.ShapeDtypeStruct((8, 128), jnp.float32), in_specs=[HBM], out_specs=HBM,
        scratch_shapes=[pltpu.SemaphoreType.DMA] * 2,
        compiler_params=pltpu.CompilerParams(collective_id=0), **options)
    mesh, columns = Mesh(np.array(devices), ("i",)), P(None, "i")
    mapped = shard_map(call, mesh=mesh, in_specs=columns, out_specs=columns, **{UNCHECKED: False})
    x = jax.device_put(X[:, : 128 * len(devices)], NamedSharding(mesh, columns))
    REPORT.clear()
    return np.asarray(jax.jit(mapped)(x)), np.asarray(x)

for options in ({}, {"interpret": True}, {"interpret": pltpu.InterpretParams()}):
    got, x = run(to_the_right, devices, **options)
    np.testing.assert_array_equal(got, np.roll(x, 128, 1))
    assert rungs() == {"numpy"}, REPORT.rows()

got, x = run(by_itself, devices)
np.testing.assert_array_equal(got, x)
assert rungs() == {"numpy"}, REPORT.rows()

import pallas_shim
pallas_shim.deactivate()
try:
    run(to_the_right, devices, interpret=True)
except (NotImplementedError, TypeError):
    print("fine")
"""


ONE_DEVICE = """
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec as P
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from tests.shimmed import rungs
from pallas_shim.reports.uses import REPORT

X = np.arange(1024, dtype=np.float32).reshape(8, 128)
shard_map = getattr(jax, "shard_map", None) or jax.experimental.shard_map.shard_map
HBM = pl.BlockSpec(memory_space=pl.ANY)

def to_the_right(x_ref, out_ref, sent, received, *, id_type):
    i, n = lax.axis_index("i"), lax.psum(1, "i")
    right = lax.rem(i + 1, n)
    device = {"device_id": (right, lax.axis_index("j")), "device_id_type": pl.DeviceIdType.MESH}
    if id_type == "logical":
        device = {"device_id": right, "device_id_type": pl.DeviceIdType.LOGICAL}
    ready = pltpu.get_barrier_semaphore()
    pl.semaphore_signal(ready, 1, **device)
    pl.semaphore_wait(ready, 1)
    copy = pltpu.make_async_remote_copy(x_ref, out_ref.at[i], sent, received, **device)
    copy.start()
    copy.wait()

for id_type in ("mesh", "logical"):
    call = pl.pallas_call(
        lambda *refs: to_the_right(*refs, id_type=id_type),
        jax.ShapeDtypeStruct((1, 8, 128), jnp.float32), in_specs=[HBM], out_specs=HBM,
        scratch_shapes=[pltpu.SemaphoreType.DMA] * 2,
        compiler_params=pltpu.CompilerParams(collective_id=0))
    mesh = Mesh(np.array(jax.devices()).reshape(1, 1), ("i", "j"))
    mapped = shard_map(call, mesh=mesh, in_specs=P("i"), out_specs=P("i"), **{UNCHECKED: False})
    for f in (jax.jit(mapped), mapped):
        REPORT.clear()
        np.testing.assert_array_equal(np.asarray(f(X))[0], X)
        assert rungs() == {"numpy"}, REPORT.rows()
print("fine")
"""


PARTLY_MANUAL = """
import jax, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from tests.shimmed import double, rungs

X = np.arange(64, dtype=np.float32).reshape(8, 8)
mesh = Mesh(np.array(jax.devices()).reshape(2, 1), ("i", "j"))
mapped = jax.shard_map(double, mesh=mesh, in_specs=P("i"), out_specs=P("i"), axis_names={"i"},
                       **{UNCHECKED: False})
np.testing.assert_array_equal(np.asarray(jax.jit(mapped)(X)), 2 * X)
assert rungs() == {"numpy"}
print("fine")
"""


def on_many_devices(tmp_path, text, count, strict):
    unchecked = "check_vma" if hasattr(jax, "shard_map") else "check_rep"
    script = tmp_path / "devices.py"
    script.write_text(textwrap.dedent(text).replace("UNCHECKED", repr(unchecked)))
    code = f"import pallas_shim; pallas_shim.activate(); exec(open({str(script)!r}).read())"
    environ = dict(
        os.environ,
        XLA_FLAGS=f"--xla_force_host_platform_device_count={count}",
        PALLAS_NUMPY_STRICT=strict,
        PYTHONPATH=str(ROOT),
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=200
    )
    assert done.stdout == "fine\n", done.stderr[-4000:]


def test_many_devices(tmp_path):
    on_many_devices(tmp_path, MANY_DEVICES, 8, strict="1")


def test_a_mesh_of_one_device(tmp_path):
    """What is said to other devices stays here: kernels written for several run on one."""
    on_many_devices(tmp_path, ONE_DEVICE, 1, strict="1")


def test_devices_that_talk_to_one_another(tmp_path):
    """In JAX's TPU interpreter, whichever the script asked for."""
    on_many_devices(tmp_path, TALKING_DEVICES, 3, strict="0")


def test_a_mesh_of_which_some_axes_are_left_to_xla(tmp_path):
    """XLA can't partition a callback, but JAX's interpreter."""
    on_many_devices(tmp_path, PARTLY_MANUAL, 2, strict="0")


def test_a_kernel_for_another_device_stays_there(shim, setting, monkeypatch):
    from pallas_shim.jax_compat import arrays

    class Tpu:
        platform = "tpu"

    assert not pallas_shim.settings.current().force
    place = arrays.Place(None, False, (Tpu,), Tpu.platform)
    monkeypatch.setattr(arrays, "_place", lambda device: place)
    with pytest.raises(arrays.Elsewhere, match="tpu"):
        arrays.read((jnp.asarray(X),), (X.dtype,), any_platform=False)
    values, _ = arrays.read((jnp.asarray(X),), (X.dtype,), any_platform=True)
    np.testing.assert_array_equal(values[0], X)
