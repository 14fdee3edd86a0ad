"""docs/conformance.md: a section for each version of JAX and mode, each written on its own."""

from __future__ import annotations

import collections
import pathlib
import platform
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

from tests.conformance.kept import (
    ALL,
    AS_IS,
    AS_TPU,
    CHECKED,
    COMPILED,
    DEFAULT,
    EXACT,
    GENERAL,
    Outcomes,
    Results,
)
from tests.conformance.reasons import expects_refusal, explained, fault

HEAD = """\
# Conformance

What JAX's own tests do under the shim, and on stock JAX in the same environment: those of Pallas,
and, with Pallas imported, a part of those that have nothing to do with it ("general tests"). Each
section is written by the command in it, from the results of the tests; `CHECKOUT` is JAX's
repository at the tag of the version.

A kernel's rung is counted once for each test and jitted function: **numpy**, the whole function
ran in the evaluator; **callback**, XLA ran the function and the evaluator its kernel; **jax**, it
was left to JAX.
"""

_TITLES = {AS_IS: "as they are", AS_TPU: "as on a TPU v5e", GENERAL: "general tests"}

_WAYS = {
    DEFAULT: "",
    EXACT: ", PALLAS_NUMPY_SCOPE=exact",
    ALL: ", PALLAS_NUMPY_SCOPE=all",
    CHECKED: ", checked",
    COMPILED: ", with its compiler",
}
_OPTIONS = {
    DEFAULT: "",
    EXACT: " --scope exact",
    ALL: " --scope all",
    CHECKED: " --check",
    COMPILED: " --compile",
}

OUTCOMES = ("passed", "failed", "skipped")
RUNGS = ("numpy", "callback", "jax")


def write(path: pathlib.Path, names: Sequence[str], results: Results) -> None:
    """Writes the section of these results anew, and leaves the others as they are."""
    sections = {}
    if path.exists():
        for text in re.split(r"^(?=## )", path.read_text(encoding="utf-8"), flags=re.M)[1:]:
            sections[text.partition("\n")[0]] = text.rstrip() + "\n"
    title = f"## JAX {results.version}, {_TITLES[results.mode]}{_WAYS[results.way]}"
    section = {CHECKED: _checked, COMPILED: _compiled}.get(results.way, _section)
    sections[title] = "\n".join([title, "", *section(names, results)]) + "\n"
    path.write_text(
        "\n".join([HEAD, *(sections[title] for title in sorted(sections))]), encoding="utf-8"
    )


def summary(results: Results, name: str) -> str:
    """One line on one file."""
    stock, shim = results.of(name, shim=False), results.of(name, shim=True)
    return f"stock {_counts(stock, shim)}; shim {_counts(shim, stock)} (passed / failed / skipped)"


def _section(names: Sequence[str], results: Results) -> Iterator[str]:
    stock = {name: results.of(name, shim=False) for name in names}
    shim = {name: results.of(name, shim=True) for name in names}
    yield from _command(shim, results)
    yield "| file | stock: passed / failed / skipped | shim | numpy | callback | jax | commit |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name in names:
        yield _row(name, stock[name], shim[name])
    yield _row("all", _together(stock), _together(shim))
    yield from _table(
        "Failed under the shim",
        ("file", "tests", "how many", "stock", "why"),
        _failed(stock, shim),
    )
    yield from _table(
        "Passed on stock, and neither passed nor failed under the shim",
        ("tests", "which", "why"),
        _lost(stock, shim),
    )
    for rung, title in (("jax", "Left to JAX"), ("callback", "By callback")):
        yield from _table(title, ("reason", "kernels", "tests"), _kernels(rung, shim))
    yield from _table("Skipped under the shim", ("reason", "tests"), _skipped(shim.values()))


def _checked(names: Sequence[str], results: Results) -> Iterator[str]:
    """Of the tests with checked kernels: what was found and why, and what wasn't checked."""
    shim = {name: results.of(name, shim=True) for name in names}
    shim = {name: outcomes for name, outcomes in shim.items() if outcomes}
    yield from _command(shim, results)
    yield "| file | passed / failed / skipped | kernels | findings | commit |"
    yield "| --- | --- | --- | --- | --- |"
    for name, outcomes in [*shim.items(), ("all", _together(shim))]:
        kernels = sum(len(one["kernels"]) for one in outcomes.values())
        places = {tuple(f[:4]) for one in outcomes.values() for f in one["findings"]}
        cells = [_counts(outcomes, {}), str(kernels), str(len(places)), _commits(outcomes)]
        yield f"| {' | '.join([name, *cells])} |"
    yield from _table(
        "Findings",
        ("tests", "kernel", "what", "how many", "why"),
        _found(shim),
    )
    yield from _table("Not checked", ("reason", "kernels"), _not_checked(shim))


def _compiled(names: Sequence[str], results: Results) -> Iterator[str]:
    """What the tests do that expect the TPU's compiler to refuse a kernel, and some others."""
    shim = {name: results.of(name, shim=True) for name in names}
    shim = {name: outcomes for name, outcomes in shim.items() if outcomes}
    yield from _command(shim, results)
    yield "Calls raise what the compiler refuses. All tests are here that expect it. Of the others"
    yield "it is one in so many: what JAX runs on a TPU isn't to be refused."
    yield ""
    yield "| file | expect a refusal: passed / failed / skipped | others | commit |"
    yield "| --- | --- | --- | --- |"
    together = _together(shim)
    for name in (*shim, "all"):
        tests = {
            test: one
            for test, one in together.items()
            if name in (test.partition("::")[0], "all")
        }
        expecting = {test: one for test, one in tests.items() if expects_refusal(test)}
        others = {test: one for test, one in tests.items() if test not in expecting}
        cells = [_counts(expecting, {}), _counts(others, {}), _commits(tests)]
        yield f"| {' | '.join([name, *cells])} |"
    yield from _table(
        "Failed with its compiler",
        ("file", "tests", "how many", "stock", "why"),
        _failed({name: {} for name in shim}, shim),
    )


def _command(shim: dict[str, Outcomes], results: Results) -> Iterator[str]:
    dates = [test["date"] for outcomes in shim.values() for test in outcomes.values()]
    mode = f" --{results.mode}" * (results.mode != AS_IS) + _OPTIONS[results.way]
    yield f"Python {platform.python_version()}, {max(dates, default='no results')}."
    yield f"`python -m tests.conformance CHECKOUT{mode}` writes it."
    yield ""


def _found(shim: dict[str, Outcomes]) -> Iterator[Sequence[str]]:
    """By kind of test, kernel, fault and reason: in how many tests."""
    rows = collections.Counter(
        (name, f"{name}: {_kind(test, outcomes)}", kernel, f"{what} of {ref}".removesuffix(" of "),
         fault(f"{name}::{test}", what) or f"not known to be a fault: {_line(message)}")
        for name, outcomes in shim.items()
        for test, one in outcomes.items()
        for what, kernel, ref, _, message in one["findings"]
    )  # fmt: skip
    order = list(shim)
    for row in sorted(rows, key=lambda row: (order.index(row[0]), *row[1:])):
        _, tests, kernel, what, why = row
        yield tests, kernel, what, str(rows[row]), why


def _not_checked(shim: dict[str, Outcomes]) -> Iterator[Sequence[str]]:
    reasons = collections.Counter(
        _line(reason)
        for outcomes in shim.values()
        for one in outcomes.values()
        for _, reason in one["not_checked"]
    )
    for reason, count in reasons.most_common():
        yield reason, str(count)


def _together(files: dict[str, Outcomes]) -> Outcomes:
    return {f"{name}::{test}": one for name in files for test, one in files[name].items()}


def _row(name: str, stock: Outcomes, shim: Outcomes) -> str:
    rungs = collections.Counter(k["rung"] for one in shim.values() for k in one["kernels"])
    counts = _counts(stock, shim), _counts(shim, stock)
    cells = [name, *counts, *(str(rungs[rung]) for rung in RUNGS), _commits(shim)]
    return f"| {' | '.join(cells)} |"


def _commits(outcomes: Outcomes) -> str:
    return ", ".join(sorted({one["commit"] for one in outcomes.values()}))


def _counts(outcomes: Outcomes, others: Outcomes) -> str:
    """By outcome, and how many tests have one only on the other side."""
    counts = collections.Counter(one["outcome"] for one in outcomes.values())
    missing = len(others.keys() - outcomes.keys())
    return " / ".join(str(counts[outcome]) for outcome in OUTCOMES) + (
        f", {missing} not run" if missing else ""
    )


def _table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table with a title; nothing if it has no rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if lines:
        yield from ("", f"### {title}", "", f"| {' | '.join(header)} |")
        yield f"|{' --- |' * len(header)}"
        yield from lines


def _failed(stock: dict[str, Outcomes], shim: dict[str, Outcomes]) -> Iterator[Sequence[str]]:
    """By kind of test, stock's outcome and the reason: how many."""
    found = collections.Counter(
        (name, _kind(test, outcomes), stock[name].get(test, {}).get("outcome", "not run"), why)
        for name, outcomes in shim.items()
        for test, one in outcomes.items()
        if one["outcome"] == "failed"
        for why in (_why(name, test, one),)
    )
    order = list(shim)
    for row in sorted(found, key=lambda row: (order.index(row[0]), *row[1:])):
        *where, before, why = row
        yield *where, str(found[row]), before, why


def _kind(test: str, others: Container[str]) -> str:
    """A test's name without the number of its parameters; these are counted from 0."""
    kind = test.rstrip("0123456789")
    return kind if f"{kind}0" in others else test


def _why(name: str, test: str, outcome: Any) -> str:
    message = outcome["message"]
    return explained(f"{name}::{test}", message) or _line(message)


def _kernels(rung: str, shim: dict[str, Outcomes]) -> Iterator[Sequence[str]]:
    """By reason: how many kernels were on this rung, and in which tests."""
    found: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for name, outcomes in shim.items():
        for test, outcome in outcomes.items():
            for kernel in outcome["kernels"]:
                if kernel["rung"] == rung:
                    reason = re.sub(r" at (\S+:\d+ \(.*|0x\w+)", "", kernel["reason"], flags=re.S)
                    found[_line(reason)].append((name, test))
    for reason, tests in sorted(found.items(), key=lambda item: -len(item[1])):
        yield reason, str(len(tests)), _named(tests)


def _lost(stock: dict[str, Outcomes], shim: dict[str, Outcomes]) -> Iterator[Sequence[str]]:
    found: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for name, outcomes in stock.items():
        for test, outcome in outcomes.items():
            ours = shim[name].get(test, {"outcome": "skipped", "message": "not run"})
            if outcome["outcome"] == "passed" and ours["outcome"] == "skipped":
                found[_line(ours["message"])].append((name, test))
    for why, tests in found.items():
        yield str(len(tests)), _named(tests), why


def _named(tests: Iterable[tuple[str, str]], most: int = 8) -> str:
    """The tests by file, without the numbers of their parameters; only how many, if many."""
    files: dict[str, set[str]] = collections.defaultdict(set)
    for name, test in tests:
        files[name].add(re.sub(r"\d*(\[.*\])?$", "", test.rpartition("::")[2]))
    return "; ".join(
        f"{name}: {', '.join(sorted(found)) if len(found) <= most else f'{len(found)} kinds'}"
        for name, found in files.items()
    )


def _skipped(sides: Iterable[Outcomes]) -> Iterator[Sequence[str]]:
    reasons = collections.Counter(
        _line(outcome["message"].removeprefix("Skipped: "))
        for outcomes in sides
        for outcome in outcomes.values()
        if outcome["outcome"] == "skipped"
    )
    for reason, count in reasons.most_common():
        yield reason, str(count)


def _line(message: str) -> str:
    """The first words of a message, as a cell of a table."""
    text = " ".join(message.split())
    text = text if len(text) <= 160 else text[:160].rpartition(" ")[0] + " …"
    return text.replace("|", "\\|") or "-"
