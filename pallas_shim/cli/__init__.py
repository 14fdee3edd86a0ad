"""The verbs of ``python -m pallas_shim``: one module each, and how a script is started."""

from __future__ import annotations

# verb: the module with its main(arguments) -> exit status, which gets what follows the verb. A
# module is imported only when its verb is used.
VERBS = {
    "bisect": "pallas_shim.bisect",
    "compile": "pallas_shim.cli.compile",
    "doctor": "pallas_shim.cli.doctor",
    "profile": "pallas_shim.cli.profile",
    "report": "pallas_shim.cli.report",
}
