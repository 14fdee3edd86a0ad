"""A pytest plugin for JAX's tests: finds what the wheel lacks, and notes how kernels ran.

Environment (set by ``python -m tests.conformance``):
  CONFORMANCE_CHECKOUT: a checkout of JAX at the tag of the installed version.
  CONFORMANCE_RESULTS: a file that gets one JSON line a test.
  CONFORMANCE_AS_TPU: "1" has the tests' own helpers say that the device is a TPU v5e.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib

import pytest

CHECKOUT = pathlib.Path(os.environ["CONFORMANCE_CHECKOUT"])
RESULTS = os.environ["CONFORMANCE_RESULTS"]
AS_TPU = os.environ.get("CONFORMANCE_AS_TPU") == "1"

# Packages whose test helpers are in the repository and not in the wheel. The wheel's own
# modules come first, so nothing that is tested is taken from the checkout.
_PACKAGES = ("jax._src", "jax._src.pallas", "jax._src.internal_test_util")


def pytest_configure(config: pytest.Config) -> None:
    for name in _PACKAGES:
        package = importlib.import_module(name)
        package.__path__.append(str(CHECKOUT / name.replace(".", "/")))
    if AS_TPU:
        from tests.conformance import as_tpu

        as_tpu.pretend()


def _rows() -> list[dict]:
    try:
        from pallas_shim.report import REPORT
    except ImportError:
        return []
    rows = [
        {"kernel": row["name"], "rung": row["rung"], "reason": row["reason"]}
        for row in REPORT.rows()
    ]
    REPORT.clear()
    return rows


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    outcome = yield
    report = outcome.get_result()
    if report.when != "call" and report.outcome == "passed":
        return
    message = ""
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        message = report.longrepr[2]
    elif report.outcome == "failed" and call.excinfo is not None:
        message = f"{call.excinfo.typename}: {call.excinfo.value}"
    line = {
        "test": item.nodeid,
        "outcome": report.outcome,
        "message": message[:2000],
        "seconds": round(report.duration, 3),
        "kernels": _rows(),
    }
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
