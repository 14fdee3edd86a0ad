"""A compiler that aborts, hangs, grows or can't start gives no verdict; the next job goes on."""

from __future__ import annotations

import os
import types

import pytest

from pallas_shim.chip import worker as worker_module
from pallas_shim.chip.isolation import Worker
from pallas_shim.chip.jobs import ACCEPTED, MEMORY, NO_VERDICT, REFUSED, Job, Limits
from tests.chip import fakes

LIMITS = Limits(cpu=60, idle=60, memory=2 << 30)


@pytest.fixture
def worker(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
    made = Worker(str(tmp_path / "worker"), fakes.COMMAND)
    yield made
    made.stop()
    assert not (tmp_path / "worker").exists()


def asked(worker, module, limits=LIMITS, topology="v6e:2x2"):
    return worker.run(Job(module, topology), limits)


@pytest.mark.parametrize(
    "hollow, asked_about, outcome",
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem", [b"hollow"], REFUSED),
        ("INTERNAL: Mosaic failed to compile TPU kernel: empty", [b"hollow", b""], NO_VERDICT),
        (None, [b"hollow", b""], NO_VERDICT),
    ],
)
def test_a_kernel_is_refused_if_it_does_not_fit_with_an_empty_body(
    monkeypatch, hollow, asked_about, outcome
):
    seen = []

    def lowered(job):
        seen.append(job.module)

        class Lowered:
            def compile(self):
                if job.module == b"hollow" and hollow is None:
                    return types.SimpleNamespace(memory_analysis=lambda: None)
                raise ValueError(hollow if job.module == b"hollow" else "whatever")

        return Lowered()

    monkeypatch.setattr(worker_module, "_lowered", lowered)
    monkeypatch.setattr("importlib.metadata.version", lambda _: "9.9")
    answer = worker_module.compiled(Job(b"", "v6e:2x2", hollow=b"hollow"), "")
    assert seen == asked_about and answer.outcome == outcome
    assert (answer.stage == MEMORY) is (outcome == REFUSED)


def test_one_process_compiles_many(worker):
    pids = {asked(worker, b"").code_size for _ in range(5)}
    assert len(pids) == 1 and os.getpid() not in pids
    assert asked(worker, b"refuse").outcome == REFUSED


@pytest.mark.parametrize(
    "module, reason",
    [
        (b"abort", "SIGABRT: F1129 17:59:07.8 123 lib.cc:7] Check failed: a < b"),
        (b"segfault", "SIGSEGV"),
        (b"exit", "ended with status 3"),
        (b"killed", "SIGKILL"),
    ],
)
def test_it_dies(worker, module, reason):
    answer = asked(worker, module)
    assert answer.outcome == NO_VERDICT and reason in answer.message
    assert asked(worker, b"").outcome == ACCEPTED


@pytest.mark.parametrize(
    "module, limits, reason",
    [
        (b"hang", Limits(cpu=60, idle=1), "it used no CPU for 1 s"),
        (b"spin", Limits(cpu=1, idle=60), "took more than 1 s of CPU"),
        (b"grow", Limits(cpu=60, idle=60, memory=600 << 20), "memory|MemoryError|status|SIG"),
    ],
)
def test_it_takes_too_much(worker, module, limits, reason):
    assert asked(worker, b"").outcome == ACCEPTED  # it has started
    answer = asked(worker, module, limits)
    assert answer.outcome == NO_VERDICT
    assert any(part in answer.message for part in reason.split("|"))
    assert asked(worker, b"").outcome == ACCEPTED


def test_a_worker_that_was_killed_gets_a_second_try(worker, tmp_path):
    count = tmp_path / "count"
    assert asked(worker, b"once", topology=str(count)).outcome == ACCEPTED
    assert count.read_text() == "xx"


def test_without_the_options_for_dumps_if_libtpu_refuses_them(worker, monkeypatch):
    assert asked(worker, b"dumps").message == "dumps: True"
    worker.stop()
    monkeypatch.setenv("TEST_DUMPS", "refused")
    assert asked(worker, b"dumps").message == "dumps: False"


def test_it_is_only_slow_with_dumps(worker):
    answer = asked(worker, b"slow dumps", Limits(cpu=1, idle=60))
    assert answer.outcome == ACCEPTED
    assert answer.unread == "no schedule: with its dumps, compiling took more than 1 s of CPU"
    assert asked(worker, b"dumps").message == "dumps: True"  # the next job has them again
    # Without its schedule, nothing can be said of a function.
    job = Job(b"slow dumps", "v6e:2x2", is_function=True)
    assert worker.run(job, Limits(cpu=1, idle=60)).outcome == NO_VERDICT


def test_it_cannot_start(worker, monkeypatch):
    monkeypatch.setenv("TEST_START", "fails")
    for _ in range(2):
        answer = asked(worker, b"")
        assert answer.outcome == NO_VERDICT and "no libtpu" in answer.message


def test_its_files_go_nowhere_else(worker, tmp_path):
    asked(worker, b"files")
    assert (tmp_path / "worker" / "left").exists()  # and the fixture sees that it goes


def test_no_room_for_its_files(tmp_path):
    (tmp_path / "file").write_text("")
    made = Worker(str(tmp_path / "file" / "worker"), fakes.COMMAND)
    answer = asked(made, b"")
    assert answer.outcome == NO_VERDICT and "can't be started" in answer.message
