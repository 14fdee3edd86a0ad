"""python -m tests.record CHECKOUT: asks the compiler about the kernels of a public record.

CHECKOUT is a copy of github.com/aryatschand/JAXBench. Its pallas_eval/results say what a TPU v6e
with JAX 0.6.2 said of generated kernels: milliseconds, or an error. Nothing is downloaded, and
nothing of that repository is part of this one. The kernels are traced and compiled, not run.

It prints the counts and every disagreement. `--docs FILE` writes the table between the file's
markers.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.util
import json
import pathlib
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from pallas_shim.chip import noting, session, tpus
from pallas_shim.chip.jobs import ACCEPTED, NO_VERDICT, REFUSED
from pallas_shim.chip.verdicts import Verdict
from pallas_shim.jax_compat import export_tpu

# What of a chip's message says that the compiler refused the kernel, by stage.
REFUSALS = {
    "JAX's lowering": (
        r"The Pallas TPU lowering currently requires|Unimplemented primitive in Pallas TPU lowering"
        r"|Only 2D gather is supported"
    ),
    "memory": (
        r"would exceed memory|Ran out of memory in memory space vmem"
        r"|XLA:TPU compile permanent error"
    ),
    "Mosaic": r"Mosaic failed to compile",
}
RAN, CHIP_REFUSED, OTHER = "ran", "refused", "failed otherwise"


class Case(NamedTuple):
    """One kernel of the record: what the chip said, and the stage that refused it."""

    name: str
    path: pathlib.Path
    outcome: str
    stage: str | None
    message: str


class Result(NamedTuple):
    case: Case
    verdicts: list[Verdict]
    untraced: str | None


def cases(checkout: pathlib.Path, model: str) -> Iterator[Case]:
    """The record of one model's kernels."""
    record = json.loads((checkout / f"pallas_eval/results/eval_{model}.json").read_text())
    for row in record["results"]:
        folder = checkout / "pallas_eval/generated" / model
        found = sorted(folder.rglob(f"{row['name']}.py"))
        if len(found) != 1:
            raise SystemExit(f"{row['name']}: {len(found)} files below {folder}")
        message = f"{row.get('error', '')}\n{row.get('traceback', '')}"
        stage = next((s for s, p in REFUSALS.items() if re.search(p, message)), None)
        if row["status"] == "success":
            yield Case(row["name"], found[0], RAN, None, "")
        else:
            yield Case(row["name"], found[0], CHIP_REFUSED if stage else OTHER, stage, message)


@contextlib.contextmanager
def limit(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    # Again and again: an exception in a callback, such as the garbage collector's, is lost.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def function_of(path: pathlib.Path) -> tuple[Callable[..., Any], Callable[[], Any]]:
    """What a case's file measures: its model's forward function, and what makes its inputs."""
    spec = importlib.util.spec_from_file_location(f"record_{abs(hash(path))}", path)
    assert spec is not None and spec.loader is not None
    if not hasattr(pltpu, "repeat"):  # of the record's JAX; newer ones don't have it
        vars(pltpu)["repeat"] = _repeat
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if hasattr(module, "workload"):
        return module.workload, module.create_inputs
    return module.Model(*module.get_init_inputs()).forward, module.get_inputs


def sites(case: Case) -> list[export_tpu.Site]:
    """The kernels of a case: its function is traced with the inputs' types."""
    function, make = function_of(case.path)
    reached = noting.reached()
    reached.note(export_tpu.sites(jax.make_jaxpr(function)(*jax.eval_shape(make))))
    return reached.take()


def _repeat(x: jax.Array, repeats: int, axis: int) -> jax.Array:
    return jnp.concatenate([x] * repeats, axis)


def results(found: list[Case], tpu: str, seconds: int) -> list[Result]:
    """Asks the compiler about all of them, at once."""
    target = tpus.target(tpu)
    all_sites, owners, untraced = [], [], {}
    for case in found:
        print(f"tracing {case.name}", file=sys.stderr)
        try:
            with limit(seconds):
                for site in sites(case):
                    all_sites.append(site)
                    owners.append(case.name)
        except Exception as error:
            untraced[case.name] = f"{type(error).__name__}: {error}"
    verdicts: dict[str, list[Verdict]] = collections.defaultdict(list)
    compiled = session.compile_kernels(all_sites, [target])
    for owner, verdict in zip(owners, compiled, strict=True):
        verdicts[owner].append(verdict)
    return [Result(case, verdicts[case.name], untraced.get(case.name)) for case in found]


def outcome(result: Result) -> str:
    """The verdict on all kernels of a case together."""
    if result.untraced is not None:
        return "not traced"
    outcomes = {verdict.answer.outcome for verdict in result.verdicts}
    if not outcomes:
        return "no kernel"
    for worst in (REFUSED, NO_VERDICT):
        if worst in outcomes:
            return worst
    return ACCEPTED


def table(found: list[Result]) -> str:
    counts = collections.Counter((r.case.outcome, outcome(r)) for r in found)
    columns = [ACCEPTED, REFUSED, NO_VERDICT, "not traced", "no kernel"]
    lines = ["| the chip | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for said in (RAN, CHIP_REFUSED, OTHER):
        cells = [str(counts[said, column] or "") for column in columns]
        lines.append(f"| {said} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=pathlib.Path)
    parser.add_argument("--model", default="gpt53")
    parser.add_argument("--tpu", default="v6e")
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--seconds", type=int, default=60, help="to trace one kernel")
    parser.add_argument("--docs", type=pathlib.Path)
    arguments = parser.parse_args()
    chosen = [
        case
        for case in cases(arguments.checkout, arguments.model)
        if not arguments.only or any(part in case.name for part in arguments.only)
    ]
    start = time.perf_counter()
    found = results(chosen, arguments.tpu, arguments.seconds)
    for result in found:
        got, said = outcome(result), result.case.outcome
        agrees = (said == RAN and got == ACCEPTED) or (said == CHIP_REFUSED and got == REFUSED)
        if agrees or said == OTHER:
            continue
        print(f"{result.case.name}: the chip: {said} {result.case.message.strip()[:150]!r}")
        print(f"  here: {got} {result.untraced or ''}"[:300])
        for verdict in result.verdicts:
            print(f"    {verdict.answer.outcome}: {str(verdict.answer.message)[:200]!r}")
    seconds = [v.answer.seconds for r in found for v in r.verdicts]
    versions = sorted({v.answer.libtpu for r in found for v in r.verdicts if v.answer.libtpu})
    text = table(found)
    print(text)
    print(f"JAX {jax.__version__}, libtpu {', '.join(versions)}; {len(seconds)} kernels, "
          f"median {sorted(seconds)[len(seconds) // 2]:.2f} s of CPU, "
          f"{time.perf_counter() - start:.0f} s in all")  # fmt: skip
    if arguments.docs is not None:
        write(arguments.docs, arguments.model, text)
    return 0


def write(path: pathlib.Path, model: str, text: str) -> None:
    """Replaces what stands between the markers of a model's table."""
    begin, end = f"<!-- record {model} -->", "<!-- end of record -->"
    before, found, rest = path.read_text().partition(begin)
    if not found:
        raise SystemExit(f"{path} has no {begin}")
    after = rest.partition(end)[2]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")


if __name__ == "__main__":
    sys.exit(main())
