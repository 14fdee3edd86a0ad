"""The verbs of ``python -m pallas_shim``: one module each, and how a script is started."""

from __future__ import annotations

# verb: the module with its main(arguments) -> exit status, which gets what follows the verb, and
# what it does. A module is imported only when its verb is used.
VERBS = {
    "run": ("pallas_shim.cli.run", "run a script; the same as without a verb"),
    "check": ("pallas_shim.cli.check", "say what kernels would do wrong on a device"),
    "compile": ("pallas_shim.cli.compile", "ask the TPU's compiler about each kernel"),
    "bisect": ("pallas_shim.bisect", "find the part of the shim that makes a number wrong"),
    "debug": ("pallas_shim.cli.debug", "step through kernels with the values of their names"),
    "report": ("pallas_shim.cli.report", "show or merge the files that --report wrote"),
    "doctor": ("pallas_shim.cli.doctor", "say whether the shim works in this environment"),
    "view": ("pallas_shim.cli.view", "show what each kernel does, cell by cell, as a page"),
    "tune": ("pallas_shim.cli.tune", "rank block sizes by a kernel's time on a TPU"),
    "profile": ("pallas_shim.cli.profile", "estimate where a kernel's time goes on a TPU"),
}
