"""Breaks right kernels by machine, and counts which of the mutants the checker finds.

    python -m tests.mutation                    # checks; writes docs/checking-mutants.md
    python -m tests.mutation --judge            # first asks the oracle about new mutants
    python -m tests.mutation --only double_buffered --show

What the oracle said is kept in tests/mutation/verdicts.json. It doesn't depend on the checker.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys

# Before JAX: some kernels are for several devices, and all are checked.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["PALLAS_NUMPY_CHECK"] = "1"
os.environ["PALLAS_NUMPY_CACHE"] = "0"

from tests.mutation import document, pool, verdicts  # noqa: E402
from tests.mutation.checked import check  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--judge", action="store_true", help="ask the oracle about new mutants")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of kernels' names")
    parser.add_argument("--show", action="store_true", help="show each mutant that isn't found")
    chosen = parser.parse_args()
    names = [name for name in pool.kernels() if any(part in name for part in chosen.only)]
    if chosen.judge:
        verdicts.judge(names)
    known = verdicts.read()
    rows: list[document.Row] = []
    for name in names:
        kernel = pool.Pooled(name)
        original = check(kernel.jaxpr, kernel.args)
        rows.append(document.Row(name, None, "right", original))
        if original.findings or original.error:
            print(f"{name}: a finding on the right kernel: {original}", flush=True)
        for key, mutant in kernel.mutants.items():
            verdict = known.get(name, {}).get(key, ("unjudged", ""))[0]
            row = document.Row(name, mutant, verdict, check(mutant.jaxpr, kernel.args))
            rows.append(row)
            if chosen.show and verdict == "fault" and not row.found:
                print(f"{name}: {key}, {mutant.line}: not found; {row.outcome}", flush=True)
    if chosen.only == [""]:
        (ROOT / "docs" / "checking-mutants.md").write_text(document.text(rows))
    print(document.summary(rows))
    return 0 if document.good(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
