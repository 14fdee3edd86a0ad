"""A pytest plugin for JAX's tests: finds what the wheel lacks, and notes how kernels ran.

Environment (set by ``python -m tests.conformance``):
  CONFORMANCE_CHECKOUT: a checkout of JAX at the tag of the installed version.
  CONFORMANCE_RESULTS: a file that gets one JSON line a test.
  CONFORMANCE_DONE: a file with the tests not to run, one a line.
  CONFORMANCE_COMMIT: the commit of the project, for the results.
  CONFORMANCE_MODE: "as-tpu" has the tests' own helpers say that the device is a TPU v5e; "general"
    has Pallas imported before the tests, which don't.
  CONFORMANCE_EVERY: one test in so many is run.
  CONFORMANCE_REFUSALS: 1 also runs all tests that expect the TPU's compiler to refuse a kernel.
  CONFORMANCE_SECONDS: the time limit of a test, after which its process ends: what it would leave
    behind may fail the tests after it.
"""

from __future__ import annotations

import datetime
import faulthandler
import importlib
import json
import os
import pathlib
from typing import Any

import pytest

from tests.conformance import kept, reasons

CHECKOUT = pathlib.Path(os.environ["CONFORMANCE_CHECKOUT"])
RESULTS = pathlib.Path(os.environ["CONFORMANCE_RESULTS"])
DONE = pathlib.Path(os.environ["CONFORMANCE_DONE"])
COMMIT = os.environ["CONFORMANCE_COMMIT"]
MODE = os.environ["CONFORMANCE_MODE"]
EVERY = int(os.environ["CONFORMANCE_EVERY"])
REFUSALS = os.environ["CONFORMANCE_REFUSALS"] == "1"
SECONDS = int(os.environ["CONFORMANCE_SECONDS"])

# Packages whose test helpers are in the repository and not in the wheel. The wheel's own
# modules come first, so nothing that is tested is taken from the checkout.
_PACKAGES = ("jax._src", "jax._src.pallas", "jax._src.internal_test_util")


def pytest_configure(config: pytest.Config) -> None:
    for name in _PACKAGES:
        package = importlib.import_module(name)
        package.__path__.append(str(CHECKOUT / name.replace(".", "/")))
    if MODE == kept.AS_TPU:
        from tests.conformance import as_tpu

        as_tpu.pretend()
    if MODE == kept.GENERAL:
        importlib.import_module("jax.experimental.pallas")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    done = set(DONE.read_text().splitlines())
    chosen = [
        item
        for number, item in enumerate(items)
        if number % EVERY == 0 or (REFUSALS and reasons.expects_refusal(_place(item)))
    ]
    items[:] = [item for item in chosen if item.nodeid.partition("::")[2] not in done]


def _place(item: pytest.Item) -> str:
    """FILE::CLASS::TEST"""
    return f"{item.path.stem}::{item.nodeid.partition('::')[2]}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


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
    _note(item.nodeid, report.outcome, message, report.duration, _rows())


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str) -> None:
    """In the process that starts the others: one of them ended during a test."""
    _note(crashitem, "failed", f"its process crashed, or was ended after {SECONDS} s", 0.0, [])


def _note(test: str, outcome: str, message: str, seconds: float, kernels: list[Any]) -> None:
    line = {
        "test": test,
        "outcome": outcome,
        "message": message[:2000],
        "seconds": round(seconds, 3),
        "kernels": kernels,
        **_checked(),
        "commit": COMMIT,
        "date": datetime.date.today().isoformat(),
    }
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line).replace(f"{CHECKOUT}/", "") + "\n")


def _rows() -> list[dict[str, str]]:
    """What ran: kernels, or functions without one in tests that have nothing to do with Pallas."""
    from pallas_shim.reports.uses import REPORT

    rows = [
        {"kernel": row["name"], "rung": row["rung"], "reason": row["reason"]}
        for row in (REPORT.functions() if MODE == "general" else REPORT.rows())
    ]
    REPORT.clear()
    return rows


def _checked() -> dict[str, list[list[str]]]:
    """What was found, and what wasn't checked, if kernels are checked."""
    if os.environ.get("PALLAS_NUMPY_CHECK", "0") == "0":
        return {}
    from pallas_shim.check.collect import COLLECTOR

    findings = [
        [f"{one.kind}/{one.rule}", one.kernel, one.ref or "",
         (one.accesses[0].where if one.accesses else one.source) or "", one.message]
        for one in COLLECTOR.findings()
    ]  # fmt: skip
    skipped = [list(pair) for pair in COLLECTOR.not_checked()]
    COLLECTOR.clear()
    return {"findings": findings, "not_checked": skipped}
