"""python -m tests.record.times CHECKOUT --dumps DIR [--docs FILE]: estimates of the public record's
times, against what a real v6e measured.

Each function is compiled as a whole, so that XLA places the operands as it did there. The dumps are
kept in DIR: what is there already isn't compiled again. A function takes its kernels' times, and
those of XLA's operations around them. From five kernels (`FITTED`) `--fit` finds the model's
bandwidth, latency and start; the table is of the others.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax

from pallas_shim.chip import bundles, dumps, isolation, scalar_unit
from pallas_shim.chip.copies import Rates
from pallas_shim.chip.model import MODELS, rates
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
# XLA's operations that only stream: they take the time of their bytes. The others take what XLA
# says of them.
_STREAMS = ("broadcast", "reduce", "kind=kLoop")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}


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


def estimate(name: str, measured: float, kept: pathlib.Path, pace: Rates) -> Estimate:
    """The estimate of a function.

    Raises:
      scalar_unit.Unknown: data decides what its kernels do.
      dumps.UnreadableDump
    """
    text = (kept / name / "hlo.txt").read_text()
    elapsed = waited = 0.0
    for kernel in dumps.kernels(text):
        code = bundles.read(dumps.read(str(kept / name), kernel))
        ran = scalar_unit.run(code, TPU, pace)
        elapsed += ran.cycles
        waited += sum(ran.waits.values())
    around = sum(seconds for seconds in _around(text)) * 1e3
    share = waited / max(elapsed, 1.0)
    return Estimate(name, measured, elapsed / MODEL.clock * 1e3, around, share)


def _around(text: str) -> Iterator[float]:
    """The seconds of each of XLA's operations around the kernels."""
    entry = text[text.rindex("\nENTRY") :].splitlines()
    sizes: dict[str, int] = {}
    for line in entry:
        match = re.match(r"\s*(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)", line)
        if match is None:
            continue
        name, shape, operation, rest = match.groups()
        sizes[name] = _hbm(shape)
        spent = re.search(r'"estimated_cycles":"(\d+)"', line)
        if spent is None:
            continue
        streams = operation in _STREAMS or _STREAMS[-1] in line
        if streams and "copy" not in name:
            read = re.findall(r"%([\w.-]+)", rest.partition(")")[0])
            moved = sizes[name] + sum(sizes.get(each, 0) for each in read)
            yield moved / MODEL.bandwidth
        else:
            yield int(spent[1]) / MODEL.clock


def _hbm(shape: str) -> int:
    """The bytes of an array that lies in HBM."""
    match = re.match(r"(\w+)\[([\d,]*)\]", shape)
    if match is None or "S(1)" in shape:
        return 0
    return _BYTES.get(match[1], 4) * math.prod(int(n) for n in match[2].split(",") if n)


def fit(measured: dict[str, float], kept: pathlib.Path) -> Rates:
    """The pace of copies with the least squares of the logarithms on the fitted kernels."""
    best: tuple[float, tuple[float, float, float]] | None = None
    for bandwidth in (1.2e12, 1.25e12, 1.3e12, 1.35e12):
        for latency in (4e-7, 5e-7, 6e-7):
            for start in (4e-8, 6e-8, 8e-8, 1e-7):
                clock = MODEL.clock
                pace = Rates(bandwidth / clock, latency * clock, start * clock)
                found = [estimate(name, measured[name], kept, pace) for name in FITTED]
                loss = sum(math.log(each.ratio) ** 2 for each in found)
                if best is None or loss < best[0]:
                    best = loss, (bandwidth, latency, start)
                    print(f"{best}", flush=True)
    assert best is not None
    return Rates(*best[1])


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
    alone = [each for each in judged if each.around < 0.1 * each.total]
    waiting = [each for each in alone if each.waits >= 0.5]
    computing = [each for each in alone if each.waits < 0.5]
    mixed = [each for each in judged if each.around >= 0.1 * each.total]
    return "\n".join([
        "| functions | number | mean error (factor) | rank correlation | within 15% | worst |",
        "| --- | --- | --- | --- | --- | --- |",
        summary("their kernels take nine tenths of the estimate", alone),
        summary("of these: bound by copies", waiting),
        summary("of these: bound by compute", computing),
        summary("XLA's operations take more", mixed),
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
            made = estimate(case.name, measured[case.name], arguments.dumps, rates(TPU))
        except (scalar_unit.Unknown, dumps.UnreadableDump) as error:
            print(f"{case.name}: no estimate: {error}")
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
