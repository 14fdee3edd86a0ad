"""Tells the helpers of JAX's tests that the device is a TPU v5e, so that its tests run.

Only the helpers are told: JAX itself still sees the CPU that it runs on.
"""

from __future__ import annotations

from typing import Any

KIND = "TPU v5e"
GENERATION = 5


def pretend() -> None:
    from jax._src import test_util as jtu

    def say(name: str, answer: Any) -> None:
        if hasattr(jtu, name):
            setattr(jtu, name, answer)

    say("device_under_test", lambda: "tpu")
    say("is_device_tpu", lambda version=None, variant="": version in (None, GENERATION) and (
        variant in ("", "e")
    ))
    say("is_device_tpu_at_least", lambda version: version <= GENERATION)
    say("get_tpu_version", lambda: GENERATION)
    say("is_cloud_tpu", lambda: True)
    say("is_cloud_tpu_at_least", lambda *date: True)
    say("is_libtpu_at_least", lambda *date: True)
    say("if_cloud_tpu_at_least", lambda *date: True)
    say("test_device_matches", lambda kinds: bool({"tpu", "tpu_v5e", "tpu_v5"} & set(kinds)))
