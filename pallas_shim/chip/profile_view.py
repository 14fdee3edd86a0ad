"""Shows profiles: as a table, as files, and two of them beside one another."""

from __future__ import annotations

import importlib.util
import io
import json
import linecache
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pallas_shim.chip import profile_page, profile_trace
from pallas_shim.chip.profile import NO_LINE, Profile
from pallas_shim.chip.whole import Whole, XlaOperation

_MOST_LINES = 8
# What stands before the path of a trace for Perfetto among the files to write.
TRACE = "perfetto:"


def table(profiles: Sequence[Profile]) -> str:
    """The profiles for people: where the time of each kernel goes."""
    lines = ["pallas_shim: where the time goes (a bundle is one cycle, if it needn't wait)"]
    lines += _summary([each for each in profiles if each.elapsed is not None])
    for each in profiles:
        place = f" ({each.source})" if each.source else ""
        lines.append(f"{each.tpu}: {each.kernel}{place} {each.operands}")
        if each.elapsed is not None:
            lines += _details(each)
        if each.seconds is not None:
            lines.append(f"    estimated {each.seconds * 1e3:.3g} ms a call; {each.error}")
        if each.unknown is not None:
            lines.append(f"    {each.unknown.splitlines()[0]}")
    return "\n".join(lines)


def functions_table(functions: Sequence[Whole]) -> str:
    """Whole functions for people: what runs around the kernels, and where operands lie."""
    lines = ["pallas_shim: the functions that called kernels, compiled as a whole"]
    for each in functions:
        lines.append(f"{each.tpu}: {each.function}")
        if each.kernels is not None and each.around is not None and each.share is not None:
            lines.append(
                f"    estimated {(each.seconds or 0.0) * 1e3:.3g} ms a call: kernels "
                f"{each.kernels * 1e3:.3g} ms, XLA's operations {each.around * 1e3:.3g} ms, "
                f"the rest is the launch; kernels take {each.share:.0%} without it; {each.error}"
            )
        if each.unknown is not None:
            lines.append(f"    {each.unknown.splitlines()[0]}")
        longest = sorted(each.operations, key=lambda o: -(o.seconds or 0.0))
        shown = {id(o) for o in longest[:_MOST_LINES]}
        for o in each.operations:
            if o.is_kernel or id(o) in shown:
                lines += _operation(o)
        if len(longest) > len(shown):
            some = f"the kernels and {len(shown)} of {len(longest)} operations"
            lines.append(f"    {some}; a .json or .html file has all")
    return "\n".join(lines)


def _operation(o: XlaOperation) -> list[str]:
    took = "" if o.seconds is None else f"{o.seconds * 1e6:.4g} us"
    times = "" if o.times == 1 else f" {'unknown' if o.times is None else o.times} times"
    lines = [f"    {took:>10}  {o.opcode} {o.name}{times}  {o.origin}".rstrip()]
    if o.placed:
        lines.append(" " * 16 + ", ".join(placed.text() for placed in o.placed))
    return lines


def _details(each: Profile) -> list[str]:
    assert each.elapsed is not None
    elapsed = max(each.elapsed, 1.0)
    lines = [
        f"    {each.cycles:,} cycles of {each.bundles:,} bundles of code; in all {elapsed:,.0f}, "
        f"of which {each.waited / elapsed:.0%} wait for copies and {each.stalls / elapsed:.0%} "
        f"for a unit; copies move {each.moving / elapsed:.0%} of the time"
    ]
    used = [f"{unit} {share:.0%}" for unit, share in each.units.items() if share >= 0.005]
    lines.append("    units: " + ", ".join(used))
    moved = [f"{m.operand} {m.kind} {m.size / 1e6:.4g} MB in {m.times:,}" for m in each.moved]
    lines.append(f"    copied: {', '.join(moved) or 'nothing'}")
    for line in each.lines[:_MOST_LINES]:
        share = (line.cycles + line.waited) / elapsed
        lines.append(f"    {share:6.1%}  {line.line}  {_text(line.line)}".rstrip())
    if each.from_run:
        lines.append(f"    as the run in NumPy decided: branches at {', '.join(each.from_run)}")
    lines += [f"    checked: {said}" for said in each.checked]
    if each.bound is not None:
        lines.append(f"    bound by {each.bound}")
    return lines


def _text(line: str) -> str:
    if line == NO_LINE:
        return "the pipeline's own code, and what the compiler gives no line"
    file, _, number = line.rpartition(":")
    return linecache.getline(file, int(number)).strip()[:70]


def _summary(profiles: Sequence[Profile]) -> list[str]:
    """One row for each kernel, if rich is installed."""
    if not profiles or importlib.util.find_spec("rich") is None:
        return []
    heads = ["kernel", "TPU", "time", "bound by", "waits", "from and to HBM", "busiest unit"]
    return _drawn(heads, [_cells(each) for each in profiles])


def _cells(each: Profile) -> list[str]:
    assert each.elapsed is not None
    busiest = max(each.units, key=lambda unit: each.units[unit], default="")
    size = sum(step.hbm * step.times for step in each.steps)
    return [
        each.kernel,
        each.tpu,
        "no estimate" if each.seconds is None else f"{each.seconds * 1e3:.3g} ms",
        each.bound or "",
        f"{each.waited / max(each.elapsed, 1.0):.0%}",
        f"{size / 1e6:.4g} MB",
        f"{busiest} {each.units.get(busiest, 0.0):.0%}",
    ]


def _drawn(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    from rich import box, console, table, text

    drawn = table.Table(*heads, box=box.SIMPLE_HEAD)
    for row in rows:
        drawn.add_row(*map(text.Text, row))
    width = max(shutil.get_terminal_size().columns, 100)
    page = console.Console(file=io.StringIO(), width=width, no_color=True)
    page.print(drawn)
    written = page.file
    assert isinstance(written, io.StringIO)
    return [line.rstrip() for line in written.getvalue().splitlines() if line.strip()]


# -- files --------------------------------------------------------------------------------------


def write(profiles: Sequence[Profile], path: str, functions: Sequence[Whole] = ()) -> str | None:
    """Writes a .json or .html file, or a trace for Perfetto. Returns why that failed, else None."""
    make: Callable[[], str]
    if path.startswith(TRACE):
        path = path.removeprefix(TRACE)
        make = lambda: json.dumps(profile_trace.events(profiles))  # noqa: E731
    elif path.endswith(".json"):
        rows = {
            "profiles": [each.row() for each in profiles],
            "functions": [each.row() for each in functions],
        }
        make = lambda: json.dumps(rows, indent=1) + "\n"  # noqa: E731
    else:
        missing = [m for m in ("jinja2", "plotly") if importlib.util.find_spec(m) is None]
        if missing:
            return f"HTML needs {' and '.join(missing)}: pip install 'pallas_shim[view]'"
        make = lambda: profile_page.render(profiles, functions)  # noqa: E731
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(make())
    except OSError as error:
        return f"{path} can't be written: {error.strerror}"
    return None


# -- two profiles -------------------------------------------------------------------------------


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Two profiles in their JSON form beside one another: the kernels of the same name and TPU, in
    order, with the lines whose share changed most."""
    lines = []
    waiting: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in after["profiles"]:
        waiting.setdefault((row["kernel"], row["tpu"]), []).append(row)
    for old in before["profiles"]:
        same = waiting.get((old["kernel"], old["tpu"]))
        lines.append(f"{old['tpu']}: {old['kernel']} {old['operands']}")
        if not same:
            lines.append("    only in the first")
            continue
        new = same.pop(0)
        if new["operands"] != old["operands"]:
            lines.append(f"    operands: {new['operands']} in the second")
        lines += _changes(old, new)
    for rows in waiting.values():
        lines += [
            f"{r['tpu']}: {r['kernel']} {r['operands']}\n    only in the second" for r in rows
        ]
    lines += _changed_functions(before.get("functions", ()), after.get("functions", ()))
    return "\n".join(lines)


def _changed_functions(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> list[str]:
    """The estimates of functions of the same name and TPU that both profiles have."""
    lines = []
    known = {(row["function"], row["tpu"]): row for row in after if row["seconds"] is not None}
    for old in before:
        new = known.get((old["function"], old["tpu"]))
        if old["seconds"] is None or new is None:
            continue
        lines.append(f"{old['tpu']}: the whole function {old['function']}")
        lines += [
            _change(f"ms of {what}", old[key] * 1e3, new[key] * 1e3)
            for what, key in (("a call", "seconds"), ("its kernels", "kernels"),
                              ("XLA's operations", "around"))
        ] + [f"    {new['error']}"]  # fmt: skip
    return lines


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    lines = []
    if None in (old["elapsed"], new["elapsed"]):
        return [f"    no times: {old['unknown'] or new['unknown']}"]
    if None not in (old["seconds"], new["seconds"]):
        lines.append(_change("estimated ms", old["seconds"] * 1e3, new["seconds"] * 1e3))
        lines.append(f"    each {new['error']}")
    for name, key in (("cycles in all", "elapsed"), ("cycles of bundles", "cycles"),
                      ("cycles of waiting", "waited")):  # fmt: skip
        lines.append(_change(name, old[key], new[key]))
    sizes = [sum(step["hbm"] * step["times"] for step in row["steps"]) for row in (old, new)]
    lines.append(_change("MB from and to HBM", sizes[0] / 1e6, sizes[1] / 1e6))
    if old["bound"] != new["bound"]:
        lines.append(f"    bound by {old['bound']}, then by {new['bound']}")
    first, second = (
        {line["line"]: line["cycles"] + line["waited"] for line in row["lines"]}
        for row in (old, new)
    )
    changed = sorted(
        ((second.get(line, 0.0) - first.get(line, 0.0), line) for line in {**first, **second}),
        key=lambda each: -abs(each[0]),
    )
    return lines + [f"    {by:+,.0f} cycles at {line}" for by, line in changed[:5] if by]


def _change(name: str, old: float, new: float) -> str:
    ratio = f" ({new / old:.2f} times)" if old else ""
    return f"    {name}: {old:,.4g} to {new:,.4g}{ratio}"
