"""Compiles a job in a process of its own, which may crash, hang or grow without harm.

`compile_job` is what an executor runs, on this machine or on another. It needs libtpu there.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

from pallas_shim.chip import dumps, worker
from pallas_shim.chip.channel import Channel, Closed, remaining
from pallas_shim.chip.jobs import NO_VERDICT, Answer, Job, Limits

# Keeps libtpu from asking the network, from other processes' locks, and from writing logs.
_QUIET = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "PALLAS_NUMPY": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
}
# Nothing of these reaches the compiler: it says what the chip says by default.
_NOT_HANDED_ON = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "PYTHONSTARTUP", "PALLAS_NUMPY_COMPILE")

_POLL = 0.1
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = os.sysconf("SC_CLK_TCK")
# A process that hangs may still have threads that look around: so many seconds of CPU are none.
_NOTHING = 0.05


class Failed(Exception):
    """The worker gave no answer; the message says why. ``again``: another one may. ``slow``: it
    used up its CPU."""

    def __init__(self, message: str, *, again: bool, slow: bool = False):
        super().__init__(message)
        self.again, self.slow = again, slow


class Worker:
    """A process that compiles, started when it is needed.

    Args:
      directory: for its files. It is removed with the worker.
      command: what to start, followed by two file descriptors and the directory of dumps.
    """

    def __init__(self, directory: str, command: Sequence[str] = ()):
        self._directory = directory
        self._command = list(command) or [sys.executable, "-P", "-m", worker.__name__]
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._dumps = True
        self._broken: str | None = None

    def run(self, job: Job, limits: Limits) -> Answer:
        """Compiles a job. Never raises because of the compiler: that is no verdict.

        A worker that dies for no visible reason gets a second try in a new process; so does one
        that is slow, without dumps, which may take ten times as long as the compiler's own work.
        """
        for attempt in (1, 2):
            try:
                return self._run(job, limits)
            except Failed as failed:
                self.stop()
                if failed.slow and self._dumps and not job.is_function:
                    return self._without_dumps(job, limits)
                if attempt == 2 or not failed.again:
                    return Answer(NO_VERDICT, message=str(failed))
        raise AssertionError

    def _without_dumps(self, job: Job, limits: Limits) -> Answer:
        self._dumps = False
        try:
            answer = self._run(job, limits)
            said = f"no schedule: with its dumps, compiling took more than {limits.cpu:g} s of CPU"
            return dataclasses.replace(answer, unread=answer.unread and said)
        except Failed as failed:
            return Answer(NO_VERDICT, message=str(failed))
        finally:
            self.stop()
            self._dumps = True

    def stop(self) -> None:
        """Ends the process and removes its files."""
        process, self._process = self._process, None
        channel, self._channel = self._channel, None
        if process is not None:
            with contextlib.suppress(OSError):
                process.kill()
            process.wait()
        if channel is not None:
            channel.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _run(self, job: Job, limits: Limits) -> Answer:
        if self._broken is not None:
            raise Failed(self._broken, again=False)
        if self._process is None:
            self._start(limits)
        assert self._channel is not None
        try:
            self._channel.send((job, limits))
        except Closed:
            raise Failed(self._death(limits), again=True) from None
        answer = self._answer(limits, "compiling")
        assert isinstance(answer, Answer)
        return answer

    def _start(self, limits: Limits) -> None:
        for with_dumps in (True, False) if self._dumps else (False,):
            self._dumps = with_dumps
            self._open(with_dumps)
            try:
                self._answer(limits, "starting")
                return
            except Failed as failed:
                self.stop()
                message = str(failed)
        self._broken = message
        raise Failed(message, again=False)

    def _open(self, with_dumps: bool) -> None:
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            dump = os.path.join(self._directory, "dump") if with_dumps else ""
            if dump:
                os.makedirs(dump, exist_ok=True)
            to_read, their_writing = os.pipe()
            their_reading, to_write = os.pipe()
            try:
                with open(os.path.join(self._directory, "stderr"), "wb") as errors:
                    self._process = subprocess.Popen(
                        [*self._command, str(their_reading), str(their_writing), dump],
                        env=environment(self._directory, dump), cwd=self._directory,
                        stdin=subprocess.DEVNULL, pass_fds=(their_reading, their_writing),
                        stdout=errors, stderr=errors,
                    )  # fmt: skip
            finally:
                os.close(their_reading)
                os.close(their_writing)
                self._channel = Channel(to_read, to_write)
        except OSError as error:
            raise Failed(f"the compiler can't be started: {error.strerror}", again=False) from error

    def _answer(self, limits: Limits, doing: str) -> object:
        assert self._channel is not None and self._process is not None
        used, end = 0.0, time.monotonic() + limits.idle
        while True:
            try:
                return self._channel.receive(_POLL)
            except TimeoutError:
                spent = _cpu(self._process.pid)
                if spent > used + _NOTHING:
                    used, end = spent, time.monotonic() + limits.idle
                elif not remaining(end):
                    message = f"{doing} hangs: it used no CPU for {limits.idle:g} s"
                    raise Failed(message, again=False) from None
                if _resident(self._process.pid) > limits.memory:
                    message = f"{doing} took more than {limits.memory >> 20} MB of memory"
                    raise Failed(message, again=False) from None
            except Closed:
                death = self._death(limits)
                slow = self._process.returncode == -signal.SIGXCPU
                raise Failed(f"{doing} {death}", again=not slow, slow=slow) from None

    def _death(self, limits: Limits) -> str:
        assert self._process is not None
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return f"took more than {limits.cpu:g} s of CPU"
        how = f"ended with status {code}"
        if code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        said = self._last_words()
        return f"{how}: {said}" if said else how

    def _last_words(self) -> str:
        """The line in which the compiler said why it aborts, or its last one."""
        try:
            with open(os.path.join(self._directory, "stderr"), encoding="utf-8",
                      errors="replace") as file:  # fmt: skip
                lines = [line.strip() for line in file if line.strip()]
        except OSError:
            return ""
        fatal = [line for line in lines if line.startswith("F") and "]" in line[:80]]
        return (fatal or lines or [""])[-1 if not fatal else 0][:500]


def environment(directory: str, dump: str) -> dict[str, str]:
    """The variables of a process that compiles. ``directory``: for its files; ``dump``: for what
    libtpu says of its work, or an empty text."""
    made = {k: v for k, v in os.environ.items() if k not in _NOT_HANDED_ON}
    made.update(_QUIET, TMPDIR=directory, PYTHONPATH=python_path())
    made["LIBTPU_INIT_ARGS"] = " ".join(dumps.FLAGS).format(directory=dump) if dump else ""
    return made


def python_path() -> str:
    """The import path of this process, without its first entry if that is the script's."""
    import pallas_shim

    home = os.path.dirname(os.path.dirname(os.path.abspath(pallas_shim.__file__)))
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    ours = os.path.join(home, "sitecustomize_pkg")
    return os.pathsep.join([home, *(p for p in inherited if p and p not in (home, ours))])


def _cpu(pid: int) -> float:
    """The seconds of CPU that a process has used."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK
    except (OSError, ValueError, IndexError):
        return 0.0


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


# -- what an executor runs ----------------------------------------------------------------------

_workers: dict[int, Worker] = {}
_lock = threading.Lock()


def compile_job(job: Job, limits: Limits, directory: str | None = None) -> Answer:
    """Compiles a job, in the worker of this thread. ``directory``: where the workers' files go."""
    thread = threading.get_ident()
    with _lock:
        found = _workers.get(thread)
        if found is None:
            if directory is None:  # on another machine, nothing removes it
                own = tempfile.mkdtemp(prefix="pallas_shim-chip-")
                atexit.register(stop_all)
            else:
                own = os.path.join(directory, str(thread))
            found = _workers[thread] = Worker(own)
    return found.run(job, limits)


def stop_all() -> None:
    """Ends the workers of all threads."""
    with _lock:
        while _workers:
            _workers.popitem()[1].stop()
