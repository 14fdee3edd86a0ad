"""Fingerprints what all programs depend on: versions, our sources, settings, the machine."""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import platform
import sys
from typing import Any

import jax
import numpy as np

import pallas_shim
from pallas_shim import settings


def facts() -> tuple[str, str]:
    """Two texts. They are equal in two processes that make the same programs."""
    chosen = settings.current()
    look = (chosen.tpu, chosen.topology)
    return _unchanging(), repr((sorted(chosen.passes_left_out), chosen.force, look))


@functools.cache
def _unchanging() -> str:
    libraries = ("jaxlib", "ml_dtypes", "opt_einsum", "scipy")
    everything = (
        pallas_shim.__version__,
        OWN_SOURCES,
        sys.version,
        sys.flags.optimize,
        platform.machine(),
        sys.byteorder,
        jax.__version__,
        np.__version__,
        *(str(importlib.import_module(name).__version__) for name in libraries),
        _processor(),
    )
    return hashlib.sha256(repr(everything).encode()).hexdigest()


def _processor() -> tuple[Any, ...]:
    """The processor's features, since the last bits of some NumPy functions depend on them."""
    core: Any = getattr(np, "_core", None) or np.core
    features = core._multiarray_umath.__cpu_features__
    return tuple(sorted(features.items())), os.environ.get("OPENBLAS_CORETYPE", "")


def _own_sources() -> tuple[tuple[str, int, int], ...]:
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
    return tuple(sorted(found))


# This package's source files, with sizes and times, taken as close to their import as possible. An
# edited rule makes other programs.
OWN_SOURCES = _own_sources()
