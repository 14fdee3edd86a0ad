"""Compiles the kernels that this process reached: exports them here, and has them compiled."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import itertools
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
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

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
from pallas_shim.chip.verdicts import LOWERED, Verdict, overflow
from pallas_shim.jax_compat import export_tpu, kernel_info, meshes, pallas

R = TypeVar("R")


def compile_kernels(
    sites: Sequence[export_tpu.Site],
    targets: Sequence[Target],
    *,
    executor: str | None = None,
    limits: Limits | None = None,
    schedule: bool = False,
) -> list[Verdict]:
    """Asks the compiler about kernels, each for each target. See `Session`.

    Raises:
      KeyboardInterrupt: the user doesn't want to wait.
    """
    with Session(targets, executor=executor, limits=limits, schedule=schedule) as session:
        return session.compile(sites)


class Session:
    """Asks the compiler about kernels, in processes that stay until it is closed.

    Args:
      targets: the TPUs to compile each kernel for.
      executor: where to compile, see `driver.executor`. None: processes on this machine.
      limits: what one kernel may take.
      schedule: whether the compiler's schedules are wanted; they aren't kept on disk.
      inside: it is asked in the middle of a program, whose traces, meshes and options exporting
        isn't to see.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        *,
        executor: str | None = None,
        limits: Limits | None = None,
        schedule: bool = False,
        inside: bool = False,
    ):
        self._targets, self._executor, self._schedule = targets, executor, schedule
        self._limits = limits or Limits()
        self._export = functools.partial(in_a_thread, _exported) if inside else _exported
        self._compiler: _Compiler | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes."""
        compiler, self._compiler = self._compiler, None
        if compiler is not None:
            compiler.stop()

    def abandon(self) -> None:
        """Forgets the processes, which belong to the process that this one was forked from."""
        compiler, self._compiler = self._compiler, None
        if compiler is not None:
            compiler.abandon()

    def compile(self, sites: Sequence[export_tpu.Site]) -> list[Verdict]:
        """A verdict on each kernel for each target. Never raises because of a kernel or the
        compiler.

        Raises:
          KeyboardInterrupt: the user doesn't want to wait.
        """
        version = libtpu_version()
        has_compiler = version is not None or self._executor is not None
        unable = export_tpu.serializes() if has_compiler else None
        verdicts: list[Verdict] = []
        # By the compiler's number of a job: the verdict's place, and its name on disk.
        waiting: dict[int, tuple[int, str | None]] = {}
        try:
            for site, target in itertools.product(sites, self._targets):
                verdict, module = self._export(site, target)
                if module is not None and unable is not None:
                    verdict = _answered(verdict, Answer(NO_VERDICT, message=unable))
                place = len(verdicts)
                verdicts.append(verdict)
                if verdict.answer.outcome != LOWERED or not has_compiler:
                    continue
                topology = target.topology_for(export_tpu.devices_of(site))
                hollow = self._hollow(site, target, verdict)
                job = Job(bytes(module.serialize()), topology, site.axes, self._schedule, hollow)
                key = None if version is None or self._schedule else _key(job, version)
                answer = None if key is None else _remembered(key)
                if answer is not None:
                    verdicts[place] = _answered(verdict, answer, remembered=True)
                    continue
                waiting[self._send(job)] = place, key
            for number, answer in self._answers():
                place, key = waiting[number]
                verdicts[place] = _answered(verdicts[place], answer)
                if key is not None and answer.outcome != NO_VERDICT:
                    _remember(key, answer)
        except BaseException:
            self.close()  # what it would still answer, nobody has asked
            raise
        return verdicts

    def compile_functions(
        self, asked: Sequence[tuple[export_tpu.JittedFunction, Target]]
    ) -> list[Answer]:
        """The compiler's answer on each function with all that is in it, for its target. It has
        the schedules. Never raises because of a function or the compiler.

        Raises:
          KeyboardInterrupt: the user doesn't want to wait.
        """
        answers: dict[int, Answer] = {}
        waiting: dict[int, int] = {}
        try:
            for place, (function, target) in enumerate(asked):
                if libtpu_version() is None and self._executor is None:
                    answers[place] = Answer(NO_VERDICT, message="libtpu isn't installed")
                    continue
                try:
                    tpu = target.tpu
                    module = export_tpu.exported_whole(function, tpu.kind, tpu.cores).serialize()
                except Exception as error:
                    message = f"exporting it failed: {_said(error)}"
                    answers[place] = Answer(NO_VERDICT, message=message)
                    continue
                job = Job(bytes(module), target.topology_for(1), is_function=True,
                          donated=function.donated)  # fmt: skip
                waiting[self._send(job)] = place
            answers.update((waiting[number], answer) for number, answer in self._answers())
        except BaseException:
            self.close()
            raise
        return [answers[place] for place in range(len(asked))]

    def _send(self, job: Job) -> int:
        """Hands over a job; returns the number under which it is answered."""
        if self._compiler is None:
            self._compiler = _Compiler(self._executor, self._limits)
            self._compiler.start()
        return self._compiler.send(job)

    def _answers(self) -> Iterable[tuple[int, Answer]]:
        """The answers to all jobs, as they come."""
        if self._compiler is not None:
            yield from self._compiler.answers()
            if self._compiler.has_failed:
                self.close()  # the next job gets a new one

    def _hollow(self, site: export_tpu.Site, target: Target, verdict: Verdict) -> bytes | None:
        """See `Job`. None: its blocks and scratch fit, as far as is known."""
        if overflow(verdict.row()) is None:
            return None
        _, module = self._export(export_tpu.hollow(site), target)
        return None if module is None else bytes(module.serialize())


def in_a_thread(call: Callable[..., R], *args: Any) -> R:
    """Calls a function in a thread of its own, where no trace, mesh or option of JAX's is current.

    Raises: what it raises.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(call, *args).result()


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
        blocks=None if held is None else sum(each.size for each in held if each.is_block),
        blocks_limit=min(target.tpu.vmem, export_tpu.vmem_limit(site) or target.tpu.scoped),
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
        fields = json.loads(bytes(data))
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

    # The seconds without a message after which it counts as hanging. Clusters send only answers.
    _PATIENCE = 900.0

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
        self._sent = 0
        self._left: set[int] = set()

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

    @property
    def has_failed(self) -> bool:
        return self._failure is not None

    def send(self, job: Job) -> int:
        """Hands over a job; returns the number under which it is answered."""
        self._sent += 1
        self._left.add(self._sent)
        if self._failure is None:
            assert self._channel is not None
            try:
                self._channel.send((self._sent, job))
            except Closed:
                self._failure = "the compiling process ended"
        return self._sent

    def answers(self) -> Iterable[tuple[int, Answer]]:
        """The answers to all jobs that were sent and not answered, as they come."""
        while self._left:
            message = self._receive()
            if message is None:
                break
            number, answer = message
            self._left.discard(number)
            yield number, answer
        for number in sorted(self._left):
            yield number, Answer(NO_VERDICT, message=self._failure)
        self._left.clear()

    def _receive(self) -> tuple[int, Answer] | None:
        if self._channel is None:
            return None
        try:
            while (message := self._channel.receive(self._PATIENCE)) == driver.ALIVE:
                pass
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
        at_rest = self._failure is None and not self._left
        if self._channel is not None:
            if at_rest:
                with contextlib.suppress(Closed):
                    self._channel.send(driver.END)
            self._channel.close()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GOODBYE if at_rest else 0)
            with contextlib.suppress(OSError):
                # Its workers belong to its group, on this machine.
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        _remove(self._directory)

    def abandon(self) -> None:
        """In a forked process: leaves the process to the parent."""
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            self._process.returncode = 0  # it is no child of this process; nobody waits for it


def _remove(directory: str) -> None:
    """Removes a directory in which processes that are being killed may still write."""
    for _ in range(40):
        shutil.rmtree(directory, ignore_errors=True)
        if not os.path.exists(directory):
            return
        time.sleep(0.05)
