"""Compiles kernels for a TPU, one after the other: python -m pallas_shim.chip.worker.

It is started by `isolation`, which says what to compile and ends it when a limit is passed. It may
abort. No code of the user's runs here.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib.metadata
import os
import resource
import shutil
import signal
import sys
from typing import Any

from pallas_shim.chip import dumps
from pallas_shim.chip.channel import Channel, Closed
from pallas_shim.chip.jobs import (
    ACCEPTED,
    LLO,
    MEMORY,
    MOSAIC,
    NO_VERDICT,
    REFUSED,
    Answer,
    Job,
    Limits,
)

READY = "ready"
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    reading, writing, dump = int(arguments[0]), int(arguments[1]), arguments[2]
    channel = Channel(reading, writing)
    with contextlib.suppress(OSError):
        # If the machine's memory ends, this process is to go, not the user's.
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    # A worker isn't to outlive the process that waits for it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    import jax  # noqa: F401  # the first job isn't to pay for it

    channel.send(READY)
    while True:
        try:
            job, limits = channel.receive()
        except Closed:
            return
        _limit(limits)
        before = _cpu()
        answer = compiled(job, dump)
        object.__setattr__(answer, "seconds", _cpu() - before)
        channel.send(answer)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _limit(limits: Limits) -> None:
    """Has the kernel end this process when the job passes its limits."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(_cpu() + limits.cpu) + 1, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limits.memory, hard))


def compiled(job: Job, dump: str) -> Answer:
    """What the compiler says of a kernel. ``dump``: the directory that libtpu writes to, or an
    empty text if it writes nothing."""
    if job.hollow is not None:
        hollow = compiled(dataclasses.replace(job, module=job.hollow, hollow=None), dump)
        if hollow.stage == MEMORY:
            return hollow
    version = importlib.metadata.version("libtpu")
    if dump:
        _clear(dump)
    try:
        lowered = _lowered(job)
    except Exception as error:
        message = f"the module can't be compiled here: {_text(error)}"
        return Answer(NO_VERDICT, message=message, libtpu=version)
    try:
        made = lowered.compile()
    except Exception as error:
        stage = _stage(str(error))
        if stage is None:
            return Answer(NO_VERDICT, message=_text(error), libtpu=version)
        return Answer(REFUSED, stage, _text(error), libtpu=version)
    answer: dict[str, Any] = {"outcome": ACCEPTED, "libtpu": version}
    memory = made.memory_analysis()
    answer["code_size"] = getattr(memory, "generated_code_size_in_bytes", None)
    try:
        if not dump:
            raise dumps.UnreadableDump("it doesn't take the options for it")
        text = made.as_text()
        names = dumps.kernels(text)
        if job.is_function:
            found = {}
            for name in names:
                with contextlib.suppress(dumps.UnreadableDump):  # a SparseCore's have none
                    found[name] = dumps.read(dump, name)
            answer["schedule"] = dumps.Compiled(dumps.without_long_lines(text), found)
            return Answer(**answer)
        if len(names) != 1:
            raise dumps.UnreadableDump(f"the module has {len(names)} kernels")
        files = dumps.read(dump, names[0])
        answer["allocations"] = dumps.allocations(files)
        units = dumps.utilization(files)
        answer["bundles"] = len(units.bundles)
        answer["spills"] = units.total("VSTORE:SPILL")
        answer["warnings"] = dumps.warnings(files)
        if job.schedule:
            answer["schedule"] = files
    except dumps.UnreadableDump as error:
        answer["unread"] = f"no schedule with libtpu {version}: {error}"
    return Answer(**answer)


def _lowered(job: Job) -> Any:
    import jax
    import numpy as np
    from jax import export
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

    described = topologies.get_topology_desc(platform="tpu", topology_name=job.topology)
    devices = described.devices
    module = export.deserialize(bytearray(job.module))
    sharding: Any = SingleDeviceSharding(devices[0])
    if job.axes:
        names, sizes = zip(*job.axes, strict=True)
        count = int(np.prod(sizes))
        if count > len(devices):
            raise ValueError(f"{job.topology} has {len(devices)} devices, {count} are needed")
        mesh = Mesh(np.array(devices[:count], object).reshape(sizes), names)
        sharding = NamedSharding(mesh, PartitionSpec())
    arguments = [
        jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding) for aval in module.in_avals
    ]
    # The arguments say where it runs; if there is none, the results do.
    placed = {} if arguments else {"out_shardings": sharding}
    return jax.jit(module.call, donate_argnums=job.donated, **placed).lower(*arguments)


def _text(error: Exception) -> str:
    return str(error).strip() or type(error).__name__


def _stage(message: str) -> str | None:
    """The compiler's stage that refused a kernel, from its own words. None: it is no refusal."""
    if "RESOURCE_EXHAUSTED" in message or "Ran out of memory" in message:
        return MEMORY
    if "Mosaic failed to compile" in message or "MLIR operation" in message:
        return MOSAIC
    if message.startswith(("INTERNAL", "INVALID_ARGUMENT", "UNIMPLEMENTED", "FAILED_PRECONDITION",
                           "NOT_FOUND", "UNKNOWN", "OUT_OF_RANGE", "ABORTED")):  # fmt: skip
        return LLO
    return None


def _clear(directory: str) -> None:
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(path)


if __name__ == "__main__":
    main(sys.argv[1:])
