"""Text for people: tables and paragraphs that fit a width."""

from __future__ import annotations

import html
import itertools
import os
import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 100
_NARROWEST = 9  # a column isn't wrapped to fewer characters


def table(rows: Sequence[Sequence[str]], *, width: int = WIDTH, indent: str = "") -> list[str]:
    """The lines of `blocks`."""
    return [line for block in blocks(rows, width=width, indent=indent) for line in block]


def blocks(
    rows: Sequence[Sequence[str]], *, width: int = WIDTH, indent: str = ""
) -> list[list[str]]:
    """Each row of cells as lines, in columns that are as wide as they need to be.

    If that is wider than ``width``, the widest columns are wrapped.
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column), default=0) for column in columns]
    room = width - len(indent) - 2 * (len(widths) - 1)
    while sum(widths) > room:
        widest = max(range(len(widths)), key=widths.__getitem__)
        if widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
    made = []
    for row in rows:
        cells = [_wrapped(cell, size) for cell, size in zip(row, widths, strict=True)]
        lines = [
            "  ".join(part.ljust(size) for part, size in zip(parts, widths, strict=True))
            for parts in itertools.zip_longest(*cells, fillvalue="")
        ]
        made.append([(indent + line).rstrip() for line in lines])
    return made


def paragraph(text: str, *, width: int = WIDTH, indent: str = "") -> list[str]:
    """A text as lines."""
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _wrapped(cell: str, width: int) -> list[str]:
    if len(cell) <= width:
        return [cell]
    lines = [""]
    # Paths and dotted names have no spaces, so they are cut where their parts end.
    for word in _words(cell):
        while len(lines[-1]) + len(word.rstrip()) > width:
            if lines[-1]:
                lines.append("")
                continue
            lines[-1], word = word[:width], word[width:]
            lines.append("")
        lines[-1] += word
    return [line.rstrip() for line in lines if line]


def _words(cell: str) -> Iterable[str]:
    word = ""
    for letter in cell:
        word += letter
        if letter in " /":
            yield word
            word = ""
    yield word


def places(sources: Iterable[str | None]) -> dict[str | None, str]:
    """A short text for each place in a file (``file:line``), and ``-`` for None.

    A file in the working directory has its name from there, any other one its last two parts. If
    two files would have the same name so, each has its whole path.
    """
    known = {source for source in sources if source is not None}
    short = {source: _short(source) for source in known}
    files: dict[str, set[str]] = {}
    for source, text in short.items():
        files.setdefault(text.rpartition(":")[0], set()).add(source.rpartition(":")[0])
    shown: dict[str | None, str] = {None: "-"}
    for source, text in short.items():
        shown[source] = text if len(files[text.rpartition(":")[0]]) == 1 else source
    return shown


def _short(source: str) -> str:
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        here = ""
    if here and source.startswith(here + os.sep):
        return source[len(here) + 1 :]
    return os.sep.join(source.split(os.sep)[-2:])


def html_table(title: str, rows: Sequence[Sequence[str]], remarks: Sequence[str] = ()) -> str:
    """Rows as an HTML table for a notebook. The first row is the header."""
    header, *body = [[html.escape(cell) for cell in row] for row in rows]
    left = ' style="text-align: left; vertical-align: top"'
    lines = ["<div>", f"<p><b>{html.escape(title)}</b></p>"]
    if body:
        lines += ["<table>", f"<thead><tr>{''.join(f'<th{left}>{c}</th>' for c in header)}</tr>"]
        lines += ["</thead>", "<tbody>"]
        lines += [f"<tr>{''.join(f'<td{left}>{c}</td>' for c in row)}</tr>" for row in body]
        lines += ["</tbody>", "</table>"]
    lines += [f"<p>{html.escape(remark)}</p>" for remark in remarks]
    return "\n".join([*lines, "</div>"])
