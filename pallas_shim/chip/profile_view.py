"""Shows profiles: as a table, as JSON, and as one HTML file that needs nothing else."""

from __future__ import annotations

import importlib.util
import json
import linecache
from collections.abc import Sequence
from typing import Any

from pallas_shim.chip.profile import NO_LINE, Profile

_MOST_LINES = 8


def table(profiles: Sequence[Profile]) -> str:
    """The profiles for people: where the cycles of each kernel go."""
    lines = ["pallas_shim: where the time goes (a bundle is one cycle, if it needn't wait)"]
    for each in profiles:
        place = f" ({each.source})" if each.source else ""
        lines.append(f"{each.tpu}: {each.kernel}{place} {each.operands}")
        if each.cycles is not None:
            lines.append(f"    {each.cycles:,} cycles of {each.bundles:,} bundles of code")
            used = [f"{unit} {share:.0%}" for unit, share in each.units.items() if share >= 0.005]
            lines.append("    units: " + ", ".join(used))
            lines.append(f"    copied: {_copied(each)}")
            for line in each.lines[:_MOST_LINES]:
                share = line.cycles / max(each.cycles, 1)
                lines.append(f"    {share:6.1%}  {line.line}  {_text(line.line)}".rstrip())
        if each.bound is not None:
            lines.append(f"    bound by {each.bound}")
        if each.seconds is not None:
            lines.append(f"    estimated {each.seconds * 1e3:.3g} ms a call; {each.error}")
        if each.unknown is not None:
            lines.append(f"    {each.unknown.splitlines()[0]}")
    return "\n".join(lines)


def _copied(each: Profile) -> str:
    by_kind: dict[str, list[int]] = {}
    for copy in each.copies:
        total = by_kind.setdefault(copy.kind.removeprefix("dma."), [0, 0])
        total[0] += copy.times
        total[1] += copy.size
    return ", ".join(
        f"{kind} {size / 1e6:.4g} MB in {count:,}" for kind, (count, size) in by_kind.items()
    ) or "nothing"  # fmt: skip


def _text(line: str) -> str:
    if line == NO_LINE:
        return "the pipeline's own code, and what the compiler gives no line"
    file, _, number = line.rpartition(":")
    return linecache.getline(file, int(number)).strip()[:70]


def write(profiles: Sequence[Profile], path: str) -> str | None:
    """Writes a .json or .html file. Returns why that failed, else None."""
    rows = [each.row() for each in profiles]
    if path.endswith(".json"):
        content = json.dumps({"profiles": rows}, indent=1) + "\n"
    else:
        missing = [m for m in ("jinja2", "plotly") if importlib.util.find_spec(m) is None]
        if missing:
            return f"HTML needs {' and '.join(missing)}: pip install 'pallas_shim[view]'"
        content = html(profiles)
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)
    except OSError as error:
        return f"{path} can't be written: {error.strerror}"
    return None


def html(profiles: Sequence[Profile]) -> str:
    """One page with all plots and the source in it; it loads nothing."""
    import jinja2
    from plotly import offline

    environment = jinja2.Environment(autoescape=True)
    pages = [_page(number, each) for number, each in enumerate(profiles)]
    return environment.from_string(_PAGE).render(
        pages=pages, plotly=jinja2.utils.markupsafe.Markup(offline.get_plotlyjs())
    )


def _page(number: int, each: Profile) -> dict[str, Any]:
    import jinja2

    markup = jinja2.utils.markupsafe.Markup
    plots = []
    if each.cycles:
        for name, figure in (("units", _units(each)), ("steps", _steps(each))):
            data = json.dumps(figure).replace("</", "<\\/")
            plots.append({"id": f"{name}{number}", "figure": markup(data)})
    return {"profile": each, "plots": plots, "source": _source(each), "copied": _copied(each)}


def _units(each: Profile) -> dict[str, Any]:
    shown = {unit: share for unit, share in each.units.items() if share}
    bars = {"type": "bar", "x": list(shown), "y": [100 * share for share in shown.values()]}
    layout = {"title": {"text": "use of each unit's capacity, %"}, "height": 300}
    return {"data": [bars], "layout": layout}


def _steps(each: Profile) -> dict[str, Any]:
    """Cycles against bytes of the turns of the outermost loop: those of one kind are one dot."""
    dots = {
        "type": "scatter",
        "mode": "markers",
        "x": [step.hbm / 1e3 for step in each.steps],
        "y": [step.bundles for step in each.steps],
        "text": [f"{step.times} turns" for step in each.steps],
        "marker": {"size": [8 + min(step.times, 400) ** 0.5 for step in each.steps]},
    }
    layout = {
        "title": {"text": "turns of the grid: cycles against kB copied from and to HBM"},
        "xaxis": {"title": {"text": "kB"}},
        "yaxis": {"title": {"text": "cycles"}, "rangemode": "tozero"},
        "height": 300,
    }
    return {"data": [dots], "layout": layout}


def _source(each: Profile) -> list[dict[str, Any]]:
    """The lines of the user's files between the first and the last with cycles, those beside."""
    cycles = {line.line: line.cycles for line in each.lines if line.line != NO_LINE}
    files: dict[str, list[int]] = {}
    for place in cycles:
        file, _, number = place.rpartition(":")
        files.setdefault(file, []).append(int(number))
    shown = []
    for file, numbers in files.items():
        near = {n for number in numbers for n in range(number - 2, number + 3) if n > 0}
        for at in sorted(near):
            share = cycles.get(f"{file}:{at}", 0.0) / max(each.cycles or 1, 1)
            text = linecache.getline(file, at).rstrip("\n")
            shown.append({"file": file, "number": at, "text": text, "share": share})
    return shown


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>pallas_shim: profile</title>
<link rel="icon" href="data:,">
<style>
body { font-family: sans-serif; margin: 2em; max-width: 1100px; }
pre, td { font-family: monospace; font-size: 13px; }
td.share { text-align: right; padding-right: 1em; }
tr.hot { background: #fde8d8; }
</style>
<script>{{ plotly }}</script></head><body>
<h1>Where the time goes</h1>
<p>A bundle is one cycle, if it needn't wait. A cycle that starts instructions of several lines is
shared among them.</p>
{% for page in pages %}{% set p = page.profile %}
<h2>{{ p.tpu }}: {{ p.kernel }} {{ p.operands }}</h2>
<p>{{ p.source or "" }}</p>
{% if p.cycles %}<p>{{ "{:,}".format(p.cycles) }} cycles of {{ "{:,}".format(p.bundles) }} bundles.
Copied: {{ page.copied }}.{% if p.bound %} Bound by {{ p.bound }}.{% endif %}</p>{% endif %}
{% if p.seconds %}<p>Estimated {{ "%.3g"|format(p.seconds * 1000) }} ms a call; {{ p.error }}</p>
{% endif %}
{% if p.unknown %}<pre>{{ p.unknown }}</pre>{% endif %}
{% for plot in page.plots %}<div id="{{ plot.id }}"></div>
<script>{ const f = {{ plot.figure }}; Plotly.newPlot("{{ plot.id }}", f.data, f.layout); }</script>
{% endfor %}
<table>{% for line in page.source %}
{% if loop.changed(line.file) %}<tr><td colspan="3"><b>{{ line.file }}</b></td></tr>{% endif %}
<tr{% if line.share >= 0.05 %} class="hot"{% endif %}><td class="share">
{%- if line.share %}{{ "%.1f%%"|format(100 * line.share) }}{% endif %}</td>
<td>{{ line.number }}</td><td><pre style="margin:0">{{ line.text }}</pre></td></tr>
{% endfor %}</table>
{% endfor %}
</body></html>
"""
