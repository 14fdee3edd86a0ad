"""Scripts that refuse to start without a TPU."""

from __future__ import annotations

import pytest
from pallas_shim.patches import tpu_look

from pallas_shim import settings
from tests.processes.conftest import rows_of

SCRIPT = """
import sys

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

if jax.devices()[0].platform != "tpu" or jax.default_backend() != "tpu":
    sys.exit("needs a TPU")
assert jax.devices("tpu") == jax.local_devices() and jax.device_count("tpu") == 1
assert jax.devices()[0].coords == [0, 0, 0] and jax.devices()[0].core_on_chip == 0

lanes = 128
if hasattr(pltpu, "get_tpu_info"):  # JAX has it from 0.10 on
    info = pltpu.get_tpu_info()
    lanes = info.num_lanes
    assert info.vmem_capacity_bytes > 2**20 and pltpu.is_tpu_device()
    assert info.num_cores == jax.devices()[0].num_cores

def double(x_ref, o_ref):
    o_ref[...] = x_ref[...] * 2

@jax.jit
def run(x):
    block = pl.BlockSpec((8, lanes), lambda i: (0, i))
    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(double, out, grid=(4,), in_specs=[block], out_specs=block)(x)

x = jax.device_put(jnp.ones((8, 4 * lanes)), jax.devices()[0])
assert x.device is jax.devices()[0] and len(jnp.sin(x).devices()) == 1
print(jax.devices()[0].device_kind, int(run(x).sum()))
"""


def test_the_generations_are_those_of_the_setting():
    assert tuple(tpu_look.GENERATIONS) == tuple(settings.TPUS)


SHARDED = """
import jax
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

def ask(x):
    if hasattr(pltpu, "get_tpu_info"):
        assert pltpu.get_tpu_info().num_lanes == 128
    return x + 1

mesh = jax.make_mesh((1,), ("d",))
sharded = jax.shard_map(ask, mesh=mesh, in_specs=P(), out_specs=P())
print(jax.jit(sharded)(jax.numpy.zeros(2)))
"""


def test_inside_a_mesh_of_devices_it_is_a_tpu_too(from_wheel, tmp_path):
    script = tmp_path / "bench.py"
    script.write_text(SHARDED)
    got = from_wheel.run("-m", "pallas_shim", "--tpu=v5p", script)
    assert (got.returncode, got.stdout, got.stderr) == (0, "[1. 1.]\n", "")


@pytest.mark.parametrize("name", ["v5e", "v6e", "v7x"])
def test_a_script_for_a_tpu_only(from_wheel, tmp_path, name):
    script, report = tmp_path / "bench.py", tmp_path / "report.json"
    script.write_text(SCRIPT)
    got = from_wheel.run("-m", "pallas_shim", f"--tpu={name}", f"--report={report}", script)
    kind = tpu_look.GENERATIONS[name].kind
    assert (got.returncode, got.stdout, got.stderr) == (0, f"{kind} 8192\n", "")
    assert [row["rung"] for row in rows_of(report)] == ["numpy"]


def test_several_devices_lie_in_a_line(from_wheel):
    got = from_wheel.run(
        "-m",
        "pallas_shim",
        "--tpu=v5p",
        "-c",
        "import jax; print([d.coords for d in jax.devices()])",
        XLA_FLAGS="--xla_force_host_platform_device_count=2",
    )
    assert (got.returncode, got.stdout, got.stderr) == (0, "[[0, 0, 0], [1, 0, 0]]\n", "")


PLACES = """
import jax
print(jax.device_count(), [(*d.coords, d.core_on_chip) for d in jax.devices()])
from jax.sharding import NamedSharding, PartitionSpec
mesh = jax.make_mesh((jax.device_count(),), ("x",))
x = jax.device_put(jax.numpy.arange(8.0), NamedSharding(mesh, PartitionSpec("x")))
assert len(x.devices()) == jax.device_count()
"""


@pytest.mark.parametrize(
    "name, places",
    [
        ("v5e:2x4", [(x, y, 0, 0) for y in range(4) for x in range(2)]),
        ("v4:2x1x2", [(x, 0, z, 0) for z in range(2) for x in range(2)]),
        ("v7x:2x1x1", [(x, 0, 0, core) for x in range(2) for core in range(2)]),
    ],
)
def test_a_topology_has_its_devices_at_their_places(from_wheel, name, places):
    got = from_wheel.run("-m", "pallas_shim", f"--tpu={name}", "-c", PLACES)
    assert (got.returncode, got.stdout, got.stderr) == (0, f"{len(places)} {places}\n", "")


def test_the_number_of_devices_is_the_users_if_they_say_it(from_wheel):
    flags = "--xla_force_host_platform_device_count=4"
    got = from_wheel.run(
        "-m", "pallas_shim", "--tpu=v5e:2x4", "-c", PLACES, XLA_FLAGS=flags
    )
    assert got.stdout == "4 [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (1, 1, 0, 0)]\n"


def test_without_the_variable_it_is_a_cpu(from_wheel, tmp_path):
    script = tmp_path / "bench.py"
    script.write_text(SCRIPT)
    got = from_wheel.run(script, PALLAS_NUMPY="1")
    assert (got.returncode, got.stdout, got.stderr) == (1, "", "needs a TPU\n")


PIPELINE = """
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

def kernel(x_ref, o_ref):
    def body(x, o):
        o[...] = x[...] * 2

    block = pl.BlockSpec((8, 128), lambda i: (i, 0))
    pltpu.emit_pipeline(body, grid=(3,), in_specs=[block], out_specs=[block])(x_ref, o_ref)

@jax.jit
def run(x):
    any = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(kernel, out_shape=x, in_specs=[any], out_specs=any)(x)

x = jnp.arange(19 * 128.0).reshape(19, 128)
assert (run(x) == 2 * x).all() and jax.devices()[0].platform == "cpu"
"""


@pytest.mark.parametrize("primitive", ["0", "1"])
def test_emit_pipeline_needs_no_tpu_to_be_named(from_wheel, primitive):
    got = from_wheel.run(
        "-c",
        PIPELINE,
        PALLAS_NUMPY="1",
        PALLAS_NUMPY_STRICT="1",
        JAX_USE_EMIT_PIPELINE_PRIMITIVE=primitive,
    )
    assert (got.returncode, got.stdout, got.stderr) == (0, "", "")


def test_deactivate_puts_everything_back(from_wheel):
    got = from_wheel.run(
        "-c",
        """
import jax
from jax.experimental.pallas import tpu as pltpu
names = ["default_backend", "devices", "local_devices", "device_count", "local_device_count"]
before = [jax.__dict__[n] for n in names] + [jax.Device.platform, jax.Device.device_kind]
before.append(getattr(pltpu, "is_tpu_device", None))
import pallas_shim
with pallas_shim.active():
    assert jax.devices()[0].platform == "tpu", jax.devices()[0].platform
    if hasattr(pltpu, "get_tpu_info"):
        pltpu.get_tpu_info()
after = [jax.__dict__[n] for n in names] + [jax.Device.platform, jax.Device.device_kind]
after.append(getattr(pltpu, "is_tpu_device", None))
assert all(a is b for a, b in zip(before, after, strict=True))
assert not any(hasattr(jax.devices()[0], n) for n in ("num_cores", "coords", "core_on_chip"))
try:
    pltpu.get_tpu_info()
except (AttributeError, ValueError):
    pass
else:
    raise AssertionError
print(jax.devices()[0].platform)
""",
        PALLAS_NUMPY_TPU="v4",
    )
    assert (got.returncode, got.stdout, got.stderr) == (0, "cpu\n", "")


def test_a_generation_that_does_not_exist(from_wheel):
    got = from_wheel.run("-m", "pallas_shim", "--tpu=v9", "-c", "1")
    assert got.returncode == 2 and "PALLAS_NUMPY_TPU='v9' isn't allowed" in got.stderr
