"""Runs Pallas kernels as NumPy programs on any CPU, without a change to the script.

`activate`, `deactivate`, `is_active` and the context manager `active` switch the shim in this
process. `register_rule` adds a rule for a primitive of your own; a rule raises `Unsupported`
for a case that it can't do. Importing this package imports neither JAX nor NumPy.
"""

from __future__ import annotations

import os as _os

_beside = _os.path.dirname(__path__[0])
if _os.path.isdir(_os.path.join(_beside, "sitecustomize_pkg")):
    # A checkout: patches/ and sitecustomize_pkg/ lie beside this package, not yet inside it.
    __path__.append(_beside)

from pallas_shim.evaluator.registry import Unsupported, register_rule  # noqa: E402
from pallas_shim.patching import activate, active, deactivate, is_active  # noqa: E402

__version__ = "0.1.0"
__all__ = ["Unsupported", "activate", "active", "deactivate", "is_active", "register_rule"]
