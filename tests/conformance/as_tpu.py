"""Tells the helpers of JAX's tests that the device is a TPU, so that its tests run.

Only the helpers are told, and what the tests ask themselves is answered by PALLAS_NUMPY_TPU: JAX
still sees the CPU that it runs on.
"""

from __future__ import annotations

from pallas_shim import settings

# What jtu calls the version and variant of each.
GENERATIONS = {"v5e": (5, "e"), "v7x": (7, "x")}
TPU = "v5e"
# Files whose tests need another.
OTHERS = dict.fromkeys(
    (
        "tpu_pallas_mpmd_test",
        "tpu_sparsecore_pallas_test",
        "tpu_sparsecore_pallas_distributed_test",
    ),
    "v7x",
)


def pretend() -> None:
    """Called before the tests are collected."""
    from jax._src import test_util as jtu

    version_here, variant_here = GENERATIONS[settings.current().tpu or TPU]

    def is_device_tpu(version: int | None = None, variant: str = "") -> bool:
        return version in (None, version_here) and variant in ("", variant_here)

    # Whatever else asks which device it is asks one of these. No version of libtpu is too old,
    # since none is there.
    answers = {
        "device_under_test": lambda: "tpu",
        "get_tpu_version": lambda: version_here,
        "is_device_tpu": is_device_tpu,
    }
    for name, answer in answers.items():
        assert hasattr(jtu, name), name
        setattr(jtu, name, answer)
