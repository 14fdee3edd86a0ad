"""Findings to show."""

from __future__ import annotations

from pallas_shim.evaluator.findings import Access, Finding


def race(file: str = "/src/ops/kernels.py", **changes) -> Finding:
    made = {
        "kind": "races",
        "rule": "write-write",
        "kernel": "accumulate",
        "message": "Two cells along the parallel axis 0 write the same elements.",
        "advice": "Declare axis 0 as arbitrary, or give each cell a block of its own.",
        "accesses": (
            Access("writes", "[0:8, 0:128]", f"{file}:3", "device 1, core 0", (3, 0)),
            Access("writes", "[0:8, 0:128]", f"{file}:3", "device 0, core 0", (2, 0)),
        ),
        "ref": "o_ref",
        "source": f"{file}:2",
    }
    return Finding(**{**made, **changes})


def deadlock() -> Finding:
    return Finding(
        "sync",
        "deadlock",
        "all_gather",
        "2 programs wait, and none can go on.",
        "Signal the semaphore before the wait.",
        (Access("waits for", " (has 0, needs 1)", "/src/ring.py:40", "device 0"),),
        "sem",
        "/src/ring.py:12",
    )
