"""Asks the real TPU compiler about the kernels that a script reaches, without a TPU.

The user's process only exports kernels (`session`), and never loads libtpu. A second process
(`driver`) hands them to workers, which compile them and may crash (`worker`, `isolation`).

`rank` is for users, and so are `api` and `tuning`.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # The compiler's processes import this package, and are to load no more than they need.
    if name == "rank":
        from pallas_shim.chip import tuning

        return tuning.rank
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
