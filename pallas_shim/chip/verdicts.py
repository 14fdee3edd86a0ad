"""Verdicts: what the compiler said of each kernel, and how that reads."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pallas_shim.chip import jobs
from pallas_shim.chip.jobs import ACCEPTED, NO_VERDICT, REFUSED, Answer
from pallas_shim.chip.tpus import Tpu

# Compiled by JAX's lowering alone: libtpu isn't installed.
LOWERED = "lowered"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on one kernel for one TPU.

    ``operands``: their types. ``answer``: the compiler's, whose outcome may also be `LOWERED`.
    ``estimate``: bytes of VMEM that blocks and scratch take; None: unknown. ``remembered``: an
    earlier process compiled it. ``blocks``: the bytes of VMEM that blocks take, of which no more
    than ``blocks_limit`` may be; None: unknown. ``names``: the user's names of the operands and
    results. ``devices``: how many run it together. ``operations``: of floating-point numbers in one
    call; None: unknown. ``key``: which of the process's kernels it is.
    """

    kernel: str
    source: str | None
    operands: str
    target: str
    tpu: Tpu
    answer: Answer
    estimate: int | None
    jax: str
    remembered: bool = False
    blocks: int | None = None
    blocks_limit: int | None = None
    names: Sequence[str] = ()
    devices: int = 1
    operations: int | None = None
    key: Any = None

    @property
    def is_refused(self) -> bool:
        return self.answer.outcome == REFUSED

    def row(self) -> dict[str, Any]:
        """The JSON form, for the report."""
        answer = self.answer
        return {
            "name": self.kernel,
            "source": self.source,
            "operands": self.operands,
            "tpu": self.target,
            "outcome": answer.outcome,
            "stage": answer.stage,
            "message": answer.message,
            "memory": self.memory(),
            "vmem_estimate": self.estimate,
            "vmem_limit": self.tpu.vmem,
            "blocks_estimate": self.blocks,
            "blocks_limit": self.blocks_limit,
            "allocations": [dataclasses.asdict(a) for a in answer.allocations or ()],
            "bundles": answer.bundles,
            "spills": answer.spills,
            "code_size": answer.code_size,
            "warnings": list(answer.warnings),
            "unread": answer.unread,
            "cpu_s": answer.seconds,
            "remembered": self.remembered,
            "jax": self.jax,
            "libtpu": answer.libtpu,
        }

    def memory(self) -> dict[str, dict[str, int | None]]:
        """Bytes used and there by memory; semaphores are counted. Empty if it isn't known."""
        if self.answer.allocations is None:
            return {}
        used: collections.Counter[str] = collections.Counter()
        for allocation in self.answer.allocations:
            used[allocation.space] += allocation.size
        return {
            "vmem": {"used": used["vmem"], "limit": self.tpu.vmem},
            "smem": {"used": used["smem"], "limit": self.tpu.smem},
            "semaphores": {"used": used["sflag"] // _SEMAPHORE, "limit": None},
        }


_SEMAPHORE = 4  # bytes


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Verdicts for people: one line each, and what the compiler said of those it refused.

    Args:
      rows: the verdicts in their JSON form (`Verdict.row`), maybe of several processes.
    """
    if not rows:
        return "pallas_shim: no Pallas kernel was reached, so none was compiled"
    libtpu = sorted({f"libtpu {row['libtpu']}" for row in rows if row["libtpu"]})
    versions = ", ".join([f"JAX {rows[0]['jax']}", *libtpu])
    lines = [f"pallas_shim: what the TPU's compiler says ({versions})"]
    # TPUs with the same verdict share their lines.
    said: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        said.setdefault(tuple(_lines(row)), []).append(row["tpu"])
    for (first, *rest), targets in said.items():
        lines += [f"{', '.join(dict.fromkeys(targets))}: {first}", *rest]
    lines.append(f"pallas_shim: {summary(rows)}")
    if any(row["outcome"] == LOWERED for row in rows):
        lines.append(
            "libtpu isn't installed, so only JAX's own lowering was asked. "
            "pip install 'pallas_shim[tpu]' adds the compiler (690 MB): what Mosaic and LLO "
            "refuse, memory used, spills, code size"
        )
    return "\n".join(lines)


def _lines(row: Mapping[str, Any]) -> Iterator[str]:
    place = f" ({row['source']})" if row["source"] else ""
    outcome = row["outcome"]
    if row["stage"] is not None:
        outcome += f" by {row['stage']}" if row["stage"] != jobs.MEMORY else ", memory"
    known = " (known from an earlier run)" if row["remembered"] else ""
    yield f"{row['name']}{place} {row['operands']}: {outcome}{known}"
    facts = list(_facts(row))
    if facts:
        yield "    " + ", ".join(facts)
    if row["message"]:
        yield from ("    " + line for line in row["message"].splitlines()[:_MOST_LINES])
    if row["stage"] == jobs.MEMORY and "scoped vmem limit" in (row["message"] or ""):
        yield "    (compiled alone; what a whole program keeps in VMEM has no blocks there)"
    if row["outcome"] == ACCEPTED and row["unread"]:
        yield f"    {row['unread']}"
    yield from ("    " + warning for warning in row["warnings"])


_MOST_LINES = 24


def _facts(row: Mapping[str, Any]) -> Iterator[str]:
    memory = row["memory"]
    if memory:
        for name in ("vmem", "smem"):
            used, limit = memory[name]["used"], memory[name]["limit"]
            yield f"{name.upper()} {_bytes(used)} of {_bytes(limit)}"
        yield f"{memory['semaphores']['used']} semaphores"
    elif row["vmem_estimate"] is not None and row["outcome"] != ACCEPTED:
        yield overflow(row) or (
            f"blocks and scratch take {_bytes(row['vmem_estimate'])} of "
            f"{_bytes(row['vmem_limit'])} VMEM"
        )
    if row["spills"] is not None:
        yield f"{row['spills']} spills" if row["spills"] else "no spills"
    if row["bundles"] is not None:
        yield f"{row['bundles']} bundles"
    if row["code_size"] is not None:
        yield f"code {_bytes(row['code_size'])}"


def overflow(row: Mapping[str, Any]) -> str | None:
    """Why blocks and scratch can't fit into VMEM, or None."""
    for what, held, limit in (
        ("blocks take", row["blocks_estimate"], row["blocks_limit"]),
        ("blocks and scratch take", row["vmem_estimate"], row["vmem_limit"]),
    ):
        if held is not None and limit is not None and held > limit:
            of = "VMEM" if limit == row["vmem_limit"] else "VMEM, which vmem_limit_bytes can raise"
            return f"{what} {_bytes(held)}, too much for {_bytes(limit)} of {of}"
    return None


def _bytes(number: int | None) -> str:
    if number is None:
        return "?"
    if number >= 1 << 20:
        return f"{number / (1 << 20):.4g} MiB"
    return f"{number / 1024:.4g} KiB" if number >= 1024 else f"{number} B"


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """The number of kernels with each outcome, for the last line."""
    counts = collections.Counter(row["outcome"] for row in rows)
    order = (ACCEPTED, LOWERED, REFUSED, NO_VERDICT)
    return ", ".join(f"{counts[name]} {name}" for name in order if counts[name])
