"""The key of a jitted call's program: a digest of all that tracing the call depends on."""

from __future__ import annotations

import functools
import os
import platform
import sys
from typing import Any

import jax
import numpy as np

import pallas_shim
from pallas_shim import settings
from pallas_shim.cache.reach import Reach, Unkeyable
from pallas_shim.jax_compat import inputs
from pallas_shim.jax_compat.hooks import jit_calls


def key(call: jit_calls.Call) -> str:
    """What tells the program of a call from all others.

    Raises:
      Unkeyable: something that it depends on can't be read.
    """
    reach = Reach()
    reach.add(_process(), "the process")
    reach.add(list(inputs.configuration()), "JAX's configuration")
    reach.add_jitted(call.function, call.jit_info)
    static, dynamic = inputs.split_arguments(call.jit_info, call.args, call.kwargs)
    reach.add(static, "a static argument")
    reach.add(inputs.tree_parts(jax.tree.structure(dynamic)), "an argument's container")
    for aval in call.avals:
        if not inputs.is_array_type(aval):
            raise Unkeyable(f"an argument is of the type {aval}")
        reach.add((aval.shape, str(aval.dtype), bool(aval.weak_type), str(aval)))
    return reach.digest()


def _process() -> list[Any]:
    chosen = settings.current()
    return [
        pallas_shim.__version__,
        _own_sources(),
        sorted(chosen.disabled_passes),
        chosen.force,
        chosen.tpu,
        sys.version,
        sys.flags.optimize,
        platform.machine(),
        sys.byteorder,
        sys.modules["jaxlib"].__version__,
        sys.modules["ml_dtypes"].__version__,
        np.__version__,
        jax.__version__,
    ]


@functools.cache
def _own_sources() -> list[tuple[str, int, int]]:
    """Our own source files, with their sizes and times: an edited rule makes other programs."""
    root = os.path.dirname(pallas_shim.__file__)
    found = []
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    pending.append(entry.path)
                elif entry.name.endswith(".py"):
                    status = entry.stat()
                    found.append((entry.path, status.st_size, status.st_mtime_ns))
    return sorted(found)
