"""What holds for all tests: every program is held to the contract of the IR, after lowering and
after each pass, also in the processes that tests start."""

from __future__ import annotations

pass


def pytest_configure() -> None:
    from pallas_shim.evaluator import passes
    from pallas_shim.evaluator.verify import Verifier

    passes.watch_all = Verifier
