"""Where a report goes when a process ends, and how the reports of several processes come together.

One file serves all processes of a run, which are those that the first one started, and whoever
writes to it while they run. Each adds its entry when it ends, and those of processes that were
killed, from their journals.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import glob
import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import IO, Any

from pallas_shim import environment, facts
from pallas_shim.reports import document, journal
from pallas_shim.reports.document import Document, NotAReport
from pallas_shim.reports.uses import REPORT, Use

_destination: str | None = None
_run = environment.run()
_journal: journal.Journal | None = None


def write_at_exit(destination: str | None) -> None:
    """Writes the report when Python ends. If it is called again, the last destination counts.

    Args:
      destination: "1": a table on stderr. Anything else is a path for JSON, or a directory, in
        which each process has a file of its own. ``{pid}`` in it stands for the process id.
    """
    global _destination, _run, _journal
    atexit.unregister(write)
    if _journal is not None:
        _journal.remove()
        _journal = None
    _destination, _run = destination, environment.run()
    REPORT.hear = None if destination in (None, "1") else _hear
    REPORT.wanted = destination is not None
    if destination is not None:
        atexit.register(write, destination)


def _hear(use: Use) -> None:
    global _journal
    if _journal is None:
        assert _destination is not None
        with contextlib.suppress(OSError):
            path = f"{os.path.abspath(_path(_destination))}.{os.getpid()}.part"
            _journal = journal.Journal(path, _run)
    if _journal is not None:
        _journal.hear(use)


def write(destination: str) -> None:
    """Writes the report now: see `write_at_exit`."""
    made = document.of_process()
    if destination == "1":
        print(made, file=sys.stderr)
        return
    (process,) = made.processes
    if _add(destination, {**process, "run": _run}) and _journal is not None:
        _journal.remove()


def gather(destination: str) -> None:
    """Writes the report of processes that were killed, for one that has called no kernel itself."""
    _add(destination, None)


def _add(destination: str, entry: Mapping[str, Any] | None) -> bool:
    """Adds the entry of this process, if any, to the file, and those of processes that were killed.
    Whether it could."""
    try:
        path = _path(destination)
        with _locked(path) as file:
            whole = document.merged([Document(tuple(_beside(file, path, entry)))])
            file.seek(0)
            file.truncate()
            file.write(whole.to_json() + "\n")
    except OSError as error:
        print(f"pallas_shim: the report can't be written: {error}", file=sys.stderr)
        return False
    return True


def _beside(
    file: IO[str], path: str, entry: Mapping[str, Any] | None
) -> Iterator[Mapping[str, Any]]:
    """The entry, and those of other processes that belong beside it: of the same run, or of one
    that ran meanwhile. Removes the journals of processes that are gone."""
    file.seek(0)
    found: list[Mapping[str, Any]] = []
    with contextlib.suppress(ValueError):  # it is new, or nobody's report
        found += document.from_dict(json.load(file)).processes
    for part in _written(path)[1]:
        if not journal.is_open(part) and (killed := journal.read(part)) is not None:
            found.append(killed)
            with contextlib.suppress(OSError):
                os.unlink(part)
    began = facts.moment(facts.begun)
    for process in found:
        if process["run"] == _run or process["ended"] >= began:
            yield process
    if entry is not None:
        yield entry


def of_run(destination: str) -> Document:
    """What the processes of this run have called until now, those that still run too."""
    _, parts = _written(destination)
    entries: list[Mapping[str, Any]] = []
    entries += [entry for part in parts if (entry := journal.read(part)) is not None]
    files, _ = _written(destination)  # whoever ends meanwhile writes its file first
    for file in files:
        with contextlib.suppress(NotAReport, OSError):
            entries += _read_file(file).processes
    (own,) = document.of_process().processes
    entries.append({**own, "run": _run})
    of_run = {(e["pid"], e["began"]): e for e in entries if e["run"] == _run}
    return document.merged([Document(tuple(of_run.values()))])


def read(path: str) -> Document:
    """The report in a file, with the journals beside it; of a directory, those of all its files.

    Raises:
      NotAReport: names the file.
      OSError
    """
    files, parts = _written(path)
    if os.path.isdir(path) and not files and not parts:
        raise NotAReport(f"{path} holds no report")
    documents = [_read_file(file) for file in files or ([] if parts else [path])]
    killed = [process for part in parts if (process := journal.read(part)) is not None]
    return document.merged([*documents, Document(tuple(killed))])


def _written(destination: str) -> tuple[list[str], list[str]]:
    """The files at a destination, and the journals beside them."""
    pattern = glob.escape(destination).replace("{pid}", "*")
    if destination.endswith(os.sep) or os.path.isdir(destination):
        pattern = os.path.join(pattern, "*.json")
    return sorted(glob.glob(pattern)), sorted(glob.glob(f"{pattern}.*.part"))


def _read_file(file: str) -> Document:
    with open(file, encoding="utf-8") as stream:
        try:
            return document.from_dict(json.load(stream))
        except ValueError as error:
            raise NotAReport(f"{file} can't be read: {error}") from error


def _path(destination: str) -> str:
    path = destination.replace("{pid}", str(os.getpid()))
    if not path.endswith(os.sep) and not os.path.isdir(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        return path
    os.makedirs(path, exist_ok=True)
    return os.path.join(path, f"pallas_shim-{socket.gethostname()}-{os.getpid()}.json")


@contextlib.contextmanager
def _locked(path: str) -> Iterator[IO[str]]:
    """The file, made if it isn't there, for this process alone."""
    with open(path, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _start_over() -> None:
    """In a forked process, which has a journal of its own from its first call on."""
    global _journal
    if _journal is not None:
        _journal.forget()
        _journal = None


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_over)
