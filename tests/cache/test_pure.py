"""The tables of what is pure in the libraries, against the libraries that are installed; and that
what is useful is kept."""

from __future__ import annotations

import importlib
import pathlib
import sys
import types

import jax
import numpy as np
import pytest

from pallas_shim.cache import key, libraries, pristine, pure, rules  # noqa: F401 (key's readers)
from pallas_shim.cache.audit import audit
from pallas_shim.cache.fingerprint import Fingerprint
from pallas_shim.jax_compat import inputs

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("module", pure.PURE | pure.IMPURE)
def test_each_public_name_is_in_one_table(module):
    try:
        found = importlib.import_module(module)
    except ImportError:
        pytest.skip("not in this version of JAX")
    names = {
        name
        for name in vars(found)
        if not name.startswith("_") and not isinstance(vars(found)[name], types.ModuleType)
    }
    one, other = (set(table.get(module, "").split()) for table in (pure.PURE, pure.IMPURE))
    assert not one & other
    assert names - one - other <= {"annotations", "TYPE_CHECKING"}


def test_what_reads_the_world_is_not_pure():
    for name in ("load", "fromfile", "loadtxt", "geterr", "empty", "get_printoptions"):
        assert not libraries.is_pure("numpy", name, getattr(np, name))
    for name in ("devices", "config", "device_count"):
        assert not libraries.is_pure("jax", name, getattr(jax, name))
    assert not any(map(rules.is_pure_builtin, ("open", "id", "hash", "eval", "vars", "print")))


@pytest.fixture(scope="module")
def kernels():
    sys.path.append(str(BENCHMARKS))
    yield importlib.import_module("kernels").KERNELS
    sys.path.remove(str(BENCHMARKS))


def test_the_kernels_of_the_benchmarks_can_be_kept(kernels):
    refused = {}
    for name, kernel in kernels.items():
        try:
            function, _ = kernel.build()
        except ImportError:  # of a package, or of what this version of JAX lacks
            continue
        fingerprint = Fingerprint()
        try:
            fingerprint.add_jitted(*inputs.jitted(jax.jit(function)))
            fingerprint.digest()
            audit(fingerprint.found)
        except Exception as error:
            refused[name] = str(error)
    assert refused == {}


KERNELS_OF_JAX = {
    "gpu.softmax": "softmax",
    "gpu.layer_norm": "layer_norm",
    "gpu.rms_norm": "rms_norm",
    "gpu.attention": "mha",
    "gpu.decode_attention": "mqa",
    "gpu.paged_attention": "paged_attention",
    "tpu.flash_attention": "flash_attention",
    "tpu.matmul": "matmul",
    "tpu.megablox.gmm": "gmm",
    "tpu.paged_attention.paged_attention_kernel": "paged_attention",
    "tpu.splash_attention.splash_attention_kernel": "make_splash_mha",
}


@pytest.mark.parametrize("module, name", KERNELS_OF_JAX.items())
def test_the_kernels_that_come_with_jax_can_be_kept(module, name):
    try:
        kernel = getattr(importlib.import_module(f"jax.experimental.pallas.ops.{module}"), name)
    except ImportError:
        pytest.skip("not in this version of JAX")

    def users(*args):
        return kernel(*args)

    fingerprint = Fingerprint()
    fingerprint.add_jitted(*inputs.jitted(jax.jit(users)))
    fingerprint.digest()
    audit(fingerprint.found)
