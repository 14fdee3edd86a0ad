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
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
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
    Whether it could. It may be killed meanwhile, too: a pool kills workers that are just ending."""
    try:
        path = _path(destination)
        with _locked(path) as file:
            killed = _killed(path)
            whole = document.merged([Document(tuple(_beside(file, killed, entry)))])
            new = f"{path}.new"  # only this process writes now
            with open(new, "w", encoding="utf-8") as written:
                os.fchmod(written.fileno(), stat.S_IMODE(os.fstat(file.fileno()).st_mode))
                written.write(whole.to_json() + "\n")
            os.replace(new, os.path.realpath(path))
            for part in killed:
                with contextlib.suppress(OSError):
                    os.unlink(part)
    except OSError as error:
        print(f"pallas_shim: the report can't be written: {error}", file=sys.stderr)
        return False
    return True


def _killed(path: str) -> dict[str, Mapping[str, Any]]:
    """The journals beside a report whose processes are gone, and the entries in them."""
    gone = [part for part in _written(path)[1] if not journal.is_open(part)]
    return {part: entry for part in gone if (entry := journal.read(part)) is not None}


def _beside(
    file: IO[str], killed: Mapping[str, Mapping[str, Any]], entry: Mapping[str, Any] | None
) -> Iterator[Mapping[str, Any]]:
    """The entry, and those of other processes that belong beside it: of the same run, or of one
    that ran meanwhile."""
    found: list[Mapping[str, Any]] = []
    with contextlib.suppress(ValueError):  # it is new, or nobody's report
        file.seek(0)
        found += document.from_dict(json.load(file)).processes
    found += _unknown(found, killed.values())
    began = facts.moment(facts.begun)
    own = [] if entry is None else [entry]
    for process in _unknown(own, found):
        if process["run"] == _run or process["ended"] >= began:
            yield process
    yield from own


def _unknown(
    known: Iterable[Mapping[str, Any]], entries: Iterable[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The entries of other processes than those known. One that is killed after it has added its
    own leaves a journal all the same."""
    processes = {(entry["host"], entry["pid"], entry["began"]) for entry in known}
    return [e for e in entries if (e["host"], e["pid"], e["began"]) not in processes]


def of_run(destination: str) -> Document:
    """The calls of this run's processes so far, also of those that still run."""
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
    of_journals = [process for part in parts if (process := journal.read(part)) is not None]
    written = [process for each in documents for process in each.processes]
    return document.merged([*documents, Document(tuple(_unknown(written, of_journals)))])


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
    while True:
        with open(path, "a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(path, file):
                yield file
                return


def _is_at(path: str, file: IO[str]) -> bool:
    """Whether a file is still the one at the path. Others put new ones there."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _start_over() -> None:
    """Runs in a forked process, which has a journal of its own from its first call on."""
    global _journal
    if _journal is not None:
        _journal.forget()
        _journal = None


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_start_over)
