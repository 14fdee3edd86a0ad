"""Hands kernels to an executor, and the answers back: python -m pallas_shim.chip.driver.

It stands between the user's process, which may be ending and so can't start threads, and the
processes that compile.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import importlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from pallas_shim.chip import isolation
from pallas_shim.chip.channel import Channel, Closed
from pallas_shim.chip.jobs import NO_VERDICT, Answer, Limits

END = "end"
# Says that jobs are being worked on, so that nobody takes a busy machine for a hanging one.
ALIVE = "alive"
_BEAT = 10.0


class BadExecutor(ValueError):
    """What the user named is no executor; the message says why."""


def main(arguments: list[str]) -> None:
    channel = Channel(int(arguments[0]), int(arguments[1]))
    status = 0
    try:
        directory, named, limits = channel.receive()
    except Closed:
        os._exit(1)
    try:
        _run(channel, directory, named, limits)
    except Closed:
        status = 1
        _clean_up(directory)
    isolation.stop_all()
    for close in _clusters:
        with contextlib.suppress(Exception):
            close()
    # A cluster's client may have threads that don't end.
    os._exit(status)


def _run(channel: Channel, directory: str, named: str | None, limits: Limits) -> None:
    compile_job: Callable[..., Answer] = isolation.compile_job
    given: tuple[Any, ...] = (limits, directory)
    try:
        if named is None:
            pool = _pool()
        else:
            # It may be another machine, so it makes a directory of its own.
            pool, given = executor(named), (limits,)
    except Exception as error:
        channel.send(f"the executor {named} can't be used: {type(error).__name__}: {error}")
        return
    left = threading.Semaphore(0)
    count = 0
    if named is None:  # each of its jobs has an end: their limits
        threading.Thread(target=_beat, args=(channel,), daemon=True).start()

    def answered(number: int, future: concurrent.futures.Future[Answer]) -> None:
        try:
            answer = future.result()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
            answer = Answer(NO_VERDICT, message=f"the executor failed: {said}")
        try:
            channel.send((number, answer))
        except Closed:
            _clean_up(directory)
            os._exit(1)
        left.release()

    while (message := channel.receive()) != END:
        number, job = message
        count += 1
        try:
            future = pool.submit(compile_job, job, *given)
        except Exception as error:
            failed = f"the executor failed: {type(error).__name__}: {error}"
            channel.send((number, Answer(NO_VERDICT, message=failed)))
            left.release()
            continue
        future.add_done_callback(functools.partial(answered, number))
    for _ in range(count):
        left.acquire()


def _clean_up(directory: str) -> None:
    """The user's process has gone: nobody waits for the rest, or removes what it leaves."""
    isolation.stop_all()
    shutil.rmtree(directory, ignore_errors=True)


def _beat(channel: Channel) -> None:
    with contextlib.suppress(Closed):
        while True:
            time.sleep(_BEAT)
            channel.send(ALIVE)


def _pool() -> concurrent.futures.Executor:
    """Our own pool: each thread has a process that compiles."""
    return concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0)))


def executor(named: str) -> concurrent.futures.Executor:
    """The executor that the user named: ``module:factory``, ``dask:ADDRESS`` or ``ray:ADDRESS``.

    The address ``local`` starts a cluster on this machine.

    Raises:
      BadExecutor
      ImportError: the module, Dask or Ray isn't installed.
    """
    kind, colon, what = named.partition(":")
    if not colon or not what:
        raise BadExecutor("it takes module:factory, dask:ADDRESS or ray:ADDRESS")
    if kind == "dask":
        distributed = importlib.import_module("distributed")
        client = distributed.Client() if what == "local" else distributed.Client(what)
        if what == "local":
            _clusters.append(client.shutdown)
        pool: concurrent.futures.Executor = client.get_executor(pure=False)
        return pool
    if kind == "ray":
        return _Ray(what)
    sys.path.insert(0, os.getcwd())
    made = getattr(importlib.import_module(kind), what)()
    if not hasattr(made, "submit"):
        raise BadExecutor(f"{named}() gives a {type(made).__name__}, which has no submit")
    return made


# What ends the clusters that were started here.
_clusters: list[Callable[[], object]] = []


class _Ray(concurrent.futures.Executor):
    """A Ray cluster as an executor."""

    def __init__(self, address: str):
        self._ray = importlib.import_module("ray")
        self._ray.init(address=address, log_to_driver=False)
        if address == "local":
            _clusters.append(self._ray.shutdown)

    def submit(self, call: Any, /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        return self._ray.remote(call).remote(*args, **kwargs).future()


if __name__ == "__main__":
    main(sys.argv[1:])
