"""Compiles the kernels that this process reached: exports them here, and has them compiled."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from typing import Any

import jax

import pallas_shim
from pallas_shim import settings
from pallas_shim.cache import store
from pallas_shim.chip import driver, estimate, isolation, noting, operations
from pallas_shim.chip.channel import Channel, Closed
from pallas_shim.chip.jobs import (
    LOWERING,
    NO_VERDICT,
    REFUSED,
    Allocation,
    Answer,
    Job,
    Limits,
)
from pallas_shim.chip.tpus import Target, libtpu_version
from pallas_shim.chip.verdicts import LOWERED, Verdict
from pallas_shim.jax_compat import export_tpu, kernel_info, meshes, pallas


def compile_kernels(
    sites: Sequence[export_tpu.Site],
    targets: Sequence[Target],
    *,
    executor: str | None = None,
    limits: Limits | None = None,
    schedule: bool = False,
) -> list[Verdict]:
    """Asks the compiler about kernels. Never raises because of a kernel or the compiler.

    Args:
      sites: the kernels.
      targets: the TPUs to compile each for.
      executor: where to compile, see `driver.executor`. None: processes on this machine.
      limits: what one kernel may take.
      schedule: whether the compiler's schedules are wanted; they aren't kept on disk.

    Raises:
      KeyboardInterrupt: the user doesn't want to wait.
    """
    version = libtpu_version()
    has_compiler = version is not None or executor is not None
    unable = export_tpu.serializes() if has_compiler else None
    verdicts: list[Verdict] = []
    with contextlib.ExitStack() as stack:
        compiler: _Compiler | None = None
        waiting: dict[int, str | None] = {}
        for site in sites:
            for target in targets:
                verdict, module = _exported(site, target)
                if module is not None and unable is not None:
                    verdict = _answered(verdict, Answer(NO_VERDICT, message=unable))
                number = len(verdicts)
                verdicts.append(verdict)
                if verdict.answer.outcome != LOWERED or not has_compiler:
                    continue
                topology = target.topology_for(export_tpu.devices_of(site))
                job = Job(bytes(module.serialize()), topology, site.axes, schedule)
                key = None if version is None or schedule else _key(job, version)
                answer = None if key is None else _remembered(key)
                if answer is not None:
                    verdicts[number] = _answered(verdict, answer, remembered=True)
                    continue
                if compiler is None:
                    compiler = _Compiler(executor, limits or Limits())
                    stack.callback(compiler.stop)
                    compiler.start()
                compiler.send(number, job)
                waiting[number] = key
        if compiler is not None:
            for number, answer in compiler.answers(waiting):
                verdicts[number] = _answered(verdicts[number], answer)
                key = waiting[number]
                if key is not None and answer.outcome != NO_VERDICT:
                    _remember(key, answer)
    return verdicts


def _exported(site: export_tpu.Site, target: Target) -> tuple[Verdict, Any]:
    """Exports a kernel for a TPU. The verdict is that of JAX's lowering; the module is None if it
    is the last one."""
    equation = site.equation
    described = kernel_info.describe_kernel(equation)
    held = estimate.vmem(equation)
    start = time.process_time()
    module = None
    try:
        obstacle = export_tpu.obstacle(site)
        if obstacle is not None:
            answer = Answer(NO_VERDICT, message=obstacle)
        else:
            module = export_tpu.exported(site, target.tpu.kind, target.tpu.cores)
            answer = Answer(LOWERED)
    except Exception as error:
        if export_tpu.is_refusal(error):
            answer = Answer(REFUSED, LOWERING, _said(error))
        else:
            answer = Answer(NO_VERDICT, message=f"exporting it failed: {_said(error)}")
    took = time.process_time() - start
    verdict = Verdict(
        described.name,
        described.source,
        "(" + ", ".join(str(v.aval.str_short(short_dtypes=True)) for v in equation.invars) + ")",
        target.name,
        target.tpu,
        dataclasses.replace(answer, seconds=took),
        None if held is None else sum(each.size for each in held),
        jax.__version__,
        names=meshes.argument_names(pallas.kernel_jaxpr(equation)),
        devices=export_tpu.devices_of(site),
        operations=operations.of_kernel(equation),
        key=noting.key(site),
    )
    return verdict, module


def _said(error: Exception) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


def _answered(verdict: Verdict, answer: Answer, remembered: bool = False) -> Verdict:
    spent = verdict.answer.seconds + (0.0 if remembered else answer.seconds)
    return dataclasses.replace(
        verdict, answer=dataclasses.replace(answer, seconds=spent), remembered=remembered
    )


# -- on disk ------------------------------------------------------------------------------------


def _key(job: Job, version: str) -> str:
    """The name of an answer on disk: the module, the topology, and all versions."""
    digest = hashlib.sha256(job.module)
    for part in (job.topology, job.axes, version, jax.__version__, pallas_shim.__version__):
        digest.update(f"\n{part}".encode())
    return f"verdict-{digest.hexdigest()}"


def _store() -> store.Store | None:
    setting = settings.current().cache
    if setting is None:
        return None
    try:
        return store.store(setting)
    except store.Refused:
        return None


def _remembered(key: str) -> Answer | None:
    kept = _store()
    data = None if kept is None else kept.read(key)
    if data is None:
        return None
    try:
        fields = json.loads(data)
        held = fields["allocations"]
        if held is not None:
            fields["allocations"] = tuple(Allocation(**each) for each in held)
        fields["warnings"] = tuple(fields["warnings"])
        return Answer(**fields)
    except (ValueError, KeyError, TypeError):  # another version's form
        return None


def _remember(key: str, answer: Answer) -> None:
    kept = _store()
    if kept is not None:
        kept.write(key, json.dumps(dataclasses.asdict(answer)).encode())


# -- the process that has them compiled ------------------------------------------------------------


# The seconds that the process has to end by itself when it has answered all.
_GOODBYE = 5.0


class _Compiler:
    """The driver's process. Whatever happens to it, each job gets an answer."""

    # Beyond a job's own limit, the seconds without any answer after which it counts as hanging.
    _PATIENCE = 120.0

    def __init__(self, executor: str | None, limits: Limits):
        self._executor, self._limits = executor, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        # Known before it is made, so that it goes whenever Ctrl-C comes. Short, since clusters put
        # sockets in it.
        self._directory = os.path.join(
            tempfile.gettempdir(), f"pallas_shim-chip-{secrets.token_hex(4)}"
        )
        self._failure: str | None = None
        self._answered = False

    def start(self) -> None:
        try:
            os.mkdir(self._directory, mode=0o700)
            self._start()
            assert self._channel is not None
            self._channel.send((self._directory, self._executor, self._limits))
        except (OSError, Closed) as error:
            self._failure = f"the compiler can't be started: {error or 'it ended'}"

    def _start(self) -> None:
        to_read, their_writing = os.pipe()
        their_reading, to_write = os.pipe()
        try:
            command = [sys.executable, "-P", "-m", driver.__name__]
            variables = {"PALLAS_NUMPY": "0", "PYTHONPATH": isolation.python_path()}
            variables["TMPDIR"] = self._directory
            self._process = subprocess.Popen(
                [*command, str(their_reading), str(their_writing)],
                env={**os.environ, **variables},
                pass_fds=(their_reading, their_writing),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the user's process, which then stops it
            )
        finally:
            os.close(their_reading)
            os.close(their_writing)
            self._channel = Channel(to_read, to_write)

    def send(self, number: int, job: Job) -> None:
        if self._failure is None:
            assert self._channel is not None
            try:
                self._channel.send((number, job))
            except Closed:
                self._failure = "the compiling process ended"

    def answers(self, numbers: Iterable[int]) -> Iterable[tuple[int, Answer]]:
        """The answers to all jobs that were sent, as they come."""
        left = set(numbers)
        if self._failure is None:
            assert self._channel is not None
            with contextlib.suppress(Closed):
                self._channel.send(driver.END)
        while left:
            message = self._receive()
            if message is None:
                break
            number, answer = message
            left.discard(number)
            yield number, answer
        self._answered = self._failure is None
        for number in sorted(left):
            yield number, Answer(NO_VERDICT, message=self._failure)

    def _receive(self) -> tuple[int, Answer] | None:
        if self._channel is None:
            return None
        try:
            message = self._channel.receive(self._limits.wall + self._PATIENCE)
        except TimeoutError:
            self._failure = self._failure or "the compiling process doesn't answer"
        except Closed:
            self._failure = self._failure or "the compiling process ended"
        except Exception as error:  # what came is no message of ours
            self._failure = f"the compiling process failed: {type(error).__name__}: {error}"
        else:
            if isinstance(message, tuple):
                return message
            self._failure = str(message)
        return None

    def stop(self) -> None:
        """Ends the process and its workers, and removes their files."""
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GOODBYE if self._answered else 0)
            with contextlib.suppress(OSError):
                # Its workers belong to its group, on this machine.
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        _remove(self._directory)


def _remove(directory: str) -> None:
    """Removes a directory in which processes that are being killed may still write."""
    for _ in range(40):
        shutil.rmtree(directory, ignore_errors=True)
        if not os.path.exists(directory):
            return
        time.sleep(0.05)
