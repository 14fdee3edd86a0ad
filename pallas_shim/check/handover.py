"""Hands over a process's findings: to a table at its end, or to the process that asked.

`python -m pallas_shim check` runs the script, which may start others. Each adds its findings to a
file of its own in one directory as soon as it makes them, so those of a process that is killed are
there too.
"""

from __future__ import annotations

import atexit
import json
import os
import pathlib
import sys
import threading
from collections.abc import Sequence
from typing import Any

from pallas_shim import facts
from pallas_shim.check import suppress
from pallas_shim.check.collect import COLLECTOR
from pallas_shim.check.results import Results, finding_from_dict, finding_to_dict, unique
from pallas_shim.evaluator.findings import Finding

_lock = threading.Lock()


def begin(directory: str | None, known: str | None) -> None:
    """Hands over this process's findings, from now on. If it is called again, that call counts.

    Args:
      directory: where a file of this process is to be; None: a table on stderr at exit.
      known: the file of suppressions for the table.
    """
    atexit.unregister(show)
    COLLECTOR.listen(None)
    if directory is None:
        atexit.register(show, known)
    else:
        COLLECTOR.listen(lambda what: _add(directory, what))


def show(known: str | None) -> None:
    """Prints this process's findings to stderr, if there are any or if something wasn't checked."""
    results = of_process(suppressions(known))
    if results.findings or results.suppressed or results.not_checked:
        print(results, file=sys.stderr)


def of_process(known: Sequence[suppress.Suppression] = ()) -> Results:
    """This process's findings so far."""
    found, skipped = COLLECTOR.findings(), COLLECTOR.not_checked()
    return suppress.apply(found, known, skipped, [facts.of_process()])


def suppressions(path: str | None) -> list[suppress.Suppression]:
    """The suppressions in a file, if there is one. A file that can't be read is named on stderr."""
    try:
        return [] if path is None else suppress.read(path)
    except suppress.BadFile as error:
        print(f"pallas_shim: {error}; nothing is suppressed", file=sys.stderr)
        return []


def _add(directory: str, what: Finding | tuple[str, str]) -> None:
    if isinstance(what, Finding):
        line = json.dumps({"finding": finding_to_dict(what)})
    else:
        line = json.dumps({"not_checked": what})
    path = pathlib.Path(directory, f"{os.getpid()}.jsonl")
    try:
        with _lock, open(path, "a", encoding="utf-8") as file:
            if not file.tell():
                file.write(json.dumps({"process": facts.of_process()}) + "\n")
            file.write(line + "\n")
    except OSError as error:
        print(f"pallas_shim: a finding can't be handed over: {error}\n{line}", file=sys.stderr)


def collect(directory: str, known: Sequence[suppress.Suppression] = ()) -> Results:
    """The findings of all processes, with the facts of each process that has findings."""
    findings: list[Finding] = []
    skipped: dict[tuple[str, str], None] = {}
    processes: list[dict[str, Any]] = []
    paths = sorted(pathlib.Path(directory).glob("*.jsonl"), key=lambda p: int(p.stem))
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                said = json.loads(line)
            except ValueError:  # its process was killed while it wrote
                continue
            if "process" in said:
                processes.append(said["process"])
            elif "finding" in said:
                findings.append(finding_from_dict(said["finding"]))
            else:
                kernel, reason = said["not_checked"]
                skipped[kernel, reason] = None
    return suppress.apply(unique(findings), known, skipped, processes)


def _start_over() -> None:
    """In a forked process no thread is left to release the old lock."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_over)
