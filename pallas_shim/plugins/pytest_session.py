"""A session of pytest in which kernels run in NumPy: its settings, its failures, its summary."""

from __future__ import annotations

import atexit
import collections
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from pallas_shim import environment, patching, settings
from pallas_shim.check import handover
from pallas_shim.check.collect import COLLECTOR
from pallas_shim.check.results import Results
from pallas_shim.reports import files

_LEADER = "_PALLAS_SHIM_PYTEST"  # the process that shows the summary


class PytestSession:
    """A plugin of pytest, registered when an option asks for it.

    A worker of pytest-xdist prints no summary.

    Args:
      options: those of the command line.
    """

    def __init__(self, options: Any):
        # A worker is a child of the process that leads. Its own children inherit its environment,
        # and may run another pytest.
        self._is_worker = is_worker = (
            "PYTEST_XDIST_WORKER" in os.environ and os.environ.get(_LEADER) == str(os.getppid())
        )
        self._asked_for_table = options.pallas_report is not None
        if not is_worker:
            self._set_variables(options)
        settings.current.cache_clear()
        try:
            patching.activate()
        except settings.SettingError as error:
            raise pytest.UsageError(str(error)) from error
        if not patching.is_active():
            raise pytest.UsageError("pallas_shim is off, see the message above")
        # They are set up when Pallas is imported, which a plugin may have done before this one.
        chosen = settings.current()
        files.write_at_exit(chosen.report)
        if chosen.check or chosen.schedules:
            handover.begin(chosen.findings, chosen.suppressions)

    def _set_variables(self, options: Any) -> None:
        """The data that the session's processes need. Workers of pytest-xdist inherit it."""
        directory = tempfile.mkdtemp(prefix="pallas_shim-")
        # Workers may end after this process's summary.
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        wanted = os.environ.get("PALLAS_NUMPY_REPORT", "")
        self._asked_for_table |= wanted not in ("", "0")
        if options.pallas_report is not None:
            wanted = os.path.abspath(options.pallas_report)
        if wanted in ("", "0", "1"):
            wanted = os.path.join(directory, "report.json")
        self._report = os.environ["PALLAS_NUMPY_REPORT"] = wanted
        os.environ[environment.RUN] = os.urandom(8).hex()
        os.environ[_LEADER] = str(os.getpid())
        if options.pallas_strict:
            os.environ["PALLAS_NUMPY_STRICT"] = "1"
        if options.pallas_check and os.environ.get("PALLAS_NUMPY_CHECK", "") in ("", "0"):
            os.environ["PALLAS_NUMPY_CHECK"] = "1"
        if options.pallas_compile is not None:
            os.environ["PALLAS_NUMPY_COMPILE"] = options.pallas_compile
        self._findings = os.environ["PALLAS_NUMPY_FINDINGS"] = directory

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        COLLECTOR.clear()  # each test fails that finds something, not only the first one

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[Any]:
        if not settings.current().check:
            return (yield)
        try:
            returned = yield
        except BaseException:
            results = self._results()
            if results.findings:
                item.add_report_section("call", "pallas_shim check", str(results))
            raise
        results = self._results()
        if results.findings:
            pytest.fail(str(results), pytrace=False)
        return returned

    def _results(self) -> Results:
        return handover.of_process(handover.suppressions(settings.current().suppressions))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Findings outside of tests, as in another process, fail the session, and so do kernels
        that a TPU's compiler refuses. Each process compiles those that it reached."""
        if settings.current().compile and "jax" in sys.modules:
            from pallas_shim.chip import front

            front.compile_reached()
        if self._is_worker and "jax" in sys.modules:
            # A journal has only calls of kernels, and the leader reads before this process ends.
            files.write(os.environ["PALLAS_NUMPY_REPORT"])
        if self._is_worker or session.exitstatus != 0:
            return
        refused = any(row["outcome"] == "refused" for row in self._compiled())
        if refused or self._all_results().findings:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _compiled(self) -> list[dict[str, Any]]:
        """The verdicts of the TPU's compiler in all processes."""
        processes = files.of_run(self._report).processes
        return [row for process in processes for row in process.get("compiled", ())]

    def _all_results(self) -> Results:
        known = handover.suppressions(settings.current().suppressions)
        return handover.collect(self._findings, known)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        document = files.of_run(self._report)
        terminalreporter.section("pallas_shim")
        if self._asked_for_table:
            terminalreporter.write_line(str(document))
        else:
            rungs = collections.Counter(row["rung"] for row in document.rows)
            each = ", ".join(f"{count} on rung {rung}" for rung, count in rungs.items())
            terminalreporter.write_line(f"Pallas kernels: {each or 'none was called'}")
        if settings.current().check:
            terminalreporter.write_line(str(self._all_results()))
        if settings.current().compile:
            from pallas_shim.chip import verdicts

            terminalreporter.write_line(verdicts.text(self._compiled()))
