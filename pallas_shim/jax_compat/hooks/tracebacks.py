"""Hides frames of the shim from the tracebacks that JAX shows."""

from __future__ import annotations

import functools
import os

from jax._src import source_info_util, traceback_util


@functools.cache
def hide_frames(directory: str) -> None:
    """Has JAX treat code in a directory as its own: not in the tracebacks that it shows, nor as
    the place of an operation. Not undone: JAX forgets none, and nothing else is there."""
    for util in (traceback_util, source_info_util):
        util.register_exclusion(os.path.join(directory, ""))
