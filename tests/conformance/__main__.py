"""Runs JAX's tests on stock JAX and under the shim, and writes docs/conformance.md.

    python -m tests.conformance CHECKOUT [--as-tpu | --general]
                                [--scope exact | --scope all | --check | --compile]
                                [--only FILE ...] [--rerun failed] [--no-stock]

The tests are those of Pallas, in tests/pallas, or with --general some that have nothing to do with
it, which are to be the same with Pallas imported.

CHECKOUT is JAX's repository at the tag of the installed version. Each file runs in processes of
its own, each test with a time limit. Every result is kept as it comes in (--keep DIR), and the
document is made of what is kept. Stock's results change only with JAX, so a test that has one
isn't run again; of the shim's, --rerun says which are.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

from tests.conformance import document, kept
from tests.conformance.as_tpu import OTHERS, TPU

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
    "tpu_pallas_interpret_distributed_test",
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
    "tpu_pallas_distributed_test",
    "tpu_all_gather_test",
    "tpu_splash_attention_kernel_sharded_test",
    "tpu_fusible_matmul_test",
    "tpu_side_effects_test",
    "tpu_sparsecore_pallas_test",
    "tpu_sparsecore_pallas_distributed_test",
)
# Of JAX's general tests, which are many: one test in so many of each file.
GENERAL = {"api_test": 1, "lax_test": 2, "random_test": 1}
# With --check, of files whose tests are many and alike.
CHECKED = {
    "gpu_attention_test": 4,
    "ops_test": 10,
    "tpu_pallas_test": 5,
    "tpu_ops_test": 5,
    "tpu_pallas_pipeline_test": 2,
    "tpu_fusible_matmul_test": 6,
    "tpu_paged_attention_kernel_test": 6,
    "tpu_ragged_paged_attention_test": 6,
    "tpu_sparsecore_pallas_test": 2,
    "tpu_splash_attention_kernel_test": 12,
    "tpu_splash_attention_kernel_sharded_test": 4,
}
# With --compile, beside all tests that expect the compiler to refuse a kernel.
COMPILED = 40


def run_file(
    path: pathlib.Path,
    checkout: pathlib.Path,
    results: pathlib.Path,
    *,
    shim: bool,
    mode: str,
    scope: str,
    check: bool,
    compiled: bool,
    seconds: int,
    jobs: int,
) -> None:
    """Runs the tests of one file that have no result in the file ``results``, and adds theirs."""
    with tempfile.TemporaryDirectory() as scratch:
        done = pathlib.Path(scratch) / "done"
        done.write_text("\n".join(kept.read(results)))
        every = GENERAL if mode == kept.GENERAL else CHECKED if check else {}
        tpu = OTHERS.get(path.stem, TPU) if mode == kept.AS_TPU else "0"
        environment = {
            **os.environ,
            "CONFORMANCE_CHECKOUT": str(checkout),
            "CONFORMANCE_RESULTS": str(results),
            "CONFORMANCE_DONE": str(done),
            "CONFORMANCE_COMMIT": commit() if shim else "",
            "CONFORMANCE_MODE": mode,
            "CONFORMANCE_EVERY": str(COMPILED if compiled else every.get(path.stem, 1)),
            "CONFORMANCE_REFUSALS": "1" if compiled else "0",
            "CONFORMANCE_SECONDS": str(seconds),
            "PALLAS_NUMPY": "1" if shim else "0",
            "PALLAS_NUMPY_SCOPE": scope,
            "PALLAS_NUMPY_CHECK": "1" if check else "0",
            "PALLAS_NUMPY_TPU": tpu,
            "PALLAS_NUMPY_COMPILE": tpu if compiled else "0",
            "PALLAS_NUMPY_STRICT": "1" if compiled else "0",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "sitecustomize_pkg"), str(ROOT)]),
            "JAX_ENABLE_CHECKS": "0",
        }
        command = [
            sys.executable, "-m", "pytest", "-p", "tests.conformance.plugin", "-q",
            "-p", "no:cacheprovider",
            # To JAX's tests each warning is an error, and what is left to JAX is said by one.
            "-W", "ignore:the Pallas kernel",
            "-n", str(jobs), "--max-worker-restart=1000", "--rootdir", str(checkout), str(path),
        ]  # fmt: skip
        ran = subprocess.run(
            command, env=environment, cwd=checkout / "tests", capture_output=True, text=True
        )
    # 0: all passed; 1: some failed, or a file couldn't be imported; 5: none was left to run.
    if ran.returncode not in (0, 1, 5) or "ERROR collecting" in ran.stdout:
        print(ran.stdout[-4000:], ran.stderr[-4000:], sep="\n", file=sys.stderr)
        raise SystemExit(f"pytest couldn't run {path}: exit status {ran.returncode}")


def commit() -> str:
    """The project's commit; "-dirty" after it if files differ from it."""
    return subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkout", type=pathlib.Path)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--as-tpu",
        action="store_const",
        const=kept.AS_TPU,
        dest="mode",
        help="tell the tests they are on a TPU",
    )
    which.add_argument(
        "--general",
        action="store_const",
        const=kept.GENERAL,
        dest="mode",
        help=f"run, with Pallas imported, a part of {', '.join(GENERAL)}",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--scope",
        choices=("library", "exact", "all"),
        default="library",
        help="as PALLAS_NUMPY_SCOPE: which functions without kernels run in the evaluator, too",
    )
    how.add_argument("--check", action="store_true", help="check kernels while they run")
    how.add_argument(
        "--compile",
        action="store_true",
        help="with --as-tpu: calls raise what the TPU's compiler refuses. Runs the tests that "
        f"expect it, and one in {COMPILED} of the others. It needs libtpu",
    )
    parser.add_argument("--only", nargs="*", metavar="FILE", help="files, without .py")
    parser.add_argument(
        "--rerun",
        choices=("all", "failed", "missing", "nothing"),
        default="all",
        help="which tests run under the shim again; missing: those without a result",
    )
    parser.add_argument("--no-stock", action="store_true", help="run nothing on stock JAX")
    parser.add_argument("--seconds", type=int, default=300, help="time limit for a test")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=pathlib.Path, default=kept.HOME, help="[%(default)s]")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs/conformance.md")
    options = parser.parse_args()
    if not (options.checkout / "tests/pallas").is_dir():
        parser.error(f"{options.checkout} is no checkout of JAX: it has no tests/pallas")
    if options.compile and options.mode != kept.AS_TPU:
        parser.error("--compile needs --as-tpu")
    checkout = options.checkout.resolve()
    mode = options.mode or kept.AS_IS
    names = {kept.AS_IS: AS_IS, kept.AS_TPU: AS_TPU, kept.GENERAL: tuple(GENERAL)}[mode]
    folder = checkout / ("tests" if mode == kept.GENERAL else "tests/pallas")
    way = kept.CHECKED if options.check else kept.WAYS[options.scope]
    way = kept.COMPILED if options.compile else way
    results = kept.Results(options.keep, mode=mode, way=way)
    for name in options.only or names:
        path = folder / f"{name}.py"
        if not path.exists():
            print(f"{name}: not in this version of JAX", file=sys.stderr)
            continue
        limits = {"mode": mode, "scope": options.scope, "check": options.check,
                  "compiled": options.compile, "seconds": options.seconds, "jobs": options.jobs}
        if not (options.no_stock or options.check or options.compile):
            run_file(path, checkout, results.path(name, shim=False), shim=False, **limits)
        if options.rerun != "nothing":
            ours = results.path(name, shim=True)
            kept.forget(ours, options.rerun)
            run_file(path, checkout, ours, shim=True, **limits)
        print(f"{name}: {document.summary(results, name)}", file=sys.stderr)
    document.write(options.out, names, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
