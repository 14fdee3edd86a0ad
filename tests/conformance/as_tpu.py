"""Tells the helpers of JAX's tests that the device is a TPU v5e, so that its tests run.

Only the helpers are told, and what the tests ask themselves is answered by PALLAS_NUMPY_TPU: JAX
still sees the CPU that it runs on.
"""

from __future__ import annotations

from pallas_shim import settings

TPU = "v5e"
VERSION, VARIANT = 5, "e"


def pretend() -> None:
    """Called before the tests are collected."""
    from jax._src import test_util as jtu

    assert settings.current().tpu == TPU

    def is_device_tpu(version: int | None = None, variant: str = "") -> bool:
        return version in (None, VERSION) and variant in ("", VARIANT)

    # Whatever else asks which device it is asks one of these. No version of libtpu is too old,
    # since none is there.
    answers = {
        "device_under_test": lambda: "tpu",
        "get_tpu_version": lambda: VERSION,
        "is_device_tpu": is_device_tpu,
    }
    for name, answer in answers.items():
        assert hasattr(jtu, name), name
        setattr(jtu, name, answer)
