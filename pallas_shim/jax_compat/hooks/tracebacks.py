"""Hides frames of the shim from the tracebacks that JAX shows."""

from __future__ import annotations

import functools
import os

from jax._src import source_info_util, traceback_util


@functools.cache
def hide_frames(directory: str) -> None:
    """Makes JAX treat code in a directory as its own: it isn't shown in tracebacks, nor taken for
    the place of an operation. It isn't undone: JAX can't forget a directory, and this one holds
    nothing else."""
    for util in (traceback_util, source_info_util):
        util.register_exclusion(os.path.join(directory, ""))
