"""Runs Pallas kernels as NumPy programs on any CPU, without a change to the script.

`activate`, `deactivate`, `is_active` and the context manager `active` switch the shim in this
process. `report` returns what ran until now. `register_rule` adds a rule for a primitive of your
own; a rule raises `Unsupported` for a case that it can't do. Importing this package imports neither
JAX nor NumPy, and each of these names only when it is used.

PYTEST_DONT_REWRITE: with PALLAS_NUMPY, it is imported before pytest is, which would warn of that.
"""

import os as _os

TYPE_CHECKING = False  # the module typing would take longer than all of this package
if TYPE_CHECKING:
    from typing import Any

    from pallas_shim.evaluator.registry import Unsupported, register_rule
    from pallas_shim.patching import activate, active, deactivate, is_active
    from pallas_shim.reports.document import Document as Report
    from pallas_shim.reports.document import of_process as report

_beside = _os.path.dirname(__path__[0])
if _os.path.isdir(_os.path.join(_beside, "sitecustomize_pkg")):
    # A checkout: patches/ and sitecustomize_pkg/ lie beside this package, not yet inside it.
    __path__.append(_beside)

__version__ = "0.1.0"
__all__ = [
    "Report", "Unsupported", "activate", "active", "deactivate", "is_active", "register_rule",
    "report",
]  # fmt: skip

# name: where it is, and its name there
_OFFERED = {
    "Report": ("pallas_shim.reports.document", "Document"),
    "Unsupported": ("pallas_shim.evaluator.registry", "Unsupported"),
    "activate": ("pallas_shim.patching", "activate"),
    "active": ("pallas_shim.patching", "active"),
    "deactivate": ("pallas_shim.patching", "deactivate"),
    "is_active": ("pallas_shim.patching", "is_active"),
    "load_ipython_extension": ("pallas_shim.plugins.ipython", "load_ipython_extension"),
    "register_rule": ("pallas_shim.evaluator.registry", "register_rule"),
    "unload_ipython_extension": ("pallas_shim.plugins.ipython", "unload_ipython_extension"),
    "report": ("pallas_shim.reports.document", "of_process"),
}


def __getattr__(name: str) -> "Any":
    if name not in _OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module, offered = _OFFERED[name]
    value = getattr(importlib.import_module(module), offered)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_OFFERED})
