"""What holds for all tests: each program is held to the contract of the IR, as lowered and after
each pass. `--some I/N` leaves out cases of tests that have many."""

from __future__ import annotations

import collections
import zlib

import pytest

from pallas_shim.evaluator import passes
from pallas_shim.evaluator.verify import Verifier

passes.watch_all = Verifier

# Tests of fewer cases run all of them.
MANY = 4


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--some", metavar="I/N", help="the Ith of N parts of the cases of each test with many"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part = config.getoption("--some")
    if part is None:
        return
    chosen, parts = map(int, part.split("/"))
    tests = collections.defaultdict(list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    left_out = []
    for cases in tests.values():
        if len(cases) >= MANY:
            # Of the names, so that no dtype or variant is always in the same part.
            theirs = [zlib.crc32(case.nodeid.encode()) % parts + 1 for case in cases]
            kept = chosen if chosen in theirs else theirs[0]
            left_out += [c for c, of in zip(cases, theirs, strict=True) if of != kept]
    config.hook.pytest_deselected(items=left_out)
    skipped = set(left_out)
    items[:] = [item for item in items if item not in skipped]
