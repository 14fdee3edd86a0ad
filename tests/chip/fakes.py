"""Compilers and executors that behave badly. Whole processes find them by their names here."""

from __future__ import annotations

import concurrent.futures
import ctypes
import dataclasses
import functools
import os
import signal
import sys
import time
import types

from pallas_shim.chip import dumps, worker
from pallas_shim.chip.jobs import ACCEPTED, MOSAIC, REFUSED, Answer, Job, Limits

# -- a worker: python -P -m tests.chip.fakes, then what `isolation` adds -------------------------


def compiled(job: Job, dump: str) -> Answer:
    """What a job's module says, in the place of the compiler."""
    harm = os.environ.get("TEST_HARM", "")
    module = harm.encode() if harm in ("abort", "hang", "exit", "grow") else job.module
    match module:
        case b"abort":
            os.write(2, b"noise\nF1129 17:59:07.8 123 lib.cc:7] Check failed: a < b\nmore noise\n")
            os.abort()
        case b"segfault":
            ctypes.string_at(0)
        case b"exit":
            os._exit(3)
        case b"killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case b"hang":
            time.sleep(1000)
        case b"spin":
            while True:
                pass
        case b"grow":
            held = []
            while True:
                held.append(bytearray(os.urandom(1 << 20)) * 64)
        case b"once":  # dies, but not the second time
            with open(job.topology, "ab") as file:
                file.write(b"x")
                first = file.tell() == 1
            if first:
                os.kill(os.getpid(), signal.SIGKILL)
        case b"files":
            with open(os.path.join(os.environ["TMPDIR"], "left"), "w") as file:
                file.write("something")
        case b"refuse":
            return Answer(REFUSED, MOSAIC, "Mosaic failed to compile", libtpu="9.9")
        case b"slow dumps" if dump:
            while True:
                pass
        case b"slow dumps":
            return Answer(ACCEPTED, unread="no schedule: it writes nothing")
        case b"dumps":
            return Answer(ACCEPTED, message=f"dumps: {bool(dump)}")
    return Answer(ACCEPTED, code_size=os.getpid(), libtpu="9.9")


# -- executors ----------------------------------------------------------------------------------


def _at_once(call, *args):
    future: concurrent.futures.Future = concurrent.futures.Future()
    future.set_result(call(*args))
    return future


class _Executor(concurrent.futures.Executor):
    def __init__(self, answer):
        self._answer = answer

    def submit(self, call, /, *args, **kwargs):
        note = os.environ.get("TEST_NOTE")
        if note:
            with open(note, "a") as file:
                file.write("x")
        return _at_once(self._answer, args[0])


def accepting():
    return _Executor(lambda job: Answer(ACCEPTED, code_size=len(job.module), libtpu="9.9"))


def hollow():
    """Says whether it got the kernel with an empty body, too, and that this is the smaller one."""
    return _Executor(
        lambda job: Answer(
            ACCEPTED, message=None if job.hollow is None else str(len(job.hollow) < len(job.module))
        )
    )


def functions():
    """Accepts kernels, and functions as programs of one kernel like `kernels.added`."""
    from tests.chip.test_profile import files

    kernel = (
        "ENTRY %main (a: f32[512,256]) -> f32[512,256] {\n"
        "  %a = f32[512,256]{1,0} parameter(0)\n"
        '  ROOT %k = f32[512,256]{1,0} custom-call(%a), custom_call_target="tpu_custom_call"\n}\n'
    )

    def answer(job):
        made = dumps.Compiled(kernel, {"k": files()}) if job.is_function else None
        return Answer(ACCEPTED, libtpu="9.9", schedule=made)

    return _Executor(answer)


def refusing():
    return _Executor(lambda job: Answer(REFUSED, MOSAIC, "Mosaic failed to compile", libtpu="9.9"))


def failing():
    def fail(job):
        raise RuntimeError("the cluster is gone")

    return _Executor(fail)


def silent():
    class Silent(concurrent.futures.Executor):
        def submit(self, call, /, *args, **kwargs):
            return concurrent.futures.Future()

    return Silent()


def dying():
    class Dying(concurrent.futures.Executor):
        def submit(self, call, /, *args, **kwargs):
            os.kill(os.getpid(), signal.SIGKILL)

    return Dying()


def chattering():
    """Writes where the answers are read."""

    class Chattering(concurrent.futures.Executor):
        def submit(self, call, /, *args, **kwargs):
            os.write(int(sys.argv[2]), (5).to_bytes(8, "little") + b"hello")
            return concurrent.futures.Future()

    return Chattering()


def no_executor():
    return object()


def threads():
    """Real threads, each with a process of a fake compiler."""
    from pallas_shim.chip import isolation

    if os.environ.get("TEST_HARM") == "hang":
        run = isolation.Worker.run
        limits = dataclasses.replace(Limits(), idle=1.0)
        isolation.Worker.run = lambda self, job, _: run(self, job, limits)  # type: ignore
    if os.environ.get("TEST_HARM") == "grow":
        run_it = isolation.Worker.run
        small = dataclasses.replace(Limits(), memory=500 << 20)
        isolation.Worker.run = lambda self, job, _: run_it(self, job, small)  # type: ignore
    vars(isolation)["Worker"] = functools.partial(isolation.Worker, command=COMMAND)
    return concurrent.futures.ThreadPoolExecutor(2)


COMMAND = [sys.executable, "-P", "-m", "tests.chip.fakes"]


if __name__ == "__main__":
    worker.compiled = compiled
    sys.modules["jax"] = types.ModuleType("jax")  # a fake compiler needs none
    if os.environ.get("TEST_DUMPS") == "refused" and os.environ["LIBTPU_INIT_ARGS"]:
        print("ERROR: Unknown command line flag 'xla_jf_dump_to'")
        sys.exit(1)
    if os.environ.get("TEST_START") == "fails":
        sys.exit("ImportError: no libtpu")
    worker.main(sys.argv[1:])
