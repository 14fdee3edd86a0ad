"""python -m tests.record.times CHECKOUT --dumps DIR [--docs FILE]: estimates of the public record's
times, against what a real v6e measured.

Each function is compiled as a whole, so that XLA places the operands as it did there. The dumps are
kept in DIR: what is there already isn't compiled again. A function takes its kernels' times, and
those of XLA's operations around them. From five kernels (`FITTED`) `--fit` finds the model's
bandwidth, latency and start; the table is of the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple
from unittest import mock

import jax

from pallas_shim.chip import dumps, isolation, tpus, whole
from pallas_shim.chip.jobs import ACCEPTED, Answer
from pallas_shim.chip.model import MODELS
from tests.record.__main__ import RAN, Case, cases, write

TPU = "v6e"
MODEL = MODELS[TPU]
FITTED = (
    "4_Matrix_vector_multiplication_",
    "5_Matrix_scalar_multiplication",
    "7_Matmul_with_small_K_dimension_",
    "10_3D_tensor_matrix_multiplication",
    "ragged_dot",
)


class NoEstimate(Exception):
    """The message says why."""


class Estimate(NamedTuple):
    """Milliseconds, of one call of a function. ``waits``: the share of the kernels' time that they
    wait for copies."""

    name: str
    measured: float
    kernels: float
    around: float
    waits: float

    @property
    def total(self) -> float:
        return self.kernels + self.around + MODEL.launch * 1e3

    @property
    def is_mostly_kernels(self) -> bool:
        return self.around < whole.LITTLE * self.kernels

    @property
    def ratio(self) -> float:
        return self.total / self.measured


def compile_all(found: Sequence[Case], kept: pathlib.Path, seconds: int) -> None:
    """Compiles the functions whose dumps aren't kept yet, each in a process of its own."""
    for case in found:
        out = kept / case.name
        if (out / "hlo.txt").exists() or (out / "failed.txt").exists():
            continue
        with tempfile.TemporaryDirectory() as own:
            dump = os.path.join(own, "dump")
            os.mkdir(dump)
            command = [sys.executable, "-m", "tests.record.whole", str(case.path), dump, str(out)]
            limit = f'ulimit -t {seconds}; exec "$@"'
            done = subprocess.run(
                ["sh", "-c", limit, "sh", *command, TPU], env=isolation.environment(own, dump),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            )  # fmt: skip
        if done.returncode:
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            (out / "failed.txt").write_text(f"{done.returncode}\n{done.stdout[-2000:]}")
        print(f"{case.name}: {'failed' if done.returncode else 'compiled'}", file=sys.stderr)


def estimate(name: str, measured: float, kept: pathlib.Path) -> Estimate:
    """The estimate of a function.

    Raises:
      NoEstimate
    """
    text = (kept / name / "hlo.txt").read_text()
    found = {}
    for kernel in dumps.kernels(text):
        with contextlib.suppress(dumps.UnreadableDump):
            found[kernel] = dumps.read(str(kept / name), kernel)
    answer = Answer(ACCEPTED, schedule=dumps.Compiled(text, found))
    made = whole.whole(name, tpus.target(TPU), answer)
    if made.kernels is None or made.around is None:
        raise NoEstimate(made.unknown)
    waited = sum(each.waited for each in made.operations)
    share = waited / max(made.kernels, 1e-12)
    return Estimate(name, measured, made.kernels * 1e3, made.around * 1e3, share)


def fit(measured: dict[str, float], kept: pathlib.Path) -> tuple[float, float, float]:
    """The pace of copies with the least squares of the logarithms on the fitted kernels."""
    best: tuple[float, tuple[float, float, float]] | None = None
    for bandwidth in (1.2e12, 1.25e12, 1.3e12, 1.35e12):
        for latency in (4e-7, 5e-7, 6e-7):
            for start in (4e-8, 6e-8, 8e-8, 1e-7):
                model = MODEL._replace(bandwidth=bandwidth, latency=latency, start=start)
                with mock.patch.dict(MODELS, {TPU: model}):
                    found = [estimate(name, measured[name], kept) for name in FITTED]
                loss = sum(math.log(each.ratio) ** 2 for each in found)
                if best is None or loss < best[0]:
                    best = loss, (bandwidth, latency, start)
                    print(f"{best}", flush=True)
    assert best is not None
    return best[1]


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's. Equal numbers share their ranks."""
    xs, ys = (_ranks([pair[at] for pair in pairs]) for at in (0, 1))
    mean = (len(pairs) - 1) / 2
    products = sum((x - mean) * (y - mean) for x, y in zip(xs, ys, strict=True))
    squares = [sum((n - mean) ** 2 for n in ranks) for ranks in (xs, ys)]
    return products / math.sqrt(squares[0] * squares[1])


def _ranks(values: Sequence[float]) -> list[float]:
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]


def summary(kind: str, found: Sequence[Estimate]) -> str:
    """A row of the table."""
    errors = [abs(math.log(each.ratio)) for each in found]
    if len(found) < 2:
        return f"| {kind} | {len(found)} | | | | |"
    mean, worst = (math.exp(n) for n in (sum(errors) / len(errors), max(errors)))
    near = sum(error <= math.log(1.15) for error in errors)
    ranks = rank_correlation([(each.total, each.measured) for each in found])
    return f"| {kind} | {len(found)} | {mean:.2f} | {ranks:.2f} | {near} | {worst:.2f} |"


def table(found: Sequence[Estimate]) -> str:
    judged = [each for each in found if each.name not in FITTED]
    # Where XLA's operations take little, the function's time is the kernels'.
    alone = [each for each in judged if each.is_mostly_kernels]
    waiting = [each for each in alone if each.waits >= 0.5]
    computing = [each for each in alone if each.waits < 0.5]
    mixed = [each for each in judged if not each.is_mostly_kernels]
    return "\n".join([
        "| functions | number | mean error (factor) | rank correlation | within 15% | worst |",
        "| --- | --- | --- | --- | --- | --- |",
        summary("XLA's operations take less than an eighth of the kernels' time", alone),
        summary("of these: bound by copies", waiting),
        summary("of these: bound by compute", computing),
        summary("they take more", mixed),
        summary("all", judged),
    ])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=pathlib.Path)
    parser.add_argument("--model", default="gpt53")
    parser.add_argument("--dumps", type=pathlib.Path, required=True)
    parser.add_argument("--seconds", type=int, default=240, help="of CPU, to compile a function")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--docs", type=pathlib.Path)
    arguments = parser.parse_args()
    path = arguments.checkout / f"pallas_eval/results/eval_{arguments.model}.json"
    rows = json.loads(path.read_text())["results"]
    measured = {row["name"]: row["generated_ms"] for row in rows if row["status"] == "success"}
    ran = [case for case in cases(arguments.checkout, arguments.model) if case.outcome == RAN]
    compile_all(ran, arguments.dumps, arguments.seconds)
    if arguments.fit:
        print(fit(measured, arguments.dumps))
        return 0
    found = []
    for case in ran:
        if not (arguments.dumps / case.name / "hlo.txt").exists():
            print(f"{case.name}: not compiled")
            continue
        try:
            made = estimate(case.name, measured[case.name], arguments.dumps)
        except NoEstimate as error:
            print(f"{case.name}: {error}")
            continue
        found.append(made)
        print(
            f"{made.name}: {made.measured:.3f} ms, estimated {made.total:.3f} ({made.ratio:.2f}), "
            f"of which {made.around:.3f} around; kernels wait {made.waits:.0%}",
            flush=True,
        )
    text = table(found)
    print(text)
    print(f"JAX {jax.__version__}; {len(ran) - len(found)} functions without an estimate")
    if arguments.docs is not None:
        write(arguments.docs, f"times {arguments.model}", text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
