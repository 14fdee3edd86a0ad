"""Runs JAX's tests/pallas on stock JAX and under the shim, and writes docs/conformance.md.

    python -m tests.conformance CHECKOUT [--as-tpu] [--only NAME ...] [--out FILE]

CHECKOUT is JAX's repository at the tag of the installed version. Each file runs in processes
of its own, several tests at a time, each test with a time limit. Stock's results are kept
(--keep DIR), since they change only with JAX.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping

from tests.conformance.as_tpu import TPU

ROOT = pathlib.Path(__file__).resolve().parents[2]

AS_IS = (
    "pallas_test",
    "ops_test",
    "indexing_test",
    "pallas_vmap_test",
    "tpu_pallas_test",
    "tpu_pallas_interpret_test",
    "tpu_pallas_pipeline_test",
    "gpu_ops_test",
    "gpu_attention_test",
    "gpu_paged_attention_test",
    "tpu_paged_attention_kernel_test",
    "gpu_pallas_interpret_test",
    "einshape_test",
    "fusion_test",
    "pallas_shape_poly_test",
)
AS_TPU = (
    "ops_test",
    "pallas_test",
    "indexing_test",
    "tpu_pallas_test",
    "tpu_ops_test",
    "tpu_pallas_pipeline_test",
    "tpu_pallas_async_test",
    "tpu_pallas_state_test",
    "tpu_pallas_random_test",
    "tpu_pallas_memory_space_test",
    "tpu_pallas_mpmd_test",
    "tpu_gmm_test",
    "tpu_splash_attention_kernel_test",
    "tpu_paged_attention_kernel_test",
    "tpu_ragged_paged_attention_test",
)

Results = Mapping[str, Mapping]


def run_file(
    path: pathlib.Path, checkout: pathlib.Path, *, shim: bool, as_tpu: bool, seconds: int, jobs: int
) -> Results:
    """The results of one test file: by test, its outcome, message, kernels.

    A test that was collected and has no result crashed its process or was cut off.
    """
    with tempfile.TemporaryDirectory() as scratch:
        results = pathlib.Path(scratch) / "results.jsonl"
        results.touch()
        environment = {
            **os.environ,
            "CONFORMANCE_CHECKOUT": str(checkout),
            "CONFORMANCE_RESULTS": str(results),
            "CONFORMANCE_AS_TPU": "1" if as_tpu else "0",
            "PALLAS_NUMPY": "1" if shim else "0",
            "PALLAS_NUMPY_TPU": TPU if as_tpu else "0",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "sitecustomize_pkg"), str(ROOT)]),
            "JAX_ENABLE_CHECKS": "0",
        }
        command = [
            sys.executable, "-m", "pytest", "-p", "tests.conformance.plugin", "-q", "-x",
            "--maxfail=1000000", "-p", "no:cacheprovider", f"--timeout={seconds}",
            "--timeout-method=signal", "-n", str(jobs), "--max-worker-restart=50",
            "--rootdir", str(checkout), str(path),
        ]  # fmt: skip
        done = subprocess.run(
            command, env=environment, cwd=checkout / "tests", capture_output=True, text=True
        )
        lines = map(json.loads, results.read_text().splitlines())
        found = {line["test"].partition("::")[2]: line for line in lines}
        if not found:
            print(done.stdout[-2000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
        for line in done.stdout.splitlines():
            if "crashed while running" in line or line.startswith("FAILED"):
                name = line.partition("::")[2].split()[0].strip("'\"")
                found.setdefault(
                    name,
                    {"test": name, "outcome": "failed", "message": "crashed", "kernels": []},
                )
        return found


def _count(results: Results, outcome: str) -> int:
    return sum(r["outcome"] == outcome for r in results.values())


def _rungs(results: Results) -> collections.Counter:
    return collections.Counter(k["rung"] for r in results.values() for k in r["kernels"])


def table(stock: Mapping[str, Results], shim: Mapping[str, Results]) -> Iterable[str]:
    """Markdown: a row a file, then each test that stock passes and the shim doesn't, with why."""
    yield "| file | stock passed / failed / skipped | shim passed / failed / skipped | rungs |"
    yield "| --- | --- | --- | --- |"
    for name, ours in shim.items():
        theirs = stock.get(name, {})
        rungs = ", ".join(f"{rung} {count}" for rung, count in sorted(_rungs(ours).items()))
        cells = [
            " / ".join(str(_count(r, o)) for o in ("passed", "failed", "skipped"))
            for r in (theirs, ours)
        ]
        yield f"| {name} | {cells[0]} | {cells[1]} | {rungs} |"
    for title, chosen in (
        ("Passed by stock, not by the shim", lambda t, o: t == "passed" and o != "passed"),
        ("Failed by both", lambda t, o: t == "failed" and o == "failed"),
        ("Failed by the shim, skipped by stock", lambda t, o: t == "skipped" and o == "failed"),
        ("Failed by the shim, not run on stock", lambda t, o: t is None and o == "failed"),
    ):
        rows = [
            f"| {name} | {test} | {_first_line(ours[test]['message'])} |"
            for name, ours in shim.items()
            for test in sorted(ours)
            if chosen(stock.get(name, {}).get(test, {}).get("outcome"), ours[test]["outcome"])
        ]
        if rows:
            yield from ("", f"## {title}", "", "| file | test | why |", "| --- | --- | --- |")
            yield from rows
    reasons = collections.Counter(
        (k["rung"], k["reason"]) for r in shim.values() for t in r.values() for k in t["kernels"]
        if k["rung"] != "numpy"
    )
    if reasons:
        yield from ("", "## Kernels not on the numpy rung", "", "| rung | reason | kernels |")
        yield "| --- | --- | --- |"
        for (rung, reason), count in reasons.most_common():
            yield f"| {rung} | {_first_line(reason)} | {count} |"


def _first_line(message: str) -> str:
    line = message.strip().splitlines()[0] if message.strip() else "-"
    return line[:200].replace("|", "\\|")


def _kept(keep: pathlib.Path | None, name: str, as_tpu: bool) -> pathlib.Path | None:
    if keep is None:
        return None
    keep.mkdir(parents=True, exist_ok=True)
    return keep / f"{name}{'-as-tpu' if as_tpu else ''}.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("checkout", type=pathlib.Path)
    parser.add_argument("--as-tpu", action="store_true", help="tell the tests they are on a TPU")
    parser.add_argument("--only", nargs="*", help="files, without .py")
    parser.add_argument("--seconds", type=int, default=300, help="time limit for a test")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=pathlib.Path, help="where stock's results are kept")
    parser.add_argument("--no-stock", action="store_true", help="run under the shim only")
    parser.add_argument("--out", type=pathlib.Path, help="a Markdown file, instead of printing")
    options = parser.parse_args()
    if not (options.checkout / "tests/pallas").is_dir():
        parser.error(f"{options.checkout} is no checkout of JAX: it has no tests/pallas")
    checkout = options.checkout.resolve()
    stock: dict[str, Results] = {}
    shim: dict[str, Results] = {}
    for name in options.only or (AS_TPU if options.as_tpu else AS_IS):
        path = checkout / "tests/pallas" / f"{name}.py"
        if not path.exists():
            print(f"{name}: not in this version of JAX", file=sys.stderr)
            continue
        common = {"as_tpu": options.as_tpu, "seconds": options.seconds, "jobs": options.jobs}
        kept = _kept(options.keep, name, options.as_tpu)
        if kept is not None and kept.exists():
            stock[name] = json.loads(kept.read_text())
        elif not options.no_stock:
            stock[name] = run_file(path, checkout, shim=False, **common)
            if kept is not None:
                kept.write_text(json.dumps(stock[name]))
        shim[name] = run_file(path, checkout, shim=True, **common)
        print(
            f"{name}: stock {_count(stock.get(name, {}), 'passed')} passed, shim "
            f"{_count(shim[name], 'passed')} passed, {_count(shim[name], 'failed')} failed, "
            f"{_count(shim[name], 'skipped')} skipped; {dict(_rungs(shim[name]))}",
            file=sys.stderr,
        )
    text = "\n".join(table(stock, shim)) + "\n"
    if options.out is not None:
        options.out.write_text(text)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
