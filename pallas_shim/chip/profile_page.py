"""Profiles as one HTML file, which needs no server and no network."""

from __future__ import annotations

import base64
import gzip
import json
import linecache
import pathlib
from collections.abc import Sequence
from typing import Any

from pallas_shim.chip.profile import NO_LINE, Profile
from pallas_shim.chip.whole import Whole

_HERE = pathlib.Path(__file__).parent
# The style is that of the pages of view.
_STYLE = _HERE.parent / "view" / "page.css"
# The lines that are shown before and after one that took time.
_AROUND = 2


def render(profiles: Sequence[Profile], functions: Sequence[Whole] = ()) -> str:
    """The page as text. It needs jinja2 and plotly."""
    import jinja2
    from plotly import offline

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    plotly = gzip.compress(offline.get_plotlyjs().encode(), 9, mtime=0)
    data = json.dumps([_data(each) for each in profiles], separators=(",", ":"))
    return environment.get_template("profile.html").render(
        profiles=profiles,
        functions=[_function(each) for each in functions],
        data=data.replace("<", "\\u003c"),
        plotly=base64.b64encode(plotly).decode(),
        css=_STYLE.read_text("utf-8"),
        script=(_HERE / "profile.js").read_text("utf-8"),
    )  # fmt: skip


def _function(each: Whole) -> dict[str, Any]:
    """A function, with texts for its numbers."""
    total = sum(o.seconds or 0.0 for o in each.operations)
    rows = [
        {
            "name": o.name, "opcode": o.opcode, "origin": o.origin, "is_kernel": o.is_kernel,
            "times": "unknown" if o.times is None else f"{o.times:,}",
            "time": o.unknown or "" if o.seconds is None else f"{o.seconds * 1e6:.4g} \u00b5s",
            "share": "" if o.seconds is None or not total else f"{o.seconds / total:.1%}",
            "placed": ", ".join(placed.text() for placed in o.placed),
        }
        for o in each.operations
        # The rest is less than what can be seen.
        if o.seconds is None or o.is_kernel or o.seconds >= total / 1000
    ]  # fmt: skip
    said = None
    if each.seconds is not None and each.share is not None:
        said = (
            f"Estimated {each.seconds * 1e3:.3g} ms a call; without the launch, kernels take "
            f"{each.share:.0%} of it"
        )
    return {"name": each.function, "tpu": each.tpu, "rows": rows, "said": said,
            "error": each.error, "unknown": each.unknown}  # fmt: skip


def _data(each: Profile) -> dict[str, Any]:
    row = each.row()
    row["source_lines"] = _source(each)
    row["no_line"] = next((ln for ln in row["lines"] if ln["line"] == NO_LINE), None)
    row["vmem_of_time"] = _vmem(each)
    return row


def _source(each: Profile) -> list[dict[str, Any]]:
    """The lines of the user's files that took time, and those beside them."""
    taken = {line.line: line for line in each.lines if line.line != NO_LINE}
    files: dict[str, set[int]] = {}
    for place in taken:
        file, _, middle = place.rpartition(":")
        near = range(int(middle) - _AROUND, int(middle) + _AROUND + 1)
        files.setdefault(file, set()).update(n for n in near if n > 0)
    shown = []
    for file, numbers in files.items():
        for number in sorted(numbers):
            line = taken.get(f"{file}:{number}")
            text = linecache.getline(file, number)
            if not text and line is None:
                continue
            shown.append({
                "file": file, "number": number, "text": text.rstrip(),
                "cycles": 0.0 if line is None else line.cycles,
                "waited": 0.0 if line is None else line.waited,
                "units": {} if line is None else line.units,
            })  # fmt: skip
    return shown


def _vmem(each: Profile) -> dict[str, list[float]]:
    """The bytes of VMEM that copies fill or empty, from cycle to cycle, as far as copies are
    kept."""
    changes: dict[float, float] = {}
    for flight in each.flights:
        if "vmem" in flight.kind:
            changes[flight.issued] = changes.get(flight.issued, 0.0) + flight.size
            changes[flight.done] = changes.get(flight.done, 0.0) - flight.size
    at, held, total = [0.0], [0.0], 0.0
    for moment in sorted(changes):
        total += changes[moment]
        at.append(moment)
        held.append(total)
    return {"at": at, "held": held}
