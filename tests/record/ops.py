"""python -m tests.record.ops [--docs FILE]: verdicts on JAX's own kernels for TPUs, forward and
gradient, and on tallax's sort if it is on PYTHONPATH. Nothing runs.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_shim.chip import noting, session, tpus
from pallas_shim.chip.jobs import NO_VERDICT
from pallas_shim.jax_compat import export_tpu
from pallas_shim.jax_compat.hooks import tpu_info
from tests.record.__main__ import write

TPUS = ("v5e", "v6e", "v7x")
CASES: dict[str, Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]] = {}


def case(make):
    CASES[make.__name__.replace("_", " ")] = make
    return make


def of(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def gradient(function, count):
    def of_sum(*args):
        return jax.grad(lambda *a: function(*a).sum(), tuple(range(count)))(*args)

    return of_sum


@case
def example():
    from jax.experimental.pallas.ops.tpu import example_kernel

    return example_kernel.double, (of(256, 256),)


@case
def matmul():
    from jax.experimental.pallas.ops.tpu.matmul import matmul as op

    return lambda x, y: op(x, y, block_shape=(256, 256)), (of(512, 512), of(512, 512))


def _flash(causal=True):
    from jax.experimental.pallas.ops.tpu.flash_attention import flash_attention

    return lambda q, k, v: flash_attention(q, k, v, causal=causal), (of(2, 4, 512, 128),) * 3


@case
def flash_attention():
    return _flash()


@case
def flash_attention_gradient():
    function, args = _flash()
    return gradient(function, 3), args


def _splash():
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    mask = splash.MultiHeadMask([splash.CausalMask((512, 512)) for _ in range(2)])
    kernel = splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1)
    return kernel, (of(2, 512, 128),) * 3


@case
def splash_attention():
    return _splash()


@case
def splash_attention_gradient():
    function, args = _splash()
    return gradient(function, 3), args


@case
def paged_attention():
    from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention as op

    pages = of(4, 64, 16, 128)
    lengths, indices = of(4, dtype=np.int32), of(4, 8, dtype=np.int32)
    return lambda *a: op(*a, pages_per_compute_block=4), (
        of(4, 8, 128), pages, pages, lengths, indices,
    )  # fmt: skip


@case
def ragged_paged_attention():
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import (
        ragged_paged_attention as op,
    )

    def function(*a):
        return op(*a, num_kv_pages_per_block=4, num_queries_per_block=32)

    bf16 = jnp.bfloat16
    return function, (
        of(128, 16, 128, dtype=bf16), of(64, 16, 8, 128, dtype=bf16), of(8, dtype=np.int32),
        of(8, 16, dtype=np.int32), of(9, dtype=np.int32), of(1, dtype=np.int32),
    )  # fmt: skip


def _gmm():
    from jax.experimental.pallas.ops.tpu.megablox import gmm as op

    return lambda x, y, sizes: op(x, y, sizes, jnp.float32), (
        of(512, 256), of(4, 256, 256), of(4, dtype=np.int32),
    )  # fmt: skip


@case
def grouped_matmul():
    return _gmm()


@case
def grouped_matmul_gradient():
    function, args = _gmm()
    return gradient(function, 2), args


@case
def threefry():
    from jax.experimental.pallas.ops.tpu.random import threefry as module

    return lambda key: module.plthreefry_random_bits(key, 32, (256, 256)), (of(2, dtype=np.uint32),)


@case
def philox():
    from jax.experimental.pallas.ops.tpu.random import philox as module

    return lambda key: module.philox_random_bits(key, 32, (256, 256)), (of(2, dtype=np.uint32),)


@case
def all_gather():
    from jax.experimental.pallas.ops.tpu.all_gather import all_gather as op

    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    return lambda x: op(x, mesh=mesh, axis_name="x"), (of(8 * len(jax.devices()), 128),)


if importlib.util.find_spec("tallax"):

    @case
    def tallax_sort():
        tax: Any = importlib.import_module("tallax.tax")

        return lambda x: tax.sort(x, num_keys=1, interpret=True), (of(8, 128),)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=pathlib.Path)
    arguments = parser.parse_args()
    sites: list[Any] = []
    owners: list[str] = []
    untraced = {}
    for name, make in CASES.items():
        reached = noting.reached()
        try:
            # Some of JAX's kernels ask for the device when they are traced.
            with tpu_info.pretended("TPU v6 lite", 1):
                function, args = make()
                reached.note(export_tpu.sites(jax.make_jaxpr(function)(*args)))
        except Exception as error:
            untraced[name] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        for site in reached.take():
            sites.append(site)
            owners.append(name)
    found = session.compile_kernels(sites, [tpus.target(name) for name in TPUS])
    said: dict[str, dict[str, list[str]]] = {name: {t: [] for t in TPUS} for name in CASES}
    seconds = []
    for index, verdict in enumerate(found):
        owner = owners[index // len(TPUS)]
        said[owner][verdict.target].append(verdict.answer.outcome)
        seconds.append(verdict.answer.seconds)
        if verdict.answer.message:
            print(owner, verdict.kernel, verdict.target, verdict.answer.outcome,
                  verdict.answer.message[:300])  # fmt: skip
    lines = ["| kernels of | " + " | ".join(TPUS) + " |", "| --- " * (len(TPUS) + 1) + "|"]
    for name, by_tpu in said.items():
        cells = [_cell(by_tpu[t]) for t in TPUS]
        if name in untraced:
            cells = ["not traced"] * len(TPUS)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    text = "\n".join(lines)
    print(text)
    print(untraced)
    print(f"{len(found)} verdicts, median {sorted(seconds)[len(seconds) // 2]:.2f} s of CPU")
    if arguments.docs is not None:
        write(arguments.docs, "ops", text)
    return int(any(v.answer.outcome == NO_VERDICT for v in found))


def _cell(outcomes: list[str]) -> str:
    kinds = dict.fromkeys(outcomes)
    return ", ".join(f"{outcomes.count(kind)} {kind}" for kind in kinds) or "no kernel"


if __name__ == "__main__":
    sys.exit(main())
