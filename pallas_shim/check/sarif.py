"""Findings as SARIF 2.1.0, which code hosts and editors show beside the source."""

from __future__ import annotations

import hashlib
import os
import pathlib
from typing import Any

import pallas_shim
from pallas_shim.check.results import Results, Suppressed, place
from pallas_shim.evaluator.findings import Access, Finding

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_KINDS = {
    "bounds": "A block, ref, slice, DMA or gather lies outside its array",
    "uninitialized": "Memory is read before anything has written it",
    "races": "The order of two accesses to the same elements isn't decided",
    "sync": "Semaphores, DMAs or barriers don't fit together",
    "blocks": "Output blocks are visited again, or aliases disagree",
}


def document(results: Results) -> dict[str, Any]:
    """The log, to be written as JSON. Files below the working directory have relative URIs."""
    every: list[tuple[Finding, Suppressed | None]] = [(f, None) for f in results.findings]
    every += [(s.finding, s) for s in results.suppressed]
    rules = dict.fromkeys((f.kind, f.rule) for f, _ in every)
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": "pallas_shim",
                "version": pallas_shim.__version__,
                "rules": [
                    {
                        "id": f"{kind}/{rule}",
                        "shortDescription": {"text": f"{_KINDS[kind]}: {rule}"},
                        "defaultConfiguration": {"level": "error"},
                    }
                    for kind, rule in rules
                ],
            }
        },
        "originalUriBaseIds": {"SRCROOT": {"uri": pathlib.Path.cwd().as_uri() + "/"}},
        "columnKind": "unicodeCodePoints",
        "results": [_result(f, suppressed, list(rules)) for f, suppressed in every],
    }
    notes = [
        {"level": "note", "message": {"text": f"{kernel} wasn't checked: {reason}"}}
        for kernel, reason in results.not_checked
    ]
    run["invocations"] = [{"executionSuccessful": True, "toolExecutionNotifications": notes}]
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _result(
    finding: Finding, suppressed: Suppressed | None, rules: list[tuple[str, str]]
) -> dict[str, Any]:
    ref = f", ref {finding.ref}" if finding.ref else ""
    text = f"{finding.message} (kernel {finding.kernel}{ref}) {finding.advice}"
    located = [(a, loc) for a in finding.accesses if (loc := _location(a.where)) is not None]
    main = [location for _, location in located[:1]]
    if not main and (defined := _location(finding.source)) is not None:
        main = [defined]
    made: dict[str, Any] = {
        "ruleId": f"{finding.kind}/{finding.rule}",
        "ruleIndex": rules.index((finding.kind, finding.rule)),
        "level": "error",
        "message": {"text": text},
        "locations": main,
        "relatedLocations": [
            {"id": number, **location, "message": {"text": _text(access, finding.ref)}}
            for number, (access, location) in enumerate(located, 1)
        ],
        "partialFingerprints": {"place/v1": _fingerprint(finding)},
        "properties": {"kernel": finding.kernel, "ref": finding.ref},
    }
    if suppressed is not None:
        kind = "inSource" if suppressed.by == "comment" else "external"
        made["suppressions"] = [{"kind": kind, "justification": suppressed.reason}]
    return made


def _fingerprint(finding: Finding) -> str:
    """The same for the same fault wherever the source lies and however its lines move."""
    files = [os.path.basename(spot[0]) for a in finding.accesses if (spot := place(a.where))]
    told = (finding.kind, finding.rule, finding.kernel, finding.ref, files)
    return hashlib.sha256(repr(told).encode()).hexdigest()[:32]


def _text(access: Access, ref: str | None) -> str:
    where = [access.program] if access.program else []
    if access.cell is not None:
        where.append(f"cell {access.cell}")
    who = f"{', '.join(where)} " if where else ""
    return f"{who}{access.what} {ref or ''}{access.indices}".rstrip()


def _location(where: str | None) -> dict[str, Any] | None:
    spot = place(where)
    if spot is None:
        return None
    file, line = spot
    artifact: dict[str, str] = {"uri": pathlib.Path(os.path.abspath(file)).as_uri()}
    root = pathlib.Path.cwd().as_uri() + "/"
    if artifact["uri"].startswith(root):
        artifact = {"uri": artifact["uri"].removeprefix(root), "uriBaseId": "SRCROOT"}
    region = {"startLine": line}
    return {"physicalLocation": {"artifactLocation": artifact, "region": region}}
