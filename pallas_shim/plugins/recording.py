"""Records what ran between two moments, such as the start and end of a test."""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any

from pallas_shim import patching, settings
from pallas_shim.check import handover, suppress
from pallas_shim.check.collect import COLLECTOR
from pallas_shim.evaluator.findings import Finding
from pallas_shim.reports.document import Document, since
from pallas_shim.reports.uses import REPORT


class NotChecked(RuntimeError):
    """Findings are asked for, but kernels aren't checked. The text says what to do."""


class Recording:
    """A context in which the shim is active, and what ran in it until now, or until its end."""

    def __init__(self) -> None:
        self._active = contextlib.ExitStack()
        self._document: Document | None = None

    def __enter__(self) -> Recording:
        self._mark = REPORT.mark()
        self._found = len(COLLECTOR.findings())
        self._active.enter_context(patching.active())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._document = self.report
        self._active.close()

    @property
    def report(self) -> Document:
        """The report of what ran here."""
        if self._document is not None:
            return self._document
        return since(self._mark)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row for each kernel that ran here: see `uses.Report.rows`."""
        return self.report.rows

    @property
    def rungs(self) -> set[str]:
        """The rungs on which kernels ran here."""
        return {row["rung"] for row in self.rows}

    @property
    def fallbacks(self) -> list[str]:
        """The kernels that ran in JAX's interpreter here, each with the reason."""
        return [f"{row['name']}: {row['reason']}" for row in self.rows if row["rung"] == "jax"]

    @property
    def findings(self) -> list[Finding]:
        """The findings here, without suppressed ones.

        Raises:
          NotChecked: kernels aren't checked.
        """
        if not settings.current().check:
            raise NotChecked(
                "kernels aren't checked; run pytest with --pallas-check, or with "
                "PALLAS_NUMPY_CHECK=1 in the environment"
            )
        found = COLLECTOR.findings()[self._found :]
        known = handover.suppressions(settings.current().suppressions)
        return list(suppress.apply(found, known).findings)
